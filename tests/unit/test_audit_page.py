"""The audit's page: one file that asks for nothing, shows what the document says, and takes nobody's markup."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from gramfuse.auditing.page import page
from gramfuse.auditing.report import Attacks, NotRun
from gramfuse.auditing.thresholds import Thresholds
from support.audited import report_of

HOSTILE = "<script>alert(1)</script>$x & \"'"
VOID = {"meta", "br", "wbr", "link", "img"}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes, self.ids = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]


def read(text):
    tags = Tags()
    tags.feed(text)
    return tags


def test_it_is_well_formed_and_no_name_stands_twice():
    tags = read(page(report_of()))
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    assert tags.seen.count("svg") == tags.seen.count("figure") == 4


def test_it_has_no_script_and_asks_for_nothing():
    text = page(report_of())
    tags = read(text)
    assert {"script", "link", "img", "iframe", "object", "style"} & set(tags.seen) == {"style"}
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\((?!#)", text)
    links = [value for name, value in tags.attributes if name in {"href", "xlink:href", "src"}]
    assert all(value.startswith("#") for value in links)
    assert not any(name.startswith("on") for name, _ in tags.attributes)


def test_names_from_files_are_text_and_nothing_else():
    text = page(report_of(HOSTILE))
    assert "script" not in read(text).seen
    assert "<script>" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5


@pytest.mark.parametrize(
    ("auc", "verdict", "title"), [(0.55, "warn", "warnings"), (0.7, "warn", "warnings"), (0.99, "refuse", "Refused")]
)
def test_it_shows_the_verdict_the_findings_and_that_it_is_no_guarantee(auc, verdict, title):
    report = report_of(auc=auc)
    text = page(report)
    assert f'class="verdict {verdict}"' in text
    assert title in text
    assert "no guarantee of privacy" in text
    for finding in report.findings:
        assert finding.told in unescape(text)
    assert f"{auc:.3f}" in text
    assert "estimated in a sum 0.60 of 3" in text


def test_a_report_without_attacks_does_not_look_like_one_that_found_nothing():
    report = report_of().model_copy(
        update={"attacks": Attacks(not_run=(NotRun(what="membership", because="no texts"),))}
    )
    text = page(report.judged(Thresholds()))
    assert "no sign that there is nothing to find" in text
    assert "No attack was run." in text
    assert "membership: no texts" in text


def test_every_color_follows_the_color_scheme():
    style, _, body = page(report_of()).partition("</style>")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    names = re.compile(r"(--[\w-]+):")
    assert set(names.findall(light)) == set(names.findall(dark))
    assert not re.search(r"#[0-9a-f]{6}\b", body), "a color that is no variable is the same in the dark"


def test_the_same_report_is_the_same_page():
    assert page(report_of()) == page(report_of())
