"""The picture beside a model's card: everything that is written in it is within it."""

import re
import xml.etree.ElementTree as ET

import pytest

from gramfuse_server.merging.picture import draw
from gramfuse_shared.contract.diagnostics import Layer, Spread

SVG = "{http://www.w3.org/2000/svg}"
WIDEST = 7.5 / 12
"""Of a font's size, what a character of these titles takes on average in the widest of the fonts that are named."""


def layers(count):
    spread = Spread(smallest=0.1, median=0.1, largest=0.2)
    known = {"method": "regmean", "fallback": "none", "gained": 0.5, "condition": 20.0, "spread": spread}
    return [Layer(parameters=(f"encoder.{number}.query.weight",), **known) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 12, 60])
@pytest.mark.parametrize("title", ["a.b · c", "organization.project · " + "j" * 64])
def test_no_title_is_wider_than_the_picture(count, title):
    picture = ET.fromstring(draw(layers(count), title))  # noqa: S314 - ours
    width = float(picture.get("width"))
    texts = [text for text in picture.iter(f"{SVG}text") if text.get("text-anchor") == "start"]
    assert {title, "Distance of the farthest contribution, ‖Wᵢ − W‖/‖W‖"} <= {text.text for text in texts}
    for text in texts:
        assert float(text.get("x")) + WIDEST * float(text.get("font-size")) * len(text.text) <= width, text.text
    assert re.fullmatch(r"0 0 \d+ \d+", picture.get("viewBox"))
