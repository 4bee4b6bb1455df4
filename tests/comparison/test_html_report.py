"""report.html: nothing from elsewhere, all text escaped, and in a browser it opens without errors and its tables sort."""

import io
import re
import shutil
import sys
import types
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from helpers_comparison import FACTORS, write_run, write_runs
from matplotlib.figure import Figure

from recbole_flr.comparison.command import report_main
from recbole_flr.comparison.output import write_text
from recbole_flr.comparison.report import paper_figures, paper_tables
from recbole_flr.errors import DiskError

EVIL = "<script>alert('x')</script> \"quoted\" & <b>"
VOID = {"meta", "link", "br", "hr", "img", "input"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Path of a report with evil titles, three models and two seeds."""
    root = tmp_path_factory.mktemp("report")
    folders = write_runs(root / "saved", ("FLR", "SASRec", "Caser"), (1, 2), gain=15, title=EVIL, factors=FACTORS)
    assert report_main([*map(str, folders), "--out", str(root / "out")]) == 0
    return root / "out" / "report.html"


@pytest.fixture(scope="module")
def page(report):
    return report.read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Collects tags and attributes, and notices tags that are not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.scripts = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def parsed(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_it_loads_nothing(parsed, page):
    for tag, attributes in parsed.seen:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert re.match(r"#|data:", attributes.get(name) or "#"), (tag, attributes)
    assert [tag for tag, _ in parsed.seen if tag in ("img", "iframe", "object", "embed")] == []
    assert "@import" not in page and not re.search(r"url\((?!#)", page)


def test_titles_stay_text(parsed, page):
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert [tag for tag, _ in parsed.seen].count("script") == 1  # the page's own


def test_ids_are_unique(parsed):
    ids = [attributes["id"] for _, attributes in parsed.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in parsed.seen:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids


def test_the_pictures_are_svg_and_their_text_is_no_formula(page):
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 4 + 2 * 3  # bars, curves, time, slices; factors and maps of each model
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.get("viewBox") and not root.get("width")
    assert "A $x$ title" in page and "積み木" in page and "currentColor" in page


def test_the_sentences_come_first(page):
    body = re.sub(r"<[^>]+>", " ", page[page.index("<main>") :])
    first = re.search(r"\S.*ahead on tiny.*", body)[0]
    assert body.index(first) < body.index("Results on tiny") and "FLR is ahead" in first


def test_users(page):
    assert "u1" in page and "What the factors looked at" in page and "(50%)" in page and "✓" in page


def test_the_same_runs_give_the_same_files(tmp_path):
    folders = write_runs(tmp_path, ("SASRec",), (1,))
    for name in "ab":
        assert report_main([*map(str, folders), "--out", str(tmp_path / name)]) == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["comparison.csv", "comparison.md", "comparison.tex", "report.html"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_figures_of_papers_are_marked():
    data = paper_figures()
    assert data["level"] == "title level" and "2604.26760" in data["paper"]
    for each in data["tables"]:
        assert each["number"] and each["figures"]
        for figure in each["figures"]:
            assert set(figure) == {"dataset", "system", "metric", "value"} and figure["metric"].startswith("title_")
    (table,) = paper_tables("cds", None)
    assert "title level" in table.title and table.rows[0][1].text == ".0750"
    assert paper_tables("toys_demo", None) == [] == paper_tables("cds", "ablation")


def test_plots_of_a_search(tmp_path, monkeypatch):
    module = types.ModuleType("recbole_flr.search_result")
    module.read_study = lambda folder: str(folder)
    module.search_plots = lambda study: {"Best result": matplotlib_file("a < b"), "Importance": matplotlib_file(study)}
    monkeypatch.setitem(sys.modules, "recbole_flr.search_result", module)
    assert report_main([str(write_run(tmp_path / "a")), "--out", str(tmp_path / "out"), "--search", "saved/search-1"]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    ids = [attributes["id"] for _, attributes in checker.seen if "id" in attributes]
    assert len(ids) == len(set(ids)) and checker.open == []
    assert "search-1: Best result" in page and "search-1: Importance" in page and "<?xml" not in page


def matplotlib_file(title):
    figure, file = Figure(), io.StringIO()
    figure.subplots().set_title(title)
    figure.savefig(file, format="svg")
    return file.getvalue()


# mistakes


def test_mistakes(tmp_path, capsys):
    good, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", dataset="other")
    for words, said in [
        ([good, tmp_path / "none"], "which does not exist"),
        ([good, tmp_path], "no folder of a run"),
        ([good, other], "runs on different data"),
        ([good, write_run(tmp_path / "c", fingerprint="0" * 64)], "fingerprint"),
        ([good, "--reference", "X"], "reference: found 'X'"),
        ([good, "--out", good / "run.json"], "cannot write"),
    ]:
        assert report_main(list(map(str, words))) == 2
        error = capsys.readouterr().err
        assert error.startswith("report: ") and said in error and error.count("\n") == 1
    assert report_main([str(good), str(other), "--by-dataset", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert ">tiny</h2>" in page and ">other</h2>" in page
    checker = Checker()
    checker.feed(page)
    ids = [attributes["id"] for _, attributes in checker.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = re.findall(r"\\label{(.*?)}", (tmp_path / "out" / "comparison.tex").read_text(encoding="utf-8"))
    assert len(labels) == len(set(labels)) > 4


def test_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recbole_flr.files.os.replace", full)
    with pytest.raises(DiskError, match="cannot write .*report.html: No space left.*are free there. Make room"):
        write_text(path, "new")
    assert path.read_text() == "old" and not list(tmp_path.glob("*.tmp"))


# in a browser


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: Debian's, or the one of playwright; without one the tests are skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {error}")
        yield opened
        opened.close()


def open_page(browser, report, **options):
    """Open the report. Returns the page, and the list of what the console says and what is asked for."""
    opened, said = browser.new_page(**options), []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
    opened.goto(report.as_uri())
    return opened, said


def column(opened, number):
    """Texts of a column of the first table."""
    return opened.locator("table").first.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def test_sorting_in_a_browser(browser, report):
    opened, said = open_page(browser, report)
    head = opened.locator("table").first.locator("thead th").nth(1)
    head.locator("button").click()
    values = column(opened, 2)
    assert values == sorted(values, reverse=True) and head.get_attribute("aria-sort") == "descending"
    head.locator("button").focus()
    opened.keyboard.press("Enter")  # the keyboard sorts too
    assert column(opened, 2) == values[::-1] and head.get_attribute("aria-sort") == "ascending"
    opened.locator("table").first.locator("thead button").first.click()
    assert column(opened, 1) == sorted(column(opened, 1)) and head.get_attribute("aria-sort") is None
    improvement = column(opened, 3)
    opened.locator("table").first.locator("thead button").nth(2).click()
    assert set(column(opened, 3)) == set(improvement) and column(opened, 3)[-1] == "-"  # unknown values stay at the end
    assert said == []


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_widths_and_schemes_in_a_browser(browser, report, width, scheme):
    opened, said = open_page(browser, report, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll, the page does not
    light = opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light is (scheme == "light") and said == []
    assert opened.locator("summary").count() >= 2 and opened.locator("figure svg").first.is_visible()
