"""What a report consists of, before it is HTML or Markdown.

Every string is plain text: renderers escape it, so that nothing in it is markup.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Text:
    """A paragraph; ``strong`` where it is what the section has to say."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Reference:
    """A sentence and the title of the section that says more.

    ``filters`` are columns of the section's :class:`Lookup` with the values of the rows to show.
    """

    text: str
    section: str
    filters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Code:
    """Commands, one a line."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Items:
    """A list without order."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """A cell that stands for several: what is said of them all, and a line for each."""

    text: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells under ``columns``; the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Group, ...], ...]


@dataclass(frozen=True)
class Lookup(Table):
    """A table that a reader sorts and filters by any of its columns."""


@dataclass(frozen=True)
class Picture:
    """An SVG or a PNG: its path relative to the report, its bytes, the words that go with it."""

    path: str
    content: bytes
    title: str
    caption: str


@dataclass(frozen=True)
class Fold:
    """Details under a line that sums them up, closed until they are asked for."""

    summary: str
    blocks: tuple["Block", ...]


Block = Text | Reference | Code | Items | Table | Picture | Fold


@dataclass(frozen=True)
class Section:
    """A heading, what stands under it, and the sections inside."""

    title: str
    blocks: tuple[Block, ...] = ()
    sections: tuple["Section", ...] = ()


@dataclass(frozen=True)
class Opening:
    """What a reader sees first: what was measured, the answers, and the figure of the first."""

    measured: str
    answers: tuple[Reference, ...] = ()
    note: str = ""
    picture: Picture | None = None


@dataclass(frozen=True)
class Document:
    """A title, what stands on top, and sections; a ``missing`` line for each part not had."""

    title: str
    opening: Opening
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


def anchors(document: Document) -> dict[str, str]:
    """The anchor of each title, of the first section that has it."""
    found: dict[str, str] = {}
    for _, own, section in outline(document):
        found.setdefault(section.title, own)
    return found


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
