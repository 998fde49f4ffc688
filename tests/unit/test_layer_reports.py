"""What is said of layers: quantiles and the worst in words, and the picture of all of them."""

import re
from xml.etree import ElementTree as ET

import pytest

from gramfuse_server.merging.picture import draw
from gramfuse_shared.contract.diagnostics import Layer, Spread
from gramfuse_shared.reporting.layer_grid import MAX_ROWS, range_of
from gramfuse_shared.reporting.layers import (
    MAX_ROWS as MAX_EXCEPTIONS,
)
from gramfuse_shared.reporting.layers import (
    describe_layers,
    number,
    quantile,
    quantile_rows,
    share,
)


def layer(name, *, gained=0.5, condition=20.0, distance=0.1, **changes):
    spread = None if distance is None else Spread(smallest=distance / 2, median=distance, largest=2 * distance)
    names = (name,) if isinstance(name, str) else tuple(name)
    known = {"parameters": names, "method": "regmean", "fallback": "none"}
    return Layer(**(known | {"gained": gained, "condition": condition, "spread": spread} | changes))


def encoder(depth=12):
    """BERT's groups, a pooler, and an embedding that was averaged."""
    found = []
    for index in range(depth):
        stem = f"bert.encoder.layer.{index}"
        attention = [f"{stem}.attention.self.{part}.weight" for part in ("query", "key", "value")]
        found += [
            layer(attention, gained=0.3 + index / 100, condition=10.0 + index),
            layer(f"{stem}.output.dense.weight", gained=0.9 - index / 100, condition=1000.0 * (index + 1)),
        ]
    return [
        *found,
        layer("bert.pooler.dense.weight", gained=None, condition=None),
        layer("bert.embeddings.word_embeddings.weight", gained=None, condition=None, fallback="average", reason="why"),
    ]


def test_quantiles_are_interpolated_in_order():
    assert [quantile([4.0, 1.0, 3.0, 2.0], level) for level in (0.0, 0.25, 0.5, 1.0)] == [1.0, 1.75, 2.5, 4.0]
    assert quantile([7.0], 0.75) == 7.0


def test_a_section_names_the_worst_conditioned_and_those_that_gained_least():
    lines = describe_layers(encoder())
    text = "\n".join(lines)
    assert lines[0] == "26 entries, weights that are solved together being one: 25 × regmean, 1 × regmean → average."
    assert "| condition, at least (24 entries) | 10 | " in text
    worst, least = (text.split(f"### {title}")[1].split("###")[0] for title in ("Worst conditioned", "Gained least"))
    assert re.findall(r"layer\.(\d+)\.output", worst) == ["11", "10", "9", "8", "7"]
    assert re.findall(r"layer\.(\d+)\.attention", least) == ["0", "1", "2", "3", "4"]
    assert (
        "| `bert.encoder.layer.0.attention.self.query.weight` and 2 more | 10 | 30.0% | 5.0% · 10.0% · 20.0% |" in least
    )
    assert "| `bert.embeddings.word_embeddings.weight` | regmean → average |  |  | why |" in text
    assert "RegMean's objective" in text


def test_without_figures_there_are_words_alone():
    told = [layer("a.weight", gained=None, condition=None, distance=None, reason="why")]
    assert "why" in "\n".join(describe_layers(told))
    assert not quantile_rows(told)
    assert draw(told, "title") is None
    assert describe_layers([]) == ["Every parameter was merged as the method says."]


def test_the_table_of_exceptions_is_bounded():
    many = [layer(f"layer.{index}.weight", reason="why") for index in range(MAX_EXCEPTIONS + 3)]
    lines = describe_layers(many)
    assert sum("| why |" in line for line in lines) == MAX_EXCEPTIONS
    assert "…and 3 more" in lines[-1]


@pytest.mark.parametrize(
    ("value", "text"), [(12.34, "12.3"), (1234.0, "1,230"), (1.2e7, "1.2e+07"), (0.0, "0"), (1.0, "1")]
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_no_share_is_negative_zero():
    assert share(-1e-9) == "0.0%"


def words(picture):
    """The texts of an SVG."""
    root = ET.fromstring(picture)  # noqa: S314 - our own
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_same_layers_are_the_same_picture():
    first = draw(encoder(), "acme.tweets · regmean-1")
    assert first == draw(encoder(), "acme.tweets · regmean-1")
    root = ET.fromstring(first)  # noqa: S314 - our own
    assert root.tag.endswith("svg")
    assert not re.search(rb"\d{4}-\d\d-\d\dT", first)
    assert b'href="http' not in first


def test_a_picture_has_a_row_of_each_kind_and_a_column_of_each_layer():
    said = words(draw(encoder(), "acme.tweets · regmean-1"))
    for text in (
        "acme.tweets · regmean-1",
        "attention.self.{query, key, value}",
        "output.dense",
        "bert.pooler.dense",
        "11",
        "layer (–: in none)",
        "Condition number of the solved system, at least",
        "30%",  # what layer 0's queries, keys and values gained
        "20.0% ×",  # the embeddings were averaged
    ):
        assert text in said, text


def test_weights_that_are_solved_together_elsewhere_share_their_row():
    apart = [layer(f"e.layer.0.{part}.weight", gained=None) for part in "qkv"]
    said = words(draw([*apart, layer([f"e.layer.1.{part}.weight" for part in "qkv"])], "title"))
    assert said.count("{q, k, v}") == 3  # one row in each panel
    assert "q" not in said


def test_kinds_that_would_be_called_the_same_are_told_apart():
    said = words(draw([layer(f"{side}.block.0.layer.0.wo.weight") for side in ("encoder", "decoder")], "title"))
    assert {"encoder: layer.wo", "decoder: layer.wo"} <= set(said)


def test_a_cell_of_several_experts_shows_the_worst():
    experts = [layer(f"m.layers.0.experts.{index}.weight", gained=index / 10, condition=9.0) for index in range(3)]
    said = words(draw(experts, "title"))
    assert "0%" in said
    assert "experts" in said
    assert not {"10%", "20%"} & set(said)


def test_a_deep_model_has_colours_and_crosses_in_place_of_numbers():
    deep = encoder(60)
    deep[3] = layer(deep[3].parameters, fallback="ridge", condition=1e7, reason="too few rows")
    said = words(draw(deep, "title"))
    assert "1e+07 ×" not in said
    assert "57" in said
    assert "58" not in said


def test_a_model_of_many_kinds_shows_the_deepest():
    many = [layer(f"m.layers.{index}.kind{kind}.weight") for kind in range(40) for index in range(1 + (kind > 30))]
    said = words(draw(many, "title"))
    assert len({text for text in said if text.startswith("kind")}) == MAX_ROWS
    assert "kind39" in said


def test_neighbours_share_a_cell_where_layers_are_more_than_fit():
    many = [layer(f"m.layers.{index}.weight", gained=index / 1000, condition=None) for index in range(1000)]
    many[502] = layer(many[502].parameters, gained=-0.4, condition=None)
    picture = draw(many, "title")
    assert len(picture) < 2_000_000
    said = words(picture)
    assert "-40%" in said  # the end of the scale: no value is lost
    assert "480" in said
    assert "502" not in said


@pytest.mark.parametrize("name", ["a$b$.weight", "x" * 500, "--> <script>", "weiß.weight", f"a.{'7' * 300}.weight"])
def test_no_name_breaks_the_picture(name):
    ET.fromstring(draw([layer(name)], "title"))  # noqa: S314 - our own


def test_a_gain_below_zero_is_shown():
    assert "-40%" in words(draw([layer("a.weight", gained=-0.4)], "title"))


@pytest.mark.parametrize("scale", ["even", "magnitude", "root"])
def test_a_range_of_colours_begins_and_ends_with_its_values_and_knows_each(scale):
    values = (
        [1.0, 3.0, 250.0] if scale == "magnitude" else [-0.5, 0.0, 0.25, 2.0] if scale == "even" else [0.0, 0.25, 9.0]
    )
    shades = range_of(values, scale)
    assert [shades.share_of(values[0]), shades.share_of(values[-1])] == [0.0, 1.0]
    assert [shades.value_at(shades.share_of(value)) for value in values] == pytest.approx(values)
