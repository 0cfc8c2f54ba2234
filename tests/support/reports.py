"""Results folders for reports, and what a page of HTML holds."""

from html.parser import HTMLParser

import pandas as pd

from flowlab.storage import tables

WILD = "<script>alert(1)</script>"
FOLDER = '<img src=x onerror="alert(1)"> & `a|b` [c](d)'  # an experiment's folder, as Linux allows
COMMAND = "python -m experiments.run -m init=he,xavier depth=3,4"


def store(folder, name, *made, **more):
    """Write a run and its prediction with the metadata that a command stores."""
    table, prediction, settings = made
    metadata = {"settings": settings, "command": COMMAND, "versions": {"numpy": "9.8.7"}, **more}
    tables.write(prediction, folder / "theory" / f"{name}.parquet", metadata)
    return tables.write(table, folder / "runs" / f"{name}.parquet", metadata)


def claims(**first):
    """Two claims, the first contradicted."""
    row = {"id": "Z1", "statement": f"Said {WILD}", "source": "a | b", "quantity": "q"}
    row |= {"predicted": 1.0, "measured": 2.5, "low": 2.25, "high": 2.75, "tolerance": 0.1}
    row |= {"verdict": "does not hold", "expected": "does not hold", "as_expected": True}
    row |= {"sentence": "*No*, _it_ does not."}
    good = {**row, "id": "Y1", "verdict": "holds", "expected": "holds", "low": None, "high": None}
    return pd.DataFrame([good, row | first])


class Page(HTMLParser):
    """What a page holds once its text is parsed: elements, and text by element."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *tags):
        return [text for tag, text in self.texts if tag in tags]


def section(document, title):
    """The section of a document with a title, at any depth."""
    waiting = list(document.sections)
    while waiting:
        found = waiting.pop(0)
        if found.title == title:
            return found
        waiting += found.sections
    raise AssertionError(f"no section {title}")


def blocks(document, kind):
    """Every block of a kind in a document, those in folds too."""
    found = []

    def walk(several):
        for block in several:
            found.extend([block] if isinstance(block, kind) else [])
            walk(getattr(block, "blocks", ()))

    def down(sections):
        for one in sections:
            walk(one.blocks)
            down(one.sections)

    down(document.sections)
    return found
