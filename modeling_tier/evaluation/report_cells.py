# Licensed under the Apache License, Version 2.0.
"""Numbers of metrics.json as the cells of the report's tables."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from .document import Cell, Figure, Table
from .measures import Measure
from .tables import p_text


def models_of(result: dict) -> dict[str, dict]:
    """The metrics of each model by its name, the first one first."""
    others = {name: other["metrics"] for name, other in result.get("compared", {}).items()}
    return {result["name"]: result["metrics"], **others}


def differences_of(result: dict) -> dict[str, dict]:
    """By the name of the difference."""
    compared = result.get("compared", {}).items()
    return {f"{name} minus {result['name']}": other.get("difference", {}) for name, other in compared}


def lookup(part: dict | None, *keys: str):
    for key in keys:
        part = (part or {}).get(key)
    return part


def side_by_side(result: dict, caption: str, titles: dict[str, str], select: Callable[[dict], dict]) -> list[Table]:
    """One row per quantity, one column per model and difference; `select` finds the quantities in either."""
    models = {name: select(metrics) for name, metrics in models_of(result).items()}
    keys = [key for key in titles if any(part.get(key) is not None for part in models.values())]
    columns = {name: [estimate_cell(part.get(key)) for key in keys] for name, part in models.items()}
    columns |= {
        name: [difference_cell(select(part).get(key)) for key in keys] for name, part in differences_of(result).items()
    }
    return table_blocks(caption, "", [titles[key] for key in keys], columns)


def table_blocks(
    caption: str, head: str, names: list[str], columns: dict[str, list], texts: bool = False
) -> list[Table]:
    """A table without its empty columns; nothing, if none is left."""
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    if not columns:
        return []
    rows = [[name, *(cells[i] for cells in columns.values())] for i, name in enumerate(names)]
    return [Table(caption, [head, *columns], rows, texts)]


def finding_column(part: dict[str, dict], name: str, cell: Callable[..., Cell]) -> list[Cell]:
    """The cells of one measure, by finding."""
    return [cell(values.get(name)) for values in part.values()]


def figure_blocks(figures: dict[str, Path], name: str, alt: str, caption: str) -> list[Figure]:
    return [Figure(figures[name], alt, caption)] if name in figures else []


def estimate_cell(estimate: dict | float | None, sign: str = "") -> Cell:
    """A number, its interval where it has one, or why there is none; empty if it was not measured."""
    if estimate is None:
        return ""
    if not isinstance(estimate, dict):
        return "undefined" if math.isnan(estimate) else f"{estimate:{sign}z.3f}"
    if estimate["value"] is None:
        return ("undefined", *([f"({estimate['undefined']})"] if "undefined" in estimate else []))
    number = f"{estimate['value']:{sign}z.3f}"
    if estimate.get("low") is None:
        return number
    return number, f"({estimate['low']:z.3f} to {estimate['high']:z.3f})"


def difference_cell(estimate: dict | float | None, p: bool = True) -> Cell:
    cell = estimate_cell(estimate, sign="+")
    value = p_cell(estimate, "p_bootstrap") if p else ""
    if not value:
        return cell
    *pieces, last = (cell,) if isinstance(cell, str) else cell
    return *pieces, f"{last},", f"p {value}" if value.startswith("<") else f"p = {value}"


def p_cell(estimate: dict | float | None, name: str) -> str:
    p = estimate.get(name) if isinstance(estimate, dict) else None  # a number alone has none
    return "" if p is None else p_text(p)


def threshold_cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def count_cell(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def has_intervals(result: dict) -> bool:
    return result["settings"]["resamples"] > 0


def smallest_p(result: dict) -> float:
    """The smallest p that the bootstrap can give, two-sided."""
    return 2 / (result["settings"]["resamples"] + 1)


def listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def with_options(options: dict | None) -> str:
    return f" ({', '.join(f'{name} {value}' for name, value in options.items())})" if options else ""


def definitions(measures: list[Measure]) -> dict[str, str]:
    return {m.term + (f" ({m.unit})" if m.unit else ""): m.definition for m in measures}
