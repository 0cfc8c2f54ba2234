"""What a report consists of, before it is HTML or Markdown.

Every string is plain text: renderers escape it, so that nothing in it is markup.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Commands, one a line."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Items:
    """A list without order."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells under ``columns``; the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG: its path relative to the report, its bytes, and the words that go with it."""

    path: str
    content: bytes
    title: str
    caption: str


Block = Text | Code | Items | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading, what stands under it, and the sections inside."""

    title: str
    blocks: tuple[Block, ...] = ()
    sections: tuple["Section", ...] = ()


@dataclass(frozen=True)
class Document:
    """A title and its sections; ``missing`` has one line for each part that could not be had."""

    title: str
    sections: tuple[Section, ...]
    missing: tuple[str, ...] = ()


def outline(document: Document) -> Iterator[tuple[int, str, Section]]:
    """Every section in order with its level (2 for the outermost) and its anchor.

    Anchors are those that Markdown viewers make of headings: lower case, hyphens for spaces, no
    punctuation, and a number after a name that came before.
    """
    taken = {anchor(document.title)}

    def walk(sections: tuple[Section, ...], level: int):
        for section in sections:
            name = own = anchor(section.title)
            count = 0
            while own in taken:
                count += 1
                own = f"{name}-{count}"
            taken.add(own)
            yield level, own, section
            yield from walk(section.sections, level + 1)

    yield from walk(document.sections, 2)


def anchor(title: str) -> str:
    """The name by which a heading is linked to."""
    kept = re.sub(r"[^\w\- ]", "", plain(title).lower()).replace(" ", "-")
    return kept or "section"


def plain(text: object) -> str:
    """One line of printable text: other white space is a space, anything invisible is shown."""
    line = " ".join(str(text).split())
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line
    )
