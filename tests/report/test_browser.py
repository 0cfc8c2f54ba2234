"""In a browser: the report in frames of two widths, looked at by a script outside of it."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from flowlab.report import gather, html

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body><script>
const page = "PAGE", found = [], wait = ms => new Promise(done => setTimeout(done, ms));
async function open(width, hash) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:800px;border:0`;
  frame.src = page + hash;
  await new Promise(done => { frame.onload = done; document.body.append(frame); });
  return frame;
}
const cells = inner => [...inner.querySelectorAll(".lookup tbody tr")].filter(r => !r.hidden)
  .map(r => [...r.cells].filter(c => !c.hidden).map(c => c.textContent));
const count = inner => inner.querySelector("output").textContent;
async function look(width) {
  const frame = await open(width, ""), errors = [];
  const inner = frame.contentDocument, root = inner.documentElement, view = frame.contentWindow;
  view.onerror = message => errors.push(String(message));
  inner.addEventListener("securitypolicyviolation", e => errors.push(e.blockedURI));
  await wait(100);
  const links = [];
  for (const link of inner.querySelectorAll("a[href^='#']")) {
    view.scrollTo(0, 0);
    link.click();
    await wait(20);
    const target = inner.getElementById(decodeURIComponent(link.hash.slice(1)).split("?")[0]);
    const top = target ? target.getBoundingClientRect().top : NaN;
    const end = view.scrollY + view.innerHeight >= root.scrollHeight - 2;
    links.push(Math.abs(top) < 20 || (end && top >= 0 && top < view.innerHeight));
  }
  found.push({
    width: view.innerWidth, errors, links,
    overflow: root.scrollWidth - root.clientWidth,
    images: [...inner.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width]),
    boxes: [...inner.querySelectorAll(".scroll")].map(b => b.scrollWidth - b.clientWidth),
    folded: inner.querySelectorAll("details:not([open])").length,
  });
}
async function use() {
  const frame = await open(1400, ""), inner = frame.contentDocument, seen = {};
  await wait(50);
  const head = name => [...inner.querySelectorAll(".lookup thead button")]
    .find(button => button.textContent === name);
  const filter = (name, value) => {
    const control = inner.querySelector(`[aria-label="Filter by ${name}"]`);
    control.value = value;
    control.dispatchEvent(new Event("input"));
  };
  seen.all = count(inner);
  head("decades [95 %]").click();
  seen.rising = cells(inner).map(row => row[3]);
  head("decades [95 %]").click();
  seen.falling = cells(inner).map(row => row[3]);
  seen.marked = head("decades [95 %]").parentElement.getAttribute("aria-sort");
  filter("init", "he");
  seen.one = [count(inner), cells(inner).map(row => row[1])];
  filter("depth", "3");
  seen.two = [count(inner), cells(inner).map(row => row[2])];
  seen.hash = frame.contentWindow.location.hash;
  const again = await open(1400, seen.hash);
  await wait(50);
  seen.again = [count(again.contentDocument), cells(again.contentDocument)];
  seen.same = cells(inner);
  inner.querySelector(".shown button").click();
  seen.reset = count(inner);
  frame.contentWindow.dispatchEvent(new Event("beforeprint"));
  seen.printed = inner.querySelectorAll("details:not([open])").length;
  found.push(seen);
}
(async () => {
  for (const width of [390, 1400]) await look(width);
  await use();
  const seen = document.createElement("pre");
  seen.id = "found";
  seen.textContent = JSON.stringify(found);
  document.body.replaceChildren(seen);
})();
</script>"""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"none of {', '.join(BROWSERS)} is installed"
)


def probe(page, folder):
    """What a browser says of a page at 390 and 1400 pixels and in use, and what it logs."""
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


@pytest.fixture
def page(results):
    return html.render(gather(results))


def test_a_browser_shows_and_uses_it_whole_on_phone_and_desk(page, tmp_path):
    (*views, used), logged = probe(page, tmp_path)
    assert logged == []
    assert [view["width"] for view in views] == [390, 1400]
    for view in views:
        assert view["errors"] == []
        assert view["overflow"] == 0
        assert view["links"] and all(view["links"])
        assert len(view["images"]) == 2
        assert all(natural > 0 for natural, _ in view["images"])
        assert view["folded"] > 0
    assert max(views[0]["boxes"]) > 0  # a wide table scrolls inside of its own box
    # A phone shows a figure with letters that can be read, in a box of its own.
    assert all(shown > 600 for _, shown in views[0]["images"])
    rising = [float(cell.split()[0].replace("−", "-")) for cell in used["rising"]]
    assert len(rising) == 3 and rising == sorted(rising)
    assert used["falling"] == used["rising"][::-1]
    assert used["marked"] == "descending"
    assert (used["all"], used["reset"]) == ("3 of 3 rows",) * 2
    assert used["one"] == ["2 of 3 rows", ["he", "he"]]
    assert used["two"] == ["1 of 3 rows", ["3"]]
    assert used["hash"].startswith("#all-runs?init=he&depth=3&sort=-decades")
    assert used["again"] == ["1 of 3 rows", used["same"]]
    assert used["printed"] == 0


def test_the_browser_notices_what_is_wrong(page, tmp_path):
    page = re.sub(r'src="data:image/[^,]*,', r"\g<0>AAAA", page, count=1)
    page = page.replace('href="#theory"', 'href="#nowhere"')
    page = page.replace("<main>", '<main><div style="width:600px">.</div><script>oops()</script>')
    (phone, desk, _), logged = probe(page, tmp_path)
    assert phone["images"][0][0] == 0
    assert not all(phone["links"])
    assert phone["overflow"] > 0 == desk["overflow"]
    assert any("Content Security Policy" in line for line in logged)
