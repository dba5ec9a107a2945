# Licensed under the Apache License, Version 2.0.
"""How the numbers of a report were measured: data, scores, thresholds, intervals, counts."""

from .document import Definitions, Paragraph
from .report_cells import has_intervals, lookup, smallest_p, table_blocks, with_options


def method(result: dict) -> list:
    where = f"{result['dataset']}, split {result['split']}{with_options(result.get('options'))}."
    items = {"Data": where} | _method_of_scores(result) | _method_of_intervals(result)
    blocks: list = [Definitions(items)]
    blocks += [Paragraph(f"While the data were loaded: {note}", "note") for note in result.get("notes", [])]
    notes = result.get("validation", {}).get("notes", [])
    blocks += [Paragraph(f"While the validation data were loaded: {note}", "note") for note in notes]
    return blocks + _counts(result)


def _method_of_scores(result: dict) -> dict[str, str]:
    if not lookup(result, "prompts", "findings"):
        return {}
    items = {"Score of a finding": f"{result['protocol']['score']} (protocol “{result['protocol']['name']}”)."}
    if "study_mean" in result["metrics"].get("classification", {}):
        items["Studies"] = (
            "Scored by the mean, or by the largest, of their images' scores; a study shows what any of its images "
            "shows."
        )
    if "validation" not in result:
        return items | {
            "Validation set": "None was named. So there are no MCC, F1, sensitivity and specificity: their thresholds "
            "must not be chosen on the images that they are judged by."
        }
    validation = result["validation"]
    items["Validation set"] = (
        f"{validation['num_images']:,} images, the {validation['split']} split of {validation['dataset']}"
        f"{with_options(validation.get('options'))}."
    )
    items["Thresholds"] = (
        "Chosen for each finding on the validation set, one with the best MCC there and one with the best F1; a "
        "score above it is positive. For studies they are chosen on its studies, or on its images where none has "
        "several. MCC, sensitivity and specificity are taken at the first, F1 at the second. Intervals and p "
        "values take the thresholds (and the calibration) as given: another validation set would have given "
        "others."
    )
    return items


def _method_of_intervals(result: dict) -> dict[str, str]:
    settings, items = result["settings"], {}
    if has_intervals(result):
        items["Intervals"] = (
            f"{settings['confidence']:.0%}, written as value (low to high): percentiles of a bootstrap over subjects, "
            "not over images (without a subject a study, without a study an image stands for itself), "
            f"{settings['resamples']:,} resamples, seed {settings['seed']}. A resample that lacks a class of a "
            "finding is skipped for it, and its mean is over the other findings; metrics.json says how many. The "
            "intervals speak of these models on other subjects, not of models from other training runs."
        )
    items["Means"] = "Unweighted, over the findings for which the number is defined."
    if result.get("compared"):
        items["Comparison"] = (
            "Both models are taken on the same resamples; p (bootstrap) is two-sided"
            + (f" and at least {smallest_p(result):.3f}, its smallest possible value" if has_intervals(result) else "")
            + ". p (DeLong) is DeLong's test of two AUROCs on the same cases, with Obuchowski's variance where a "
            "subject has several images; p (Holm) is that after Holm's correction over the findings. No other p is "
            "corrected for the number of comparisons."
        )
    return items


def _counts(result: dict) -> list:
    counts = result["counts"]
    titles = {name: name for name in ("images", "studies", "subjects", "unreadable", "regions", "texts")}
    titles |= {"unreadable": "unreadable images, skipped", "regions": "ground-truth regions"}
    table = {title: f"{counts[name]:,}" for name, title in titles.items() if name in counts}
    table["views"] = ", ".join(f"{number:,} {view}" for view, number in counts.get("views", {}).items())
    blocks = table_blocks("What was evaluated", "", list(table), {"number": list(table.values())})
    reasons = result["metrics"].get("unreadable", [])
    numbers = [str(i + 1) for i in range(len(reasons))]
    blocks += table_blocks("Images that could not be read", "", numbers, {"reason": reasons}, texts=True)
    labels = counts.get("labels", {})
    columns = {
        kind: [f"{numbers[kind]:,}" for numbers in labels.values()]
        for kind in ("positive", "negative", "uncertain", "blank")
    }
    meaning = {"ignore": "ignored", "zeros": "counted as negative", "ones": "counted as positive"}
    policy = ", ".join(f"{kind} ones {meaning[result['labels'][kind]]}" for kind in ("uncertain", "blank"))
    return blocks + table_blocks(f"Labels of the images; {policy}", "finding", list(labels), columns)
