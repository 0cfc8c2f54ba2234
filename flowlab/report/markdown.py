"""A document as Markdown (CommonMark with tables) that refers to the figures' files."""

import os
import re
from functools import singledispatch
from urllib.parse import quote

from flowlab.report.document import Code, Document, Items, Picture, Table, Text, outline, plain


def render(document: Document) -> str:
    """The text; paths of figures are relative to the file's folder."""
    contents = [
        f"{'  ' * (level - 2)}- [{_text(section.title)}](#{quote(anchor)})"
        for level, anchor, section in outline(document)
    ]
    parts = [f"# {_text(document.title)}", "\n".join(contents)]
    for level, _, section in outline(document):
        parts.append(f"{'#' * level} {_text(section.title)}")
        parts += map(_markdown, section.blocks)
    return "\n\n".join(parts) + "\n"


@singledispatch
def _markdown(block) -> str:
    raise TypeError(f"no Markdown for {type(block).__name__}")


@_markdown.register
def _(block: Text) -> str:
    return _text(block.text)


@_markdown.register
def _(block: Code) -> str:
    lines = [plain(line) for line in block.lines]
    ticks = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, ticks + 1)
    return "\n".join([f"{fence}sh", *lines, fence])


@_markdown.register
def _(block: Items) -> str:
    return "\n".join(f"- {_text(item)}" for item in block.items)


@_markdown.register
def _(block: Table) -> str:
    rows = [block.columns, ("---",) * len(block.columns), *block.rows]
    lines = [
        "| " + " | ".join(row if k == 1 else map(_text, row)) + " |" for k, row in enumerate(rows)
    ]
    return f"**{_text(block.caption)}**\n\n" + "\n".join(lines)


@_markdown.register
def _(block: Picture) -> str:
    address = quote(os.fsencode(block.path))
    caption = _text(block.caption)
    return f"![{_text(block.title)}]({address})\n\n**{_text(block.title)}.** {caption}"


def _text(text: object) -> str:
    """Plain text that Markdown takes for nothing else; underscores inside of words are harmless."""
    line = re.sub(r"([\\`*\[\]<>#|~&$!])", r"\\\1", plain(text))
    line = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
    return re.sub(r"^(\d*)([-+.)])(?=[-\s]|$)", r"\1\\\2", line)
