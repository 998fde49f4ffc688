"""How the dashboard writes times, and how it shows a card."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from gramfuse_server.dashboard.cards import rendered
from gramfuse_server.dashboard.formats import as_written, duration, until
from gramfuse_shared.contract.policy import Policy

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (90 * 86_400 - 1, "in 90 d"),
        (7 * 86_400 - 60, "in 7 d"),
        (36 * 3600, "in 36 h"),
        (7_140, "in 119 min"),
        (119.6, "in 120 s"),
        (-61, "1 min ago"),
    ],
)
def test_how_long_something_still_takes_is_rounded(seconds, told):
    assert until(NOW + timedelta(seconds=seconds), NOW) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 s"), (60, "1 min"), (75, "1 min 15 s"), (3_600, "1 h"), (86_400, "24 h"), (180_000, "2 d 2 h")],
)
def test_a_duration_has_no_zero_behind_it_and_a_day_is_24_hours(seconds, told):
    assert duration(seconds) == told


def test_what_is_as_by_default_is_not_written():
    assert as_written(Policy()) == ""
    assert as_written(Policy(minimum_cohort=2, requests=("evaluate",))) == "minimum_cohort: 2\nrequests:\n- evaluate"


CARD = """---
library_name: transformers
---

# acme.tweets

Some `code` and **more**.

| | weight |
|---|---:|
| globex | 1.5 |

![Figures](diagnostics.svg)
"""


def test_a_card_is_shown_as_a_document_below_the_pages_own_headings():
    html = str(rendered(CARD))
    assert html.startswith('<h3 id="card-0">acme.tweets</h3>')
    assert "library_name" not in html
    assert "<code>code</code> and <strong>more</strong>" in html
    assert '<div class="table" tabindex="0" role="group" aria-labelledby="card-0">' in html
    assert '<td class="number">1.5</td>' in html
    assert re.search(r'<tr>\s*<td></td>\s*<th class="number">weight</th>\s*</tr>', html)
    assert "<em>Figures (diagnostics.svg)</em>" in html


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "a <img src=x onerror=alert(1)> b",
        "[here](javascript:alert(1)) [there](https://elsewhere.example)",
        "<https://elsewhere.example>",
        "![<b>](https://elsewhere.example/pixel.png)",
        '![x]("onerror=alert(1)//)',
        "[a]: https://elsewhere.example\n\n[a]",
        "| a |\n|:---:|\n| <b>x</b> |",
        "`<i>`\n\n    <script>\n\n```<script>\n<script>\n```",
        "&lt;script&gt;",
        "---\nnever closed: <b>",
    ],
)
def test_nothing_in_a_card_becomes_a_tag_an_address_or_a_style(hostile):
    html = str(rendered(hostile))
    allowed = {"p", "em", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "div", "hr", "h4"}
    tags = {part.split(">")[0].strip("/ \n").split(" ")[0] for part in html.split("<")[1:]}
    assert tags <= allowed, html
    for attribute in ("src=", "href=", "style=", "onerror="):
        assert not any(attribute in part.split(">")[0] for part in html.split("<")[1:]), html
