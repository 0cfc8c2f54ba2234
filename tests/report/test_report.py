"""The report: literal text, the same bytes, what is missing, both renderers, a real browser."""

import json
import re
import shutil
import subprocess
import sys
from html import escape, unescape
from html.parser import HTMLParser
from itertools import pairwise
from urllib.parse import unquote

import pandas as pd
import pytest

import flowlab
from experiments import plots, report
from flowlab.errors import InputError
from flowlab.report import contents, gather, html, markdown
from flowlab.report.document import Code, Document, Items, Picture, Section, Table, Text, plain
from flowlab.storage import tables

WILD = "<script>alert(1)</script>"
FOLDER = '<img src=x onerror="alert(1)"> & `a|b` [c](d)'  # an experiment's folder, as Linux allows
COMMAND = "python -m experiments.run -m init=he,xavier depth=3,4"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


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


@pytest.fixture(scope="module")
def runs():
    """Three tiny runs: (table, prediction, settings)."""
    made = {}
    # Names sort in another order than settings.
    for name, init, depth in (("c", "he", 3), ("b", "he", 4), ("a", "xavier", 4)):
        settings = flowlab.make(init=init, depth=depth, width=6, batch_size=4, seeds=3)
        table, prediction = flowlab.measure(settings), flowlab.predict(settings).assign(run=name)
        wild = settings.resolved()
        wild["data"]["path"] = f"/data/{WILD}{'x' * 200}"
        made[name] = table.assign(run=name), prediction, wild
    return made


@pytest.fixture(scope="module")
def drawn(runs, tmp_path_factory):
    """A whole results folder: runs, figure, claims, benchmark."""
    root = tmp_path_factory.mktemp("report") / "results"
    for name, made in runs.items():
        store(root / FOLDER, name, *made)
    plots.plots(str(root))
    tables.write(claims(), root / "claims" / "claims.parquet", {"command": "claim it"})
    ratios = pd.DataFrame({"form": [WILD], "ratio": [2.125], "first_s": [float("nan")]})
    tables.write(ratios, root / "benchmark" / "probe.parquet", {"command": "rounds=3"})
    return root


@pytest.fixture
def results(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "results")


def written(root):
    assert report.main([f"results_dir={root}"]) == 0
    return [(root / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")]


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


def test_text_from_outside_stays_text(results):
    page, twin = written(results)
    parsed = Page(page)
    assert not parsed.all("script")
    assert len(parsed.all("img")) == 1
    assert not [a for _, attributes in parsed.elements for a in attributes if a.startswith("on")]
    shown = "\n".join(text for _, text in parsed.texts)
    assert shown.count(WILD) >= 4  # data.path, two statements, the benchmark's form
    assert f"Runs: {FOLDER}" in parsed.text("h3")
    prose = re.sub(r"```.*?```", "", twin, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)[<>]", prose)
    assert r"\<script\>alert(1)\</script\>" in prose


def test_the_page_needs_nothing_from_outside(results):
    page, _ = written(results)
    parsed = Page(page)
    assert all(img["src"].startswith("data:image/png;base64,") for img in parsed.all("img"))
    assert all(a["href"].startswith("#") for a in parsed.all("a"))
    assert not {"link", "script", "iframe", "object"} & {tag for tag, _ in parsed.elements}
    assert not re.search(r"url\(|@import", html._STYLE)
    assert "default-src 'none'" in parsed.all("meta")[1]["content"]


def test_headings_tables_and_images_are_accessible(results):
    parsed = Page(written(results)[0])
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert parsed.all("html") == [{"lang": "en"}]
    assert all(img["alt"] for img in parsed.all("img"))
    assert {th["scope"] for th in parsed.all("th")} == {"col", "row"}
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids)) == len(parsed.all("a"))
    assert {a["href"] for a in parsed.all("a")} == {f"#{i}" for i in ids}


def test_the_same_results_give_the_same_bytes_wherever_they_lie(results, tmp_path):
    first = written(results)
    assert written(results) == first
    moved = shutil.copytree(results, tmp_path / "elsewhere" / "other")
    assert written(moved) == first


def test_verdicts_stand_first_and_contradictions_on_top(results):
    page, twin = written(results)
    for text in (unescape(page), twin):
        places = [text.rindex(word) for word in ("Does not hold (1)", "Holds (1)", "Runs: ")]
        places.append(text.rindex("Source: 3 runs"))
        places.append(text.rindex("Change of log10‖δ‖"))
        assert places == sorted(places)
    table = pd.concat([claims(as_expected=False), claims(id="Z2")])
    tables.write(table, results / "claims" / "claims.parquet", {"command": "claim it"})
    document = gather(results)
    found = [b for b in document.sections[1].sections[0].blocks if isinstance(b, Table)]
    assert [b.caption for b in found] == ["Not as expected (1)", "Does not hold (1)", "Holds (2)"]
    assert [row[0] for row in found[0].rows] == ["Z1"]
    assert "2.5 [2.25, 2.75]" in found[0].rows[0]


def test_each_run_is_judged_from_its_own_tables(results, runs):
    document = gather(results)
    verdicts = document.sections[1].sections[1]
    sentences = {
        item.split(": ", 1)[0]: item.split(": ", 1)[1]
        for block in verdicts.blocks
        if isinstance(block, Items)
        for item in block.items
    }
    shown = {}
    for name, (table, prediction, settings) in runs.items():
        verdict = flowlab.judge(table, prediction)
        label = f"init={settings['init']['name']}, depth={settings['depth']}"
        assert sentences[label] == verdict.sentence
        shown[name] = (f"{verdict.change:z.2f}", verdict.trend, verdict.agreement)
    (section,) = (s for s in document.sections if s.title == "Tables")
    (table,) = (b for b in section.sections[0].blocks if isinstance(b, Table))
    assert table.columns[:2] == ("init", "depth")
    assert [row[:2] for row in table.rows] == [("he", "3"), ("he", "4"), ("xavier", "4")]
    for row in table.rows:
        assert (row[2], *row[4:6]) == shown[row[-1]]


def test_commands_and_versions_come_from_the_metadata(results, runs):
    store(results / "second", "he3", *runs["c"], versions={"numpy": "1.2.3"}, command="other")
    _, twin = written(results)
    assert f"```sh\n{COMMAND}\n```" in twin
    assert "python -m experiments.benchmark rounds=3" in twin
    assert "peer's time over flowlab's" in twin
    assert "| numpy | 1.2.3 | 1 |" in twin
    assert "| numpy | 9.8.7 | 3 |" in twin


def test_what_is_missing_is_named_and_the_rest_written(results, runs, capsys):
    folder = results / FOLDER
    store(results / "bare", "he4", *runs["b"])
    (results / "bare" / "theory" / "he4.parquet").unlink()
    (folder / "runs" / "broken.parquet").write_bytes(b"PAR1 not really")
    runs["c"][0].to_parquet(folder / "runs" / "foreign.parquet")
    store(folder, "empty", runs["c"][0].head(0), *runs["c"][1:])
    store(folder, "odd", *runs["c"][:2], "no settings")
    store(folder, "later", *runs["c"], schema=99)
    (folder / "theory" / "c.parquet").write_bytes(b"")
    (folder / "figures" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "figures" / "gone.json").write_text("{}")
    (folder / "figures" / "profiles.json").write_text("[")
    shutil.rmtree(results / "claims")
    shutil.rmtree(results / "benchmark")
    page, twin = written(results)
    notes = capsys.readouterr().err
    for line in (
        "no claims yet: make claims",
        "no benchmark yet: make bench",
        "bare has no figures yet: make plots",
        "bare/theory/he4.parquet is missing",
        f"{FOLDER}/runs/broken.parquet is damaged",
        f"{FOLDER}/runs/foreign.parquet is not a table of this laboratory",
        f"{FOLDER}/runs/empty.parquet cannot be judged",
        f"{FOLDER}/runs/odd.parquet is not a table of this laboratory",
        f"{FOLDER}/runs/later.parquet has schema 99; this version reads 1",
        f"{FOLDER}/theory/c.parquet is damaged",
        f"{FOLDER}/figures/cut.png is damaged",
        f"{FOLDER}/figures/gone.png is missing",
        f"{FOLDER}/figures/profiles.json is missing or damaged",
    ):
        assert len(re.findall(f"^note: {re.escape(line)}.*$", notes, re.MULTILINE)) == 1
        assert line in unescape(page)
        assert markdown._text(line) in twin
    assert notes.count("\n") == 13
    assert len(Page(page).all("img")) == 1
    assert page.count("No prediction.") == 2
    assert str(results) not in page


def test_a_stale_figure_is_named(results):
    next((results / FOLDER / "runs").glob("*.parquet")).unlink()
    assert any("shows 1 runs that are no longer there" in line for line in gather(results).missing)


def test_long_tables_name_where_the_rest_lies(tmp_path, runs):
    for k in range(contents.MOST + 3):
        table, prediction, settings = runs["c"]
        settings = {**settings, "seed": k, "init": {"name": "he", "gain": None if k else 1.5}}
        store(tmp_path / "many", f"r{k}", table, prediction, settings)
    (section,) = (s for s in gather(tmp_path).sections if s.title == "Tables")
    *_, table, rest = section.sections[0].blocks
    assert len(table.rows) == contents.MOST
    assert rest == Text("3 more runs lie in many/runs.")


def test_markdown_refers_to_files_that_are_there(results):
    _, twin = written(results)
    ((address),) = re.findall(r"^!\[.*\]\((.*)\)$", twin, re.MULTILINE)
    assert not set(address) & set(" <>()")
    assert (results / unquote(address)).read_bytes().startswith(b"\x89PNG")
    description = json.loads((results / unquote(address)).with_suffix(".json").read_text())
    assert markdown._text(description["caption"]) in twin


def test_both_renderers_write_everything():
    picture = b"\x89PNG\r\n\x1a\n" + bytes(8) + bytes([0, 0, 1, 4, 0, 0, 0, 7])
    blocks = (
        Text("1. a *b* _c_ d_e\n<i>"),
        Code(("run ```", "a & b")),
        Items(("- x", "y")),
        Table("t|u", ("p", "q"), (("1.5", "z" * 61),)),
        Picture("a b/<c>.png", picture, "P", "said"),
    )
    document = Document("T", (Section("A b!", blocks), Section("A b", (), (Section("C"),))))
    assert markdown.render(document) == (
        "# T\n\n- [A b\\!](#a-b)\n- [A b](#a-b-1)\n  - [C](#c)\n\n## A b\\!\n\n"
        "1\\. a \\*b\\* \\_c\\_ d_e \\<i\\>\n\n````sh\nrun ```\na & b\n````\n\n- \\- x\n- y\n\n"
        f"**t\\|u**\n\n| p | q |\n| --- | --- |\n| 1.5 | {'z' * 61} |\n\n"
        "![P](a%20b/%3Cc%3E.png)\n\n**P.** said\n\n## A b\n\n### C\n"
    )
    page = html.render(document)
    parsed = Page(page)
    assert parsed.text("p") == ["1. a *b* _c_ d_e <i>"]
    assert parsed.text("code") == ["run ```\na & b"]
    assert parsed.all("td") == [{"class": "prose"}]
    assert [(img["width"], img["height"]) for img in parsed.all("img")] == [("260", "7")]
    assert escape("a & b") in page


def test_images_beyond_the_limit_are_named(monkeypatch):
    pictures = [Picture(f"{k}.png", bytes(24 * k), f"P{k}", "") for k in (2, 3, 1)]
    monkeypatch.setattr(html, "LARGEST", 24 * 4)
    page = Page(html.render(Document("T", (Section("S", tuple(pictures)),))))
    assert [img["alt"] for img in page.all("img")] == ["P2", "P1"]
    assert page.text("p") == ["P3: too large to stand here; see 3.png."]


def test_what_cannot_be_printed_is_shown_as_such():
    assert plain(" a\n\tb\0\u202e\udcff ") == "a b���"


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["results_dir={tmp}/none"], "results_dir must be a folder; got {tmp}/none"),
        (["results_dir={tmp}/file"], "results_dir must be a folder; got {tmp}/file"),
        (["results_dir={tmp}"], "results_dir must hold results; got none in {tmp}"),
        (["title= "], "title must hold a word"),
        (["tilte=a"], "did you mean title"),
        (["fast"], "options are written key=value; got fast"),
    ],
)
def test_bad_input_is_one_line(arguments, line, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert report.main([a.format(tmp=tmp_path) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert line.format(tmp=tmp_path) in err


def test_a_folder_that_refuses_is_one_line(results, monkeypatch, capsys):
    (results / "report.md").mkdir()
    assert report.main([f"results_dir={results}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write {results / 'report.md'}: ")
    assert not list(results.glob(".report*"))

    def refuse(folder):
        raise InputError(f"results_dir must be writable; {folder} is not")

    monkeypatch.setattr("experiments.report.writable", refuse)
    assert report.main([f"results_dir={results}"]) == 2
    assert capsys.readouterr().err == f"error: results_dir must be writable; {results} is not\n"


# In a browser: the report in frames of two widths, looked at by a script outside of it.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body><script>
const page = "PAGE", found = [], wait = ms => new Promise(done => setTimeout(done, ms));
async function look(width) {
  const frame = document.createElement("iframe"), errors = [];
  frame.style.cssText = `width:${width}px;height:800px;border:0`;
  frame.src = page;
  await new Promise(done => { frame.onload = done; document.body.append(frame); });
  const inner = frame.contentDocument, root = inner.documentElement, view = frame.contentWindow;
  view.onerror = message => errors.push(String(message));
  inner.addEventListener("securitypolicyviolation", e => errors.push(e.blockedURI));
  await wait(100);
  const links = [];
  for (const link of inner.querySelectorAll("a")) {
    view.scrollTo(0, 0);
    link.click();
    await wait(20);
    const target = inner.getElementById(decodeURIComponent(link.hash.slice(1)));
    const top = target ? target.getBoundingClientRect().top : NaN;
    const end = view.scrollY + view.innerHeight >= root.scrollHeight - 2;
    links.push(Math.abs(top) < 5 || (end && top >= 0 && top < view.innerHeight));
  }
  found.push({
    width: view.innerWidth, errors, links,
    overflow: root.scrollWidth - root.clientWidth,
    images: [...inner.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width]),
    boxes: [...inner.querySelectorAll(".scroll")].map(b => b.scrollWidth - b.clientWidth),
    scripts: inner.scripts.length,
  });
}
(async () => {
  for (const width of [390, 1400]) await look(width);
  const seen = document.createElement("pre");
  seen.id = "found";
  seen.textContent = JSON.stringify(found);
  document.body.replaceChildren(seen);
})();
</script>"""


def probe(page, folder):
    """What a browser says of a page at 390 and 1400 pixels, and what it logs."""
    path, shown = folder / "probe.html", folder / "shown.html"
    shown.write_text(page, "utf-8")
    path.write_text(PROBE.replace("PAGE", shown.name), "utf-8")
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={folder / 'profile'}", "--window-size=1500,2000"),
            *("--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"),
            *("--allow-file-access-from-files", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found[1])), re.findall(r".*CONSOLE.*", done.stderr)


@pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_a_browser_shows_it_whole_on_phone_and_desk(results, tmp_path):
    page, _ = written(results)
    found, logged = probe(page, tmp_path)
    assert logged == []
    assert [view["width"] for view in found] == [390, 1400]
    for view in found:
        assert view["errors"] == []
        assert view["scripts"] == 0
        assert view["overflow"] == 0
        assert view["links"] and all(view["links"])
        assert len(view["images"]) == 1
        for natural, shown in view["images"]:
            assert natural > 0 and shown <= view["width"]
    assert max(found[0]["boxes"]) > 0  # a wide table scrolls inside of its own box


@pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_the_browser_notices_what_is_wrong(results, tmp_path):
    page, _ = written(results)
    page = page.replace("data:image/png;base64,iVBOR", "data:image/png;base64,AAAA")
    page = page.replace('href="#verdicts"', 'href="#nowhere"')
    page = page.replace("<main>", '<main><div style="width:600px">.</div><script>oops()</script>')
    phone, desk = probe(page, tmp_path)[0]
    assert phone["images"][0][0] == 0
    assert not all(phone["links"])
    assert phone["overflow"] > 0 == desk["overflow"]
    assert phone["scripts"] == 1


def test_importing_the_report_is_light():
    code = "import sys, flowlab.report; print({'matplotlib', 'hydra'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_recurrent_runs_are_counted_per_step(results):
    settings = flowlab.make(network="rnn", width=6, batch_size=4, seeds=3)
    made = flowlab.measure(settings), flowlab.predict(settings), settings.resolved()
    store(results / "time", "rnn", *made)
    asked, verdicts, *_ = (document := gather(results)).sections
    assert Text(contents.TIME) in asked.blocks
    (section,) = (s for s in verdicts.sections if s.title == "Architectures")
    rows = {row[0]: row[1:3] for row in section.blocks[0].rows}
    assert rows == {"mlp": ("layers", "3"), "rnn": ("steps", "1")}
    counts = {row[0]: list(map(int, row[3:])) for row in section.blocks[0].rows}
    assert sum(counts["mlp"][:4]) == sum(counts["mlp"][4:]) == 3
    (section,) = (s for s in document.sections if s.title == "Tables")
    captions = [b.caption for s in section.sections for b in s.blocks if isinstance(b, Table)]
    assert "Change of log10‖∂L/∂h_t‖ over the body: time" in captions
    assert "from step 8 to 1" in verdicts.sections[-1].blocks[-1].items[0]


@pytest.fixture
def skips(tmp_path):
    """Two depths of a skip connection as its study has them."""
    for depth in (3, 6):
        axes = {"depth": depth, "width": 8, "batch_size": 2, "seeds": 4, "upstream": "gaussian"}
        settings = flowlab.make(skip="mix", experiment="skip", **axes)
        made = flowlab.measure(settings), flowlab.predict(settings), settings.resolved()
        store(
            tmp_path / "skip",
            settings.run(),
            *(f.assign(run=settings.run()) for f in made[:2]),
            made[2],
        )
    return tmp_path


def study(root):
    (section,) = (s for s in gather(root).sections if s.title == "Studies")
    (section,) = section.sections
    assert section.title == "Study: skip"
    return section.blocks


def test_figure_and_findings_stand_together_in_the_study(skips, capsys):
    plots.plots(str(skips))
    printed = capsys.readouterr().out
    *questions, picture, findings, absent = study(skips)
    assert [type(block) for block in questions] == [Text, Text]
    assert questions[0].text.startswith("Which skip connections keep the gradient")
    assert picture.title == "Skip connections against depth"
    (row,) = findings.rows
    assert row[0] == "R1-mix" and row[-2].startswith("5 blocks multiply ‖δ‖² by ")
    assert f"R1-mix {row[1]}: {row[-2]}" in printed
    assert {line.split()[0] for line in absent.items} == {
        *("S8", "R1-identity", "R1-inverse_sqrt_depth", "R1-inverse_depth")
    }
    assert all(line in printed for line in absent.items)


def test_findings_are_those_of_the_tables_that_are_there(skips):
    (deepest,) = (
        path
        for path in (skips / "skip/runs").iterdir()
        if pd.read_parquet(path)["depth"].iat[0] == 6
    )
    table = pd.read_parquet(deepest)
    travelled = table["depth"] - table["layer"]
    wrong = table.assign(delta_log10_norm=table["delta_log10_norm"] + travelled)
    tables.write(wrong, deepest, tables.metadata(deepest))
    *_, findings, _ = study(skips)
    assert findings.rows[0][1] == "does not hold"
    deepest.unlink()
    *_, findings, _ = study(skips)
    assert findings.rows[0][-2].startswith("2 blocks multiply")


def test_reports_without_recurrent_nets_do_not_speak_of_time(results):
    _, twin = written(results)
    assert "∂h" not in twin and "Architectures" not in twin
