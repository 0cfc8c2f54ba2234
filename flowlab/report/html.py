"""A document as one HTML file that needs no other: images and the script of its tables inside.

Without the script every table stands there whole. Figures link to their files beside the report.
"""

import os
import re
from base64 import b64encode
from functools import singledispatch
from hashlib import sha256
from html import escape
from importlib.resources import files
from itertools import groupby
from urllib.parse import quote, urlencode

from flowlab.report.document import (
    Code,
    Document,
    Fold,
    Group,
    Items,
    Lookup,
    Opening,
    Picture,
    Reference,
    Section,
    Table,
    Text,
    anchors,
    outline,
    plain,
)

LARGEST = 7_000_000  # bytes of images in one file; as text they take a third more
_LONG, _PROSE = 48, ' class="prose"'  # a cell of more letters is prose
_SAFE = " /:;=,.()+-*!$?@[]{}~^|"  # in a data URL between double quotes
STYLE, SCRIPT = (files(__package__).joinpath(f"page.{s}").read_text("utf-8") for s in ("css", "js"))

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{digest}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{opening}
</header>
<nav aria-label="Contents">
{contents}
</nav>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def render(document: Document) -> str:
    """The page. Images beyond ``LARGEST`` bytes in all are named by their path instead."""
    page = _Page(anchors(document))
    opening = page.opening(document.opening)
    parts = []
    for level, anchor, section in outline(document):
        parts.append(f'<h{level} id="{escape(anchor)}">{_text(section.title)}</h{level}>')
        parts.append(page.section(section))
    digest = b64encode(sha256(f"\n{SCRIPT}".encode()).digest()).decode()
    return _PAGE.format(
        title=_text(document.title),
        opening=opening,
        style=STYLE,
        contents=_contents(document.sections, outline(document)),
        body="\n".join(filter(None, parts)),
        digest=f"sha256-{digest}",
        script=SCRIPT,
    )


class _Page:
    """Writes blocks, and knows the anchors of titles and the bytes of images so far."""

    def __init__(self, anchors: dict[str, str]):
        self.anchors, self.embedded = anchors, 0
        self.block = singledispatch(self._unknown)
        for kind, write in (
            *((Text, self._paragraph), (Reference, self._reference), (Code, self._code)),
            *((Items, self._items), (Table, self._table), (Lookup, self._lookup)),
            *((Picture, self._picture), (Fold, self._fold)),
        ):
            self.block.register(kind, write)

    def opening(self, opening: Opening) -> str:
        answers = "".join(f"<li>{self._sentence(link)}</li>\n" for link in opening.answers)
        parts = [
            f'<p class="measured">{_text(opening.measured)}</p>',
            f"<ol>\n{answers}</ol>" if answers else "",
            f'<p class="note">{_text(opening.note)}</p>' if opening.note else "",
        ]
        text = "\n".join(filter(None, parts))
        return _beside(text, self.block(opening.picture)) if opening.picture else text

    def section(self, section: Section) -> str:
        """What stands under a heading: a single figure beside the words, several among them."""
        pictures = [block for block in section.blocks if isinstance(block, Picture)]
        if len(pictures) != 1:
            return self.blocks(section.blocks)
        words = tuple(block for block in section.blocks if block is not pictures[0])
        return _beside(self.blocks(words), self.block(pictures[0]))

    def blocks(self, blocks: tuple) -> str:
        """Blocks in order, pictures that follow one another side by side."""
        parts = []
        for kind, group in groupby(blocks, type):
            written = [self.block(block) for block in group]
            if kind is Picture:
                parts.append('<div class="figures">\n' + "\n".join(written) + "\n</div>")
            else:
                parts += written
        return "\n".join(parts)

    def _unknown(self, block) -> str:
        raise TypeError(f"no HTML for {type(block).__name__}")

    def _paragraph(self, block: Text) -> str:
        return (
            f"<p><strong>{_text(block.text)}</strong></p>"
            if block.strong
            else (f"<p>{_text(block.text)}</p>")
        )

    def _sentence(self, block: Reference) -> str:
        address = escape(self.anchors.get(block.section, ""))
        # The script adds filters to the address, which would lead nowhere without it.
        filters = f' data-filters="{escape(urlencode(block.filters))}"' if block.filters else ""
        return f'{_text(block.text)} <a href="#{address}"{filters}>{_text(block.section)}</a>'

    def _reference(self, block: Reference) -> str:
        return f"<p>{self._sentence(block)}</p>"

    def _code(self, block: Code) -> str:
        return "<pre><code>" + "\n".join(map(_text, block.lines)) + "</code></pre>"

    def _items(self, block: Items) -> str:
        return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in block.items) + "</ul>"

    def _fold(self, block: Fold) -> str:
        inner = self.blocks(block.blocks)
        return f"<details><summary>{_text(block.summary)}</summary>\n{inner}\n</details>"

    def _table(self, block: Table, kind: str = "") -> str:
        caption = _text(block.caption)
        head = "".join(f'<th scope="col">{_text(name)}</th>' for name in block.columns)
        rows = [
            f'<tr><th scope="row"{_cell(first)}</th>'
            + "".join(f"<td{_cell(cell)}</td>" for cell in rest)
            + "</tr>"
            for first, *rest in block.rows
        ]
        # A box that scrolls can be reached from the keyboard.
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">\n'
            f"<table{kind}><caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
            + "\n".join(rows)
            + "\n</tbody></table></div>"
        )

    def _lookup(self, block: Lookup) -> str:
        return self._table(block, ' class="lookup"')

    def _picture(self, block: Picture) -> str:
        address = quote(os.fsencode(block.path))
        if self.embedded + len(block.content) > LARGEST:
            link = f'<a href="{address}">{_text(block.path)}</a>'
            return f"<p>{_text(block.title)}: too large to stand here; see {link}.</p>"
        self.embedded += len(block.content)
        width, height = _size(block)
        if block.path.endswith(".svg"):  # shorter than in base 64
            drawing = re.sub(rb"\s*\n\s*", b" ", block.content)
            data = f"svg+xml,{quote(drawing, safe=_SAFE)}"
        else:
            data = f"png;base64,{b64encode(block.content).decode()}"
        return (
            f'<figure><a class="full" href="{address}" title="Open in full size">'
            f'<img src="data:image/{data}" width="{width}" height="{height}" '
            f'alt="{_text(block.title)}"></a>\n<figcaption><details><summary>'
            f"Caption</summary><p>{_text(block.caption)}</p></details></figcaption>"
            "</figure>"
        )


def _beside(text: str, figure: str) -> str:
    return f'<div class="beside">\n<div>\n{text}\n</div>\n{figure}\n</div>'


def _cell(cell: str | Group) -> str:
    """A cell from behind its tag's name; a group's members are folded."""
    if isinstance(cell, Group):
        members = "".join(f"<li>{_text(member)}</li>" for member in cell.members)
        return (
            f"{_PROSE}><details><summary>{_text(cell.text)}</summary><ul>{members}</ul></details>"
        )
    return f"{_PROSE if len(cell) > _LONG else ''}>{_text(cell)}"


def _contents(sections: tuple[Section, ...], anchors) -> str:
    """Nested links; ``anchors`` walks through the sections in the same order."""
    lines = []
    for section in sections:
        _, anchor, _ = next(anchors)
        link = f'<a href="#{escape(anchor)}">{_text(section.title)}</a>'
        lines.append(f"<li>{link}{_contents(section.sections, anchors)}</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _size(picture: Picture) -> tuple[int, int]:
    """Width and height of an image in its own pixels, an SVG's at 96 to the inch."""
    if not picture.path.endswith(".svg"):
        width, height = (int.from_bytes(picture.content[k : k + 4], "big") for k in (16, 20))
        return width, height
    found = {}
    for name in ("width", "height"):
        stated = re.search(rf'<svg[^>]*\b{name}="([\d.]+)(pt)?"'.encode(), picture.content)
        found[name] = round(float(stated[1]) * (4 / 3 if stated[2] else 1)) if stated else 300
    return found["width"], found["height"]


def _text(text: object) -> str:
    return escape(plain(text))
