"""Both renderers: text stays text, the same bytes, nothing from outside, and a reader's needs."""

import json
import re
import shutil
from base64 import b64encode
from hashlib import sha256
from html import escape, unescape
from itertools import pairwise
from urllib.parse import unquote

from experiments import report
from flowlab.report import html, markdown
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
    plain,
)
from tests.support.reports import FOLDER, WILD, Page

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8) + bytes([0, 0, 1, 4, 0, 0, 0, 7])


def written(root):
    assert report.main([f"results_dir={root}"]) == 0
    return [(root / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")]


def test_text_from_outside_stays_text(results):
    page, twin = written(results)
    parsed = Page(page)
    assert parsed.text("script") == [f"\n{html.SCRIPT}"]
    assert len(parsed.all("img")) == 2
    assert not [a for _, attributes in parsed.elements for a in attributes if a.startswith("on")]
    shown = "\n".join(text for _, text in parsed.texts)
    assert shown.count(WILD) == 3  # two statements, the benchmark's form
    assert FOLDER in parsed.text("h3")
    prose = re.sub(r"```.*?```", "", twin, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)[<>]", prose)
    assert r"\<script\>alert(1)\</script\>" in prose


def test_the_page_needs_nothing_from_outside(results):
    page, _ = written(results)
    parsed = Page(page)
    assert all(img["src"].startswith("data:image/") for img in parsed.all("img"))
    for link in parsed.all("a"):  # within the page, or to a figure beside it
        address = link["href"]
        assert address.startswith("#") or (results / unquote(address)).is_file()
    assert not {"link", "iframe", "object"} & {tag for tag, _ in parsed.elements}
    assert not re.search(r"url\(|@import", html.STYLE)
    policy = parsed.all("meta")[1]["content"]
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy.split("script-src")[1]
    (script,) = parsed.text("script")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_headings_tables_and_images_are_accessible(results):
    parsed = Page(written(results)[0])
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert parsed.all("html") == [{"lang": "en"}]
    assert all(img["alt"] for img in parsed.all("img"))
    assert {th["scope"] for th in parsed.all("th")} == {"col", "row"}
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in parsed.all("a") if "class" not in a} == {f"#{i}" for i in ids}


def test_the_same_results_give_the_same_bytes_wherever_they_lie(results, tmp_path):
    first = written(results)
    assert written(results) == first
    moved = shutil.copytree(results, tmp_path / "elsewhere" / "other")
    assert written(moved) == first


def test_answers_stand_before_everything_else(results):
    page, twin = written(results)
    titles = ["Studies", "All runs", "Theory", "Claims", "Benchmark", "Provenance"]
    assert Page(page).text("h2") == titles
    assert re.findall(r"^## (.*)$", twin, re.MULTILINE) == titles
    for text, first in ((unescape(page), "<h2"), (twin, "\n## ")):
        top = text[: text.index(first)]
        assert "9 networks drawn" in top and "All 3 runs keep the gradient" in top


def test_markdown_refers_to_files_that_are_there(results):
    _, twin = written(results)
    addresses = re.findall(r"^!\[.*\]\((.*)\)$", twin, re.MULTILINE)
    assert len(addresses) == 2 and len(set(addresses)) == 1
    assert not set(addresses[0]) & set(" <>()")
    figure = results / unquote(addresses[0])
    assert figure.is_file()
    description = json.loads(figure.with_suffix(".json").read_text())
    assert markdown._text(description["caption"]) in twin


def test_both_renderers_write_everything():
    picture = Picture("a b/<c>.png", PNG, "P", "said")
    group = Group("two", ("m|1", "m2"))
    table = Table("t|u", ("p", "q"), (("1.5", "z" * 61), ("2", group)))
    blocks = (
        Text("1. a *b* _c_ d_e\n<i>"),
        Text("so", strong=True),
        Code(("run ```", "a & b")),
        Items(("- x", "y")),
        table,
        picture,
        Fold("more & less", (Text("inside"),)),
        Reference("see", "A b", {"p": "1 & 2"}),
    )
    sections = (Section("A b!", blocks), Section("A b", (), (Section("C"),)))
    opening = Opening("It was.", (Reference("Yes.", "C"),), "note", picture)
    document = Document("T", opening, sections)
    assert markdown.render(document) == (
        "# T\n\nIt was.\n\n1. Yes. [C](#c)\n\nnote\n\n![P](a%20b/%3Cc%3E.png)\n\n"
        "- [A b\\!](#a-b)\n- [A b](#a-b-1)\n  - [C](#c)\n\n## A b\\!\n\n"
        "1\\. a \\*b\\* \\_c\\_ d_e \\<i\\>\n\n**so**\n\n````sh\nrun ```\na & b\n````\n\n"
        "- \\- x\n- y\n\n"
        f"**t\\|u**\n\n| p | q |\n| --- | --- |\n| 1.5 | {'z' * 61} |\n| 2 | two m\\|1 m2 |\n\n"
        "![P](a%20b/%3Cc%3E.png)\n\nsaid\n\n**more \\& less**\n\ninside\n\n"
        "see [A b](#a-b-1)\n\n## A b\n\n### C\n"
    )
    page = html.render(document)
    parsed = Page(page)
    assert "1. a *b* _c_ d_e <i>" in parsed.text("p")
    assert parsed.text("strong") == ["so"]
    assert parsed.text("code") == ["run ```\na & b"]
    assert parsed.text("summary") == ["Caption", "two", "more & less", "Caption"]
    assert parsed.all("td") == [{"class": "prose"}, {"class": "prose"}]
    assert [(img["width"], img["height"]) for img in parsed.all("img")] == [("260", "7")] * 2
    assert {"href": "#a-b-1", "data-filters": "p=1+%26+2"} in parsed.all("a")
    assert escape("a & b") in page


def test_only_tables_to_look_things_up_in_are_marked_for_the_script():
    tables = tuple(kind("t", ("p", "q"), (("1", "2"),)) for kind in (Table, Lookup))
    parsed = Page(html.render(Document("T", Opening("m"), (Section("S", tables),))))
    assert parsed.all("table") == [{}, {"class": "lookup"}]
    assert [parsed.text(tag) for tag in ("th", "td")] == [["p", "q", "1"] * 2, ["2", "2"]]


def test_a_single_figure_stands_beside_the_words_and_several_among_them():
    def page(*blocks):
        opening = Opening("m")
        return Page(html.render(Document("T", opening, (Section("S", blocks),))))

    picture, text = Picture("a.png", PNG, "P", ""), Text("t")
    assert {"class": "beside"} in page(text, picture, text).all("div")
    several = page(text, picture, picture).all("div")
    assert several == [{"class": "figures"}]


def test_an_svg_has_the_size_that_it_states():
    drawing = b'<?xml version="1.0"?>\n<svg height="30pt" version="1.1" width="60.5px"></svg>'
    picture = Picture("a.svg", drawing, "P", "")
    (img,) = Page(html.render(Document("T", Opening("m", (), "", picture), ()))).all("img")
    assert (img["width"], img["height"]) == ("300", "40")
    kind, data = img["src"].split(",", 1)
    assert kind == "data:image/svg+xml" and unquote(data).encode() == drawing.replace(b"\n", b" ")
    assert not set(data) & set("<>\"'#&")


def test_images_beyond_the_limit_are_named(monkeypatch):
    pictures = [Picture(f"{k}.png", bytes(24 * k), f"P{k}", "") for k in (2, 3, 1)]
    monkeypatch.setattr(html, "LARGEST", 24 * 4)
    page = Page(html.render(Document("T", Opening("m"), (Section("S", tuple(pictures)),))))
    assert [img["alt"] for img in page.all("img")] == ["P2", "P1"]
    assert "P3: too large to stand here; see " in page.text("p")
    assert {"href": "3.png"} in page.all("a")


def test_what_cannot_be_printed_is_shown_as_such():
    assert plain(" a\n\tb\0\u202e\udcff ") == "a b���"
