"""Texts that are said to have been measured are compared with the rows that statistics hold."""

import pytest

from gramfuse.measuring.batching import TokenizedText
from gramfuse.privacy.counting_rows import RowsRead, compare_rows
from gramfuse_shared.contract.manifest import LayerInfo, TapInfo
from gramfuse_shared.errors import ConfigurationError

TEXTS = [TokenizedText([1, 2, 3]), TokenizedText([4, 5]), TokenizedText([4, 5])]  # two distinct ones of five tokens


def found(**held: int) -> str | None:
    """Compare taps that read a row per token ("token…") or per text ("text…") or neither, and hold so many rows."""
    taps = {
        name: TapInfo(
            name=name, width=4, rows=rows, distinct_rows=rows, source="mixed", layers=(LayerInfo(weight=name),)
        )
        for name, rows in held.items()
    }
    read = {name: RowsRead() for name in taps}
    for name, rows in read.items():
        for text in TEXTS:
            rows.add({"tok": len(text.ids), "tex": 1}.get(name[:3], 7), text)
    told = compare_rows(taps, read, TEXTS)
    return None if told is None else told.because


@pytest.mark.parametrize(
    "held",
    [
        {"token": 5},
        {"text": 2},
        {"token": 60},  # a layer that runs twelve times
        {"token": 5, "token_and_positions": 69},
        {"token": 3, "text": 2},  # cut off
        {"neither": 1_000},
        {},
    ],
)
def test_one_tap_that_agrees_is_enough_and_where_none_can_be_compared_nothing_is_said(held):
    assert found(**held) is None


@pytest.mark.parametrize("held", [{"token": 7}, {"text": 1}, {"text": 3}, {"token": 6, "text": 3}])
def test_other_texts_are_refused(held):
    with pytest.raises(ConfigurationError, match="not measured on these texts, all of them and no others"):
        found(**held)


def test_fewer_tokens_may_have_been_measured_of_texts_that_were_cut_off_so_that_is_told():
    told = found(token=4)
    assert told is not None
    assert told.startswith(
        "tap token holds 4 distinct rows, and these texts have 5, one a token: unless texts were cut"
    )


def test_a_layer_whose_reading_varies_is_not_compared():
    read = RowsRead()
    read.add(1, TEXTS[0])
    read.add(2, TEXTS[1])
    assert read.kinds == set()
