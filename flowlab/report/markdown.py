"""A document as Markdown (CommonMark with tables) that refers to the figures' files."""

import os
import re
from functools import singledispatch
from urllib.parse import quote

from flowlab.report.document import (
    Code,
    Document,
    Fold,
    Group,
    Items,
    Picture,
    Reference,
    Table,
    Text,
    anchors,
    outline,
    plain,
)


def render(document: Document) -> str:
    """The text; paths of figures are relative to the file's folder."""
    opening, links = document.opening, anchors(document)
    parts = [f"# {_text(document.title)}", _text(opening.measured)]
    if opening.answers:
        lines = enumerate((_link(answer, links) for answer in opening.answers), 1)
        parts.append("\n".join(f"{place}. {line}" for place, line in lines))
    parts += [_text(opening.note)] if opening.note else []
    parts += [_picture(opening.picture)] if opening.picture else []
    parts.append(
        "\n".join(
            f"{'  ' * (level - 2)}- [{_text(section.title)}](#{quote(anchor)})"
            for level, anchor, section in outline(document)
        )
    )
    for level, _, section in outline(document):
        parts.append(f"{'#' * level} {_text(section.title)}")
        parts += [_block(block, links) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


@singledispatch
def _block(block, links: dict[str, str]) -> str:
    raise TypeError(f"no Markdown for {type(block).__name__}")


@_block.register
def _(block: Text, links) -> str:
    return f"**{_text(block.text)}**" if block.strong else _text(block.text)


@_block.register
def _link(block: Reference, links) -> str:
    title = f"[{_text(block.section)}](#{quote(links.get(block.section, ''))})"
    return f"{_text(block.text)} {title}"


@_block.register
def _(block: Code, links) -> str:
    lines = [plain(line) for line in block.lines]
    ticks = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, ticks + 1)
    return "\n".join([f"{fence}sh", *lines, fence])


@_block.register
def _(block: Items, links) -> str:
    return "\n".join(f"- {_text(item)}" for item in block.items)


@_block.register
def _(block: Fold, links) -> str:
    inner = (_block(one, links) for one in block.blocks)
    return "\n\n".join([f"**{_text(block.summary)}**", *inner])


@_block.register
def _(block: Table, links) -> str:
    rows = [block.columns, ("---",) * len(block.columns), *block.rows]
    lines = [
        "| " + " | ".join(row if k == 1 else map(_cell, row)) + " |" for k, row in enumerate(rows)
    ]
    return f"**{_text(block.caption)}**\n\n" + "\n".join(lines)


@_block.register
def _(block: Picture, links) -> str:
    return f"{_picture(block)}\n\n{_text(block.caption)}"


def _picture(picture: Picture) -> str:
    return f"![{_text(picture.title)}]({quote(os.fsencode(picture.path))})"


def _cell(cell: str | Group) -> str:
    if isinstance(cell, Group):
        return _text(" ".join([cell.text, *cell.members]))
    return _text(cell)


def _text(text: object) -> str:
    """Plain text that Markdown takes for nothing else; underscores inside of words are harmless."""
    line = re.sub(r"([\\`*\[\]<>#|~&$!])", r"\\\1", plain(text))
    line = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
    return re.sub(r"^(\d*)([-+.)])(?=[-\s]|$)", r"\1\\\2", line)
