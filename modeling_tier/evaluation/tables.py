# Licensed under the Apache License, Version 2.0.
"""Metrics as tables of plain text."""


def metrics_tables(metrics: dict) -> str:
    """One row a finding, then the numbers of the whole set; what was not measured is not there."""
    places = metrics.get("localisation", {})
    columns = {"AUROC": metrics["auroc"]} if "auroc" in metrics else {}
    titles = {"pointing_game": "pointing", "chance": "(chance)", "cnr": "CNR", "iou": "IoU"}
    columns |= {title: places[name] for name, title in titles.items() if name in places}
    rows = [["finding", *columns]]
    named = dict.fromkeys(finding for column in columns.values() for finding in column if finding != "mean")
    for finding in (*named, "mean") if columns else ():
        rows.append([finding, *(_number(column.get(finding)) for column in columns.values())])
    lines = [aligned(rows)] if columns else []
    if "undefined" in metrics:
        lines.append("\n".join(f"{name}: AUROC undefined ({why})" for name, why in metrics["undefined"].items()))
    if "members" in metrics:
        means = [["member", "AUROC"]]
        means += [[name, _number(member["auroc"]["mean"])] for name, member in metrics["members"].items()]
        lines.append(aligned(means))
    single = []
    if "retrieval" in metrics:
        recall = [["recall", "R@1", "R@5", "R@10"]]
        for way, values in metrics["retrieval"].items():
            recall.append([way.replace("_", " "), *(_number(values[f"r@{k}"]) for k in (1, 5, 10))])
        lines.append(aligned(recall))
        single += [
            ["token entropy (at most)", f"{metrics['token_entropy']:.3f} ({metrics['max_token_entropy']:.3f})"],
            ["patch entropy (at most)", f"{metrics['patch_entropy']:.3f} ({metrics['max_patch_entropy']:.3f})"],
            ["share of similarity in the top 10% of patches", _number(metrics["top10_share"])],
            ["share of negative token-patch cosines", _number(metrics["negative_share"])],
            ["mean of a token's largest cosine", _number(metrics["peak"])],
        ]
    if "peak_spread" in metrics:
        single.append(["spread of the peaks over images (0 to 1)", _number(metrics["peak_spread"])])
    single.append(["images", str(metrics["num_images"])])
    if "unreadable" in metrics:
        single.append(["images that could not be read", str(len(metrics["unreadable"]))])
    return "\n\n".join([*lines, aligned(single)])


def aligned(rows: list[list[str]]) -> str:
    """Rows of texts as columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
