# Licensed under the Apache License, Version 2.0.
"""The results of an evaluation as tables of plain text, for the screen; report.html has all of them."""

from .measures import (
    BY_NAME,
    LATERALITY,
    LOCALISATION,
    MAIN,
    NEGATION,
    RETRIEVAL,
    SCREEN,
    SEGMENTATION,
    SUMMARY,
    group,
    shown_in,
)


def metrics_tables(result: dict) -> str:
    """
    Of what metrics.json holds: a table of the findings and one of the data set for each model, then the differences.
    What was not measured is not there.
    """
    blocks = []
    models = {result["name"]: result["metrics"]}
    models |= {name: other["metrics"] for name, other in result["compared"].items()}
    for name, metrics in models.items():
        blocks += ([f"--- {name}"] if len(models) > 1 else []) + _of_model(metrics)
    for name, other in result["compared"].items():
        blocks += [f"--- {name} - {result['name']}", *_of_difference(other["difference"])]
    return "\n\n".join(blocks)


def _of_model(metrics: dict) -> list[str]:
    blocks = []
    if columns := _finding_columns(metrics):
        names = dict.fromkeys(name for column in columns.values() for name in column if name != "mean")
        rows = [["finding", *columns]]
        rows += [[name, *(column.get(name, "-") for column in columns.values())] for name in (*names, "mean")]
        blocks.append(aligned(rows))
    masks = metrics.get("localisation_masks")
    if human := metrics.get("radiologist"):
        parts = {"model": masks or {}, "radiologist": human}
        rows = [["against masks, mean", "pointing game", "IoU", "IoU (val.)"]]
        for name, part in parts.items():
            means = [part.get(key, {}).get("mean") for key in ("pointing_game", "iou", "iou_at_threshold")]
            rows.append([name, *map(estimate, means)])
        blocks.append(aligned(rows))
    if masks:
        columns = {
            m.label: {name: estimate(values) for name, values in masks[m.name].items()}
            for m in shown_in(SCREEN, LOCALISATION, SEGMENTATION)
            if m.name in masks
        }
        rows = [["against masks", *columns]]
        rows += [[name, *(column[name] for column in columns.values())] for name in next(iter(columns.values()))]
        blocks.append(aligned(rows))
    if "undefined" in metrics:
        blocks.append("\n".join(f"{name}: AUROC undefined ({why})" for name, why in metrics["undefined"].items()))
    if "members" in metrics:
        means = [["member", "AUROC"]]
        means += [[name, number(member["auroc"]["mean"])] for name, member in metrics["members"].items()]
        blocks.append(aligned(means))
    if "retrieval" in metrics:
        recall = [["recall", *(m.name.upper() for m in group(RETRIEVAL))]]
        for way, values in metrics["retrieval"].items():
            recall.append([way.replace("_", " "), *(number(values[m.name]) for m in group(RETRIEVAL))])
        blocks.append(aligned(recall))
    return [*blocks, aligned(_whole_set(metrics))]


def _finding_columns(metrics: dict) -> dict[str, dict[str, str]]:
    """By title: cells by finding."""
    by_image = metrics.get("classification", {}).get("image", {})
    localisation, intervals = metrics.get("localisation", {}), metrics.get("localisation_intervals", {})
    columns = {}
    for measure in shown_in(SCREEN):
        if measure.name in localisation:
            columns[measure.label] = {name: number(value) for name, value in localisation[measure.name].items()}
        elif measure.group == SEGMENTATION and measure.name in intervals:
            columns[measure.label] = {name: estimate(value) for name, value in intervals[measure.name].items()}
        elif any(measure.name in values for values in by_image.values()):
            columns[measure.label] = {name: estimate(values.get(measure.name)) for name, values in by_image.items()}
    return columns


def _whole_set(metrics: dict) -> list[list[str]]:
    rows = []
    means = metrics.get("classification", {}).get("image", {}).get("mean", {})
    means = means | metrics.get("laterality", {}).get("mean", {})
    for measure in shown_in(SUMMARY):
        if measure.group in (NEGATION, LATERALITY) and measure.name in means:
            rows.append([f"{measure.title}, mean", estimate(means[measure.name])])
        elif measure.name in metrics:
            title, value = measure.full or measure.title, number(metrics[measure.name])
            if measure.reference:
                title = f"{title} ({measure.reference_word})"
                value = f"{value} ({number(metrics[measure.reference])})"
            rows.append([title, value])
    rows.append(["images", str(metrics["num_images"])])
    if "unreadable" in metrics:
        rows.append(["images that could not be read", str(len(metrics["unreadable"]))])
    return rows


def _of_difference(difference: dict) -> list[str]:
    blocks = []
    if "classification" in difference:
        rows = [["finding", "AUROC", "p (bootstrap)", "p (DeLong)", "p (DeLong, Holm)"]]
        for finding, values in difference["classification"]["image"].items():
            auroc = values["auroc"]
            p_values = (auroc.get(name) for name in ("p_bootstrap", "p_delong", "p_holm"))
            rows.append([finding, estimate(auroc, sign="+"), *("-" if p is None else p_text(p) for p in p_values)])
        blocks.append(aligned(rows))
    if "localisation_maps" in difference:
        measures = shown_in(MAIN, LOCALISATION)
        rows = [["maps, over the pixels", *(m.label for m in measures)]]
        for entry in difference["localisation_maps"]:
            if (entry["place"], entry["resolution"]) != ("box", "pixel"):
                continue
            name = f"{entry['text']}, {entry['map'].replace('_', ' ')}"
            rows.append([name, *(estimate(entry[m.name], sign="+") for m in measures)])
        blocks.append(aligned(rows))
    if "sparsity" in difference:
        rows = [["sparsity", "difference"]]
        for name, values in difference["sparsity"]["without_padding"].items():
            rows.append([BY_NAME[name].title, estimate(values, sign="+")])
        blocks.append(aligned(rows))
    return blocks


def aligned(rows: list[list[str]]) -> str:
    """Rows of texts as columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    )


def estimate(values: dict | None, sign: str = "") -> str:
    """A value with its interval, as 0.812 (0.790 to 0.834)."""
    if values is None:
        return "-"
    if values["value"] is None:
        return "undefined"
    text = f"{values['value']:{sign}z.3f}"
    return text if values.get("low") is None else f"{text} ({values['low']:z.3f} to {values['high']:z.3f})"


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.3f}"
