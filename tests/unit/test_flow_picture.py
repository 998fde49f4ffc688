"""The README's picture: readable on light and dark pages, whatever is around it."""

import re
import xml.etree.ElementTree as ET

from support.checkout import REPOSITORY

PICTURE = REPOSITORY / "docs" / "flow.svg"
SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_brings_its_own_background():
    root = ET.parse(PICTURE).getroot()  # noqa: S314 - our own file
    background = next(root.iter(f"{SVG}rect"))
    assert background.get("class") == "page"
    assert (background.get("width"), background.get("height")) == (root.get("width"), root.get("height"))


def test_every_color_of_the_picture_has_a_dark_twin():
    style = next(ET.parse(PICTURE).getroot().iter(f"{SVG}style")).text or ""  # noqa: S314 - our own file
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    colored = {
        name for names, rule in re.findall(r"([^{}]+)\{([^}]*)\}", light) if "#" in rule.replace("url(#", "")
        for name in re.findall(r"\.\w+", names)
    }  # fmt: skip
    assert colored
    assert colored <= set(re.findall(r"\.[a-z]+\b", dark))
    assert not re.search(r"""(fill|stroke)="#""", PICTURE.read_text()), "colors stand in the style"
