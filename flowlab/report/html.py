"""A document as one HTML file that needs no other: images inside, no script, no network."""

from base64 import b64encode
from functools import singledispatch
from html import escape

from flowlab.report.document import (
    Code,
    Document,
    Items,
    Picture,
    Section,
    Table,
    Text,
    outline,
    plain,
)

LARGEST = 7_000_000  # bytes of images in one file; as text they take a third more
_LONG, _PROSE = 60, ' class="prose"'  # a cell of more letters is prose

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; break-after: avoid; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
p, li, figcaption { max-width: 46rem; }
a { color: #00539c; }
nav ul { padding-left: 1.2rem; }
nav ul ul { padding: 0; }
nav ul ul li { display: inline-block; margin-right: 1rem; }
figure { margin: 1.5rem 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; }
pre { padding: .6rem; background: #f4f4f4; white-space: pre-wrap; }
.scroll { margin: 1rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; overflow-wrap: break-word; }
caption { padding-bottom: .3rem; text-align: left; font-weight: bold; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ccc; text-align: left;
  vertical-align: top; max-width: 30rem; font-variant-numeric: tabular-nums; }
tbody th { font-weight: normal; }
thead th { border-bottom: 2px solid #555; vertical-align: bottom; }
.prose { min-width: 16rem; }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; }
  .prose { min-width: 0; overflow-wrap: anywhere; }
  thead { display: table-header-group; }
  tr { break-inside: avoid; }
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1></header>
<nav aria-label="Contents">
{contents}
</nav>
<main>
{body}
</main>
</body>
</html>
"""


def render(document: Document) -> str:
    """The page. Images beyond ``LARGEST`` bytes in all are named by their path instead."""
    parts, embedded = [], 0
    for level, anchor, section in outline(document):
        parts.append(f'<h{level} id="{escape(anchor)}">{_text(section.title)}</h{level}>')
        for block in section.blocks:
            if isinstance(block, Picture):
                embedded += len(block.content)
                if embedded > LARGEST:
                    embedded -= len(block.content)
                    block = Text(f"{block.title}: too large to stand here; see {block.path}.")
            parts.append(_html(block))
    return _PAGE.format(
        title=_text(document.title),
        style=_STYLE,
        contents=_contents(document.sections, outline(document)),
        body="\n".join(parts),
    )


def _contents(sections: tuple[Section, ...], anchors) -> str:
    """Nested links; ``anchors`` walks through the sections in the same order."""
    lines = []
    for section in sections:
        _, anchor, _ = next(anchors)
        link = f'<a href="#{escape(anchor)}">{_text(section.title)}</a>'
        lines.append(f"<li>{link}{_contents(section.sections, anchors)}</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


@singledispatch
def _html(block) -> str:
    raise TypeError(f"no HTML for {type(block).__name__}")


@_html.register
def _(block: Text) -> str:
    return f"<p>{_text(block.text)}</p>"


@_html.register
def _(block: Code) -> str:
    return "<pre><code>" + "\n".join(map(_text, block.lines)) + "</code></pre>"


@_html.register
def _(block: Items) -> str:
    return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in block.items) + "</ul>"


@_html.register
def _(block: Table) -> str:
    def cell(text: str) -> str:
        return f"{_PROSE if len(text) > _LONG else ''}>{_text(text)}"

    caption = _text(block.caption)
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in block.columns)
    rows = [
        f'<tr><th scope="row"{cell(first)}</th>{"".join(f"<td{cell(c)}</td>" for c in rest)}</tr>'
        for first, *rest in block.rows
    ]
    # A box that scrolls can be reached from the keyboard.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">\n'
        f"<table><caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


@_html.register
def _(block: Picture) -> str:
    width, height = (int.from_bytes(block.content[k : k + 4], "big") for k in (16, 20))
    data = b64encode(block.content).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{_text(block.title)}">\n'
        f"<figcaption><strong>{_text(block.title)}.</strong> {_text(block.caption)}</figcaption>"
        "</figure>"
    )


def _text(text: object) -> str:
    return escape(plain(text))
