"""The demo's report: it says what came out, on the terminal, on a phone, and in the dark."""

import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from rich.console import Console

import support.demo_modules  # noqa: F401 - puts the demo's modules on the path

from page import write_page  # isort: skip
from report import COLUMNS, OWN, ROWS, Report, print_table, sentences  # isort: skip

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE = 390


def report_of(size, score):
    """A report in which row i has `score(i)` everywhere."""
    tested = [column for column in COLUMNS if column != "average"]
    scores = {row: dict.fromkeys(tested, float(score(i))) for i, row in enumerate(ROWS)}
    return Report(size, scores, {"service": 2.5, "evaluate": 40.0})


@pytest.fixture(params=["full", "smoke"])
def page(request, tmp_path):
    report = report_of("full", lambda i: 31.2 + 12 * i) if request.param == "full" else report_of("smoke", lambda _: 0)
    write_page(report, tmp_path / "report.html")
    return tmp_path / "report.html"


def printed(report):
    output = io.StringIO()
    print_table(report, Console(file=output, width=120))
    return output.getvalue()


def test_a_smoke_run_says_that_its_scores_mean_nothing_and_prints_them_all_the_same():
    output = printed(report_of("smoke", lambda _: 0))
    assert "These scores mean nothing" in output
    assert "16 sentences" in output
    assert output.count("0.0") >= len(ROWS) * len(COLUMNS)
    assert "best single model" not in output


def test_a_full_run_says_what_came_out():
    told = " ".join(sentences(report_of("full", lambda i: 10 * i)))
    assert "RegMean has 40.0; the simple average 30.0; the best single model (btc-h's) 20.0" in told
    assert "mean nothing" not in told


def test_nobody_is_the_best_where_all_are_equal():
    equal, rising = report_of("smoke", lambda _: 0), report_of("full", lambda i: i)
    assert not any(equal.is_best(row, column) for row in ROWS for column in COLUMNS)
    assert [row for row in ROWS if rising.is_best(row, "wnut17")] == [ROWS[-1]]


def test_what_is_printed_as_equal_is_equally_good():
    close = Report("full", {row: dict.fromkeys([*OWN, "wnut17"], 70 + 0.01 * i) for i, row in enumerate(ROWS)}, {})
    assert not close.is_best(ROWS[-1], "wnut17")


def test_the_page_is_well_formed_and_shows_every_score(page):
    tags = _Tags()
    tags.feed(page.read_text())
    assert tags.open == []
    assert tags.count["tr"] >= len(ROWS) + 1
    assert tags.count["title"] == 1 + len(ROWS) * len(COLUMNS), "every mark says what it is"


def test_every_color_of_the_page_follows_the_color_scheme(page):
    style, _, body = page.read_text().partition("</style>")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    names = re.compile(r"(--[\w-]+):")
    assert set(names.findall(light)) == set(names.findall(dark))
    assert "@media (prefers-color-scheme: dark)" in style
    rules = style.rpartition(dark)[2]
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgb\(", rules + body), (
        "a color that is no variable is the same in the dark"
    )


def test_the_page_is_no_wider_than_a_phone(page, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium is at hand")
    measure = (
        f'<iframe src="{page.name}" width="{PHONE}" height="800"></iframe><script>addEventListener("load", () => '
        '{const page = document.querySelector("iframe").contentDocument.documentElement;'
        "document.title = `${page.scrollWidth} of ${page.clientWidth}`})</script>"
    )
    (tmp_path / "phone.html").write_text(measure)
    shown = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=2000", "--dump-dom",
         (tmp_path / "phone.html").as_uri()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    measured = re.search(r"<title>(\d+) of (\d+)</title>", shown.stdout)
    assert measured, shown.stderr
    width, window = map(int, measured.groups())
    assert width <= window <= PHONE


class _Tags(HTMLParser):
    """Counts elements, and keeps those that were not closed."""

    EMPTY = frozenset({"meta", "path", "line", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.count = [], {}

    def handle_starttag(self, tag, attrs):  # noqa: ARG002 - the parser's signature
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):  # noqa: ARG002 - the parser's signature
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
