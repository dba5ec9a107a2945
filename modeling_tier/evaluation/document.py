# Licensed under the Apache License, Version 2.0.
"""
Documents of blocks (paragraphs, tables, figures), which two functions turn into Markdown and into one HTML file that
needs nothing else, so that both say the same.
"""

import base64
import html
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image


@dataclass(frozen=True)
class Link:
    text: str
    address: str
    """Relative to the folder of the document, or of the web."""


# What a cell holds: a text, or pieces that stay whole (a number, its interval), or a list with one text per line.
Cell = str | tuple[str, ...] | list[str] | Link

# Pixels from which a figure is not made smaller than its texts can be read, but scrolls in its box.
_WIDE = 1000
# In print: rows up to which a table stays on one page, and columns from which an interval may be cut into two lines.
_SHORT, _MANY = 15, 8
_ADDRESS = "/:#?&=%"  # characters of an address that stay as they are


@dataclass
class Paragraph:
    text: str
    kind: str = "text"
    """"text", "note" or "warning"."""


@dataclass
class Subheading:
    text: str


@dataclass
class Definitions:
    items: dict[str, str]


@dataclass
class Table:
    """The first column names the row."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    texts: bool = False
    """Whether the cells are texts, set to the left, and not numbers."""
    apart: list[list[Cell]] = field(default_factory=list)
    """Further rows, which are of another origin: set apart, under a heading of their own."""
    apart_title: str = ""


@dataclass
class Figure:
    path: Path
    alt: str
    caption: str


@dataclass
class Code:
    text: str


@dataclass
class Folded:
    """Blocks that are shown on demand."""

    title: str
    blocks: list


@dataclass
class Section:
    title: str
    blocks: list = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


def flat_text(cell: Cell) -> str:
    """The pieces of a cell on one line."""
    if isinstance(cell, Link):
        return cell.text
    return cell if isinstance(cell, str) else " ".join(cell)


# Markdown


def as_markdown(title: str, sections: list[Section], folder: Path) -> str:
    """GitHub's Markdown; links to figures are relative to `folder`."""
    lines = [f"# {_plain(title)}", *(f"- [{section.title}](#{section.anchor})" for section in sections)]
    parts = [lines[0], "\n".join(lines[1:])]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_block_markdown(block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block_markdown(block, folder: Path) -> str:
    match block:
        case Paragraph(text, kind):
            mark = {"text": "", "note": "> ", "warning": "> **Warning.** "}[kind]
            return mark + _plain(text)
        case Subheading(text):
            return f"### {_plain(text)}"
        case Definitions(items):
            return "\n".join(f"- **{_plain(term)}**: {_plain(text)}" for term, text in items.items())
        case Figure(path, alt, caption):
            link = quote(Path(os.path.relpath(path, folder)).as_posix())
            return f"![{_plain(alt)}]({link})\n\n*{_plain(caption)}.*"
        case Code(text):
            return f"```bash\n{text}\n```"
        case Folded(title, blocks):
            inside = [_block_markdown(block, folder) for block in blocks]
            return "\n\n".join([f"<details><summary>{_plain(title)}</summary>", *inside, "</details>"])
        case Table(caption, columns, rows, texts, apart, title):
            rule = ["---", *["---" if texts else "---:"] * (len(columns) - 1)]
            lines = [[_plain(column) for column in columns], rule]
            lines += [[_cell_markdown(cell) for cell in row] for row in rows]
            if apart:
                lines += [[f"*{_plain(title)}*", *[""] * (len(columns) - 1)]]
                lines += [[_cell_markdown(cell) for cell in row] for row in apart]
            body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            return f"**{_plain(caption)}**\n\n{body}"


def _cell_markdown(cell: Cell) -> str:
    if isinstance(cell, Link):
        return f"[{_plain(cell.text)}]({quote(cell.address, safe=_ADDRESS)})"
    return "<br>".join(map(_plain, cell)) if isinstance(cell, list) else _plain(flat_text(cell))


def _plain(text: str) -> str:
    """The text as it is: nothing in it is markup, and it stays on one line."""
    return re.sub(r"([\\`*<>\[\]|&#~]|\b_|_\b)", r"\\\1", " ".join(text.split()))


# HTML


def as_html(title: str, sections: list[Section]) -> str:
    """One page with its style and its figures, without scripts."""
    contents = "\n".join(f'<li><a href="#{s.anchor}">{html.escape(s.title)}</a></li>' for s in sections)
    body = "\n".join(
        f'<section id="{s.anchor}">\n<h2>{html.escape(s.title)}</h2>\n'
        + "\n".join(_block_html(block) for block in s.blocks)
        + "\n</section>"
        for s in sections
    )
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
</header>
<nav aria-label="Contents">
<ul>
{contents}
</ul>
</nav>
<main>
{body}
</main>
</body>
</html>
"""


def _block_html(block) -> str:
    match block:
        case Paragraph(text, kind):
            mark = "<strong>Warning.</strong> " if kind == "warning" else ""
            return f'<p class="{kind}">{mark}{html.escape(text)}</p>'
        case Subheading(text):
            return f"<h3>{html.escape(text)}</h3>"
        case Definitions(items):
            pairs = (f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in items.items())
            return f"<dl>{''.join(pairs)}</dl>"
        case Figure(path, alt, caption):
            with Image.open(path) as picture:
                width, height = picture.size
            data = base64.b64encode(path.read_bytes()).decode()
            wide = ' class="wide"' if width > _WIDE else ""
            return (
                f'<figure>\n<div class="scroll" tabindex="0" role="group" aria-label="Figure">'
                f'<img{wide} src="data:image/png;base64,{data}" '
                f'width="{width}" height="{height}" alt="{html.escape(alt)}"></div>\n'
                f"<figcaption>{html.escape(caption)}.</figcaption>\n</figure>"
            )
        case Code(text):
            return f"<pre><code>{html.escape(text)}</code></pre>"
        case Folded(title, blocks):
            inside = "\n".join(map(_block_html, blocks))
            return f"<details>\n<summary>{html.escape(title)}</summary>\n{inside}\n</details>"
        case Table(caption, columns, rows, texts, apart, title):
            head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
            body = f"<tbody>\n{_rows_html(rows)}\n</tbody>"
            if apart:
                heading = (
                    f'<tr><th scope="rowgroup" colspan="{len(columns)}"><span>{html.escape(title)}</span></th></tr>'
                )
                body += f'\n<tbody class="apart">\n{heading}\n{_rows_html(apart)}\n</tbody>'
            kinds = ["texts" if texts else "numbers"]
            kinds += ["short"] * (len(rows) + len(apart) <= _SHORT) + ["many"] * (len(columns) > _MANY)
            return (
                f'<div class="scroll" tabindex="0" role="group" aria-label="Table"><table class="'
                f'{" ".join(kinds)}">\n<caption><span>{html.escape(caption)}</span></caption>\n'
                f"<thead><tr>{head}</tr></thead>\n{body}\n</table></div>"
            )


def _rows_html(rows: list[list[Cell]]) -> str:
    return "\n".join(
        f'<tr{_mean(row)}><th scope="row">{html.escape(flat_text(row[0]))}</th>'
        + "".join(f"<td>{_cell_html(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )


def _mean(row: list[Cell]) -> str:
    return ' class="mean"' if row[0] == "mean" else ""


def _cell_html(cell: Cell) -> str:
    if isinstance(cell, list):
        return "<br>".join(map(html.escape, cell))
    if isinstance(cell, Link):
        return f'<a href="{html.escape(quote(cell.address, safe=_ADDRESS))}">{html.escape(cell.text)}</a>'
    if isinstance(cell, tuple):
        return " ".join(f"<span>{html.escape(piece)}</span>" for piece in cell)
    return html.escape(cell)
