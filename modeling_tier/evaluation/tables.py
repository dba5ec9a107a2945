# Licensed under the Apache License, Version 2.0.
"""The results of an evaluation as tables of plain text, for the screen; report.html has all of them."""


def metrics_tables(result: dict) -> str:
    """
    Of what metrics.json holds: a table of the findings and one of the whole set for each model, then the differences.
    What was not measured is not there.
    """
    blocks = []
    models = {result["name"]: result["metrics"]} | {n: each["metrics"] for n, each in result["compared"].items()}
    for name, metrics in models.items():
        blocks += ([f"--- {name}"] if len(models) > 1 else []) + _of_model(metrics)
    for name, each in result["compared"].items():
        blocks += [f"--- {name} - {result['name']}", *_of_difference(each["difference"])]
    return "\n\n".join(blocks)


def _of_model(metrics: dict) -> list[str]:
    places = metrics.get("localisation", {})
    titles = {"pointing_game": "pointing", "chance": "(chance)", "cnr": "CNR", "miou": "mIoU", "iou": "IoU"}
    columns = {title: places[name] for name, title in titles.items() if name in places}
    columns = {title: {k: number(v) for k, v in column.items()} for title, column in columns.items()}
    if "classification" in metrics:
        by_image = metrics["classification"]["image"]
        names = {"auroc": "AUROC", "average_precision": "AP", "mcc": "MCC", "f1": "F1"}
        columns = {
            title: {finding: estimate(values.get(name)) for finding, values in by_image.items()}
            for name, title in names.items()
            if any(name in values for values in by_image.values())
        } | columns
    blocks = []
    if columns:
        named = dict.fromkeys(finding for column in columns.values() for finding in column if finding != "mean")
        rows = [["finding", *columns]]
        rows += [[finding, *(column.get(finding, "-") for column in columns.values())] for finding in (*named, "mean")]
        blocks.append(aligned(rows))
    if "undefined" in metrics:
        blocks.append("\n".join(f"{name}: AUROC undefined ({why})" for name, why in metrics["undefined"].items()))
    if "members" in metrics:
        means = [["member", "AUROC"]]
        means += [[name, number(member["auroc"]["mean"])] for name, member in metrics["members"].items()]
        blocks.append(aligned(means))
    single = []
    if "retrieval" in metrics:
        recall = [["recall", "R@1", "R@5", "R@10"]]
        for way, values in metrics["retrieval"].items():
            recall.append([way.replace("_", " "), *(number(values[f"r@{k}"]) for k in (1, 5, 10))])
        blocks.append(aligned(recall))
        single += [
            ["token entropy (at most)", f"{metrics['token_entropy']:.3f} ({metrics['max_token_entropy']:.3f})"],
            ["patch entropy (at most)", f"{metrics['patch_entropy']:.3f} ({metrics['max_patch_entropy']:.3f})"],
            ["share of similarity in the top 10% of patches", number(metrics["top10_share"])],
            ["share of negative token-patch cosines", number(metrics["negative_share"])],
            ["mean of a token's largest cosine", number(metrics["peak"])],
        ]
    if "peak_spread" in metrics:
        single.append(["spread of the peaks over images (0 to 1)", number(metrics["peak_spread"])])
    single.append(["images", str(metrics["num_images"])])
    if "unreadable" in metrics:
        single.append(["images that could not be read", str(len(metrics["unreadable"]))])
    return [*blocks, aligned(single)]


def _of_difference(difference: dict) -> list[str]:
    blocks = []
    if "classification" in difference:
        rows = [["finding", "AUROC", "p (bootstrap)", "p (DeLong)", "p (DeLong, Holm)"]]
        for finding, values in difference["classification"]["image"].items():
            auroc = values["auroc"]
            p_values = (auroc.get(name) for name in ("p_bootstrap", "p_delong", "p_holm"))
            rows.append([finding, estimate(auroc, sign="+"), *map(number, p_values)])
        blocks.append(aligned(rows))
    if "localisation_maps" in difference:
        rows = [["maps, over the pixels", "pointing", "CNR", "mIoU"]]
        for each in difference["localisation_maps"]:
            if (each["place"], each["resolution"]) != ("box", "pixel"):
                continue
            name = f"{each['text']}, {each['map'].replace('_', ' ')}"
            rows.append([name, *(estimate(each[key], sign="+") for key in ("pointing_game", "cnr", "miou"))])
        blocks.append(aligned(rows))
    if "sparsity" in difference:
        rows = [["sparsity", "difference"]]
        for name, each in difference["sparsity"]["without_padding"].items():
            rows.append([name.replace("_", " "), estimate(each, sign="+")])
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
    text = f"{values['value']:{sign}.3f}"
    return text if values.get("low") is None else f"{text} ({values['low']:.3f} to {values['high']:.3f})"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
