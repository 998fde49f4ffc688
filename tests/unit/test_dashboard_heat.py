"""The dashboard's heat maps: what stands in which cell, in which colour."""

import re
from importlib.resources import files

import pytest

from gramfuse_server.dashboard.heat import LEVELS, heat_maps, level_of
from gramfuse_shared.contract.diagnostics import Layer, Spread


def entry(name, gained, *, condition=20.0, fallback="none"):
    spread = Spread(smallest=0.1, median=0.1, largest=0.2)
    known = {"parameters": (name,), "method": "regmean", "fallback": fallback}
    return Layer(**known, gained=gained, condition=condition, spread=spread)


def test_every_figure_that_layers_have_is_a_map_of_kinds_by_their_numbers():
    layers = [entry(f"encoder.{n}.{kind}.weight", n / 10) for n in range(3) for kind in ("query", "output")]
    layers.append(Layer(parameters=("norm.weight",), method="linear", fallback="none"))
    maps = {found.id: found for found in heat_maps(layers)}
    assert maps.keys() == {"gained", "condition", "distance"}
    assert maps["gained"].columns == ("0", "1", "2")
    rows = dict(maps["gained"].rows)
    assert [cell.text for cell in rows["query"]] == ["0%", "10%", "20%"]
    assert [cell.level for cell in rows["query"]] == [0, LEVELS // 2, LEVELS - 1]
    assert rows["output"][2].name == "encoder.2.output.weight"


def test_a_cell_of_several_entries_shows_the_worst_and_that_one_fell_back():
    layers = [entry("encoder.0.experts.1.weight", 0.5), entry("encoder.0.experts.2.weight", -0.25, fallback="ridge")]
    ((_, (cell,)),) = heat_maps(layers)[0].rows
    assert (cell.text, cell.fell_back, cell.name) == ("-25%", True, "encoder.0.experts.1.weight and 1 more")


def test_a_layer_without_the_kind_has_an_empty_cell():
    layers = [entry("encoder.0.query.weight", 0.1), entry("encoder.1.query.weight", 0.2), entry("pooler.weight", 0.3)]
    found = heat_maps(layers)[0]
    assert found.columns == ("0", "1", "–")
    assert [[cell and cell.text for cell in cells] for _, cells in found.rows] == [
        ["10%", "20%", None],
        [None, None, "30%"],
    ]


def test_layers_without_figures_have_no_map():
    assert heat_maps([Layer(parameters=("a.weight",), method="linear", fallback="none")]) == []
    assert heat_maps([]) == []


@pytest.mark.parametrize("scale", ["even", "magnitude", "root"])
@pytest.mark.parametrize("values", [[0.0], [1.0, 1e9], [-5.0, 0.0, 1e-9], [0.5] * 3, [1e300, 1.0]])
def test_every_value_has_a_colour_and_a_larger_one_no_paler_colour(scale, values):
    levels = [level_of(value, values, scale) for value in sorted(values)]
    assert levels == sorted(levels)
    assert set(levels) <= set(range(LEVELS))


def test_the_style_sheet_has_every_colour():
    css = (files("gramfuse_server") / "dashboard" / "static" / "app.css").read_text()
    assert set(map(int, re.findall(r"\.heat \.h(\d+) \{", css))) == set(range(LEVELS))
