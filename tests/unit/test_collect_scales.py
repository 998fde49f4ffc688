"""Scales against their definition: mean squares, floor, and the clip, computed from the model's own hidden states."""

import json
import math

import pytest
import torch
from torch import nn

from gramfuse.cli.main import main
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.measuring.batching import tokenize
from gramfuse.measuring.example_moments import joint_norm, scaled
from gramfuse.measuring.forwarding import collect
from gramfuse.measuring.inference import open_model
from gramfuse.measuring.scales import collect_scales, save_scales
from gramfuse.measuring.single_examples import visit_examples
from gramfuse_shared.contract.rules import require_scales_architecture
from gramfuse_shared.contract.scales_file import FLOOR
from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError, StatisticsInvalidError
from gramfuse_shared.merging.scales import load_scales
from support.tiny_models import tiny_bert
from support.tokenizing import save_word_tokenizer

TEXTS = [f"{a} {b} {c}" for a in "abcd" for b in "efg" for c in ("h", "i j k", "l m")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_word_tokenizer(folder)
    tiny_bert().save_pretrained(folder)
    return folder


def rows_by_definition(folder, text: str) -> dict[str, torch.Tensor]:
    """What every linear layer of the model reads of one text, by the layer's name, float64."""
    opened = open_model(folder, device="cpu")
    found: dict[str, torch.Tensor] = {}
    for name, module in opened.model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _module, read, name=name: found.update({name: read[0].reshape(-1, read[0].shape[-1]).double()})
            )
    with torch.no_grad():
        opened.model(**opened.tokenizer(text, return_tensors="pt"))
    return found


def test_mean_squares_and_clip_are_those_of_the_definition(base):
    scales = collect_scales(base, TEXTS, clip_percentile=100, device="cpu")
    read = [rows_by_definition(base, text) for text in TEXTS]
    norms = torch.zeros(len(TEXTS), dtype=torch.float64)
    for tap in scales.metadata.taps:
        rows = [example[tap.name] for example in read]
        exact = torch.cat(rows).square().mean(dim=0)
        exact = exact.clamp(min=FLOOR * float(exact.mean()))
        assert torch.allclose(scales.mean_squares[tap.name].double(), exact, rtol=1e-5)
        for number, one in enumerate(rows):
            z = one / (exact.sqrt() * math.sqrt(tap.width))
            norms[number] += torch.linalg.matrix_norm(z.T @ z / len(z)) ** 2
    assert scales.metadata.clip == pytest.approx(float(norms.max().sqrt()), rel=1e-5)
    median = collect_scales(base, TEXTS, device="cpu").metadata
    assert median.clip == pytest.approx(float(norms.sqrt().median()), rel=1e-2)
    assert (median.clip_percentile, median.examples) == (50.0, len(TEXTS))


def test_taps_are_those_of_the_collector_and_fit_the_base_model(base):
    scales = collect_scales(base, TEXTS[:4], device="cpu")
    assert scales.metadata.taps == tuple(tap.info for tap in collect(base, TEXTS[:4], device="cpu").taps)
    require_scales_architecture(scales.metadata, build_base_manifest(base))


def test_a_feature_that_public_text_never_moves_is_not_divided_by_nothing(tmp_path):
    model = tiny_bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.LayerNorm.weight[3] = 0
        model.bert.encoder.layer[0].output.LayerNorm.bias[3] = 0
    save_word_tokenizer(tmp_path)
    model.save_pretrained(tmp_path)
    scales = collect_scales(tmp_path, TEXTS[:4], device="cpu")
    values = scales.mean_squares["bert.encoder.layer.1.attention.self.key"]
    others = torch.cat([values[:3], values[4:]])
    assert float(values[3]) == pytest.approx(FLOOR * float(others.sum()) / len(values), rel=1e-5)


def test_a_tap_that_reads_nothing_but_zeros_has_no_scale(tmp_path):
    model = tiny_bert()
    with torch.no_grad():
        for parameter in model.bert.encoder.layer[0].output.LayerNorm.parameters():
            parameter.zero_()
    save_word_tokenizer(tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(StatisticsInvalidError, match="all zero"):
        collect_scales(tmp_path, TEXTS[:4], device="cpu")


def test_a_file_reads_back_as_it_was_measured(base, tmp_path):
    scales = collect_scales(base, TEXTS[:6], device="cpu")
    save_scales(scales, tmp_path / "scales.safetensors")
    again = load_scales(tmp_path / "scales.safetensors")
    assert again.metadata == scales.metadata
    assert all(torch.equal(again.mean_squares[tap], values) for tap, values in scales.mean_squares.items())


@pytest.mark.parametrize("percentile", [0.0, -5.0, 100.1])
def test_a_percentile_is_a_percentile(base, percentile):
    with pytest.raises(ConfigurationError, match="percentile"):
        collect_scales(base, TEXTS[:2], clip_percentile=percentile, device="cpu")


# --- one text at a time ----------------------------------------------------------------------------------------------


def seen(folder, texts, taps):
    opened = open_model(folder, device="cpu")
    found = []
    visit_examples(
        opened, tokenize(opened.tokenizer, texts, 512, generates=False), taps, lambda rows: found.append(dict(rows))
    )
    return found


def test_what_a_text_brings_does_not_hang_on_the_others_to_the_last_bit(base):
    taps = [tap.info for tap in collect(base, TEXTS[:2], device="cpu").taps]
    alone = [seen(base, [text], taps)[0] for text in TEXTS[:9]]
    together = seen(base, TEXTS[:9], taps)
    reversed_ = seen(base, TEXTS[8::-1], taps)[::-1]
    for one, two, three in zip(alone, together, reversed_, strict=True):
        assert all(torch.equal(one[tap], two[tap]) and torch.equal(one[tap], three[tap]) for tap in one)


def test_a_text_without_a_token_brings_no_rows(tmp_path):
    save_word_tokenizer(tmp_path, frame=False)
    tiny_bert().save_pretrained(tmp_path)
    taps = [tap.info for tap in collect(tmp_path, TEXTS[:2], device="cpu").taps]
    empty, full = seen(tmp_path, [" ", "a b c"], taps)
    assert {len(rows) for rows in empty.values()} == {0}
    assert {len(rows) for rows in full.values()} == {3}
    assert joint_norm(scaled(empty, {tap.name: torch.ones(tap.width) for tap in taps})) == 0


def test_taps_of_another_model_are_refused(base):
    taps = [tap.info for tap in collect(base, TEXTS[:2], device="cpu").taps]
    other = taps[0].model_copy(update={"layers": (taps[0].layers[0].model_copy(update={"weight": "nowhere.weight"}),)})
    wide = taps[0].model_copy(update={"width": taps[0].width + 1})
    for tap in (other, wide):
        with pytest.raises(ArchitectureMismatchError, match="this model"):
            seen(base, TEXTS[:1], [tap])


# --- on the command line ---------------------------------------------------------------------------------------------


def test_scales_are_collected_and_shown_on_the_command_line(base, tmp_path, capsys):
    texts, out = tmp_path / "public.txt", tmp_path / "scales.safetensors"
    texts.write_text("\n".join(TEXTS))
    command = ["scales", "collect", str(base), str(texts), "-o", str(out), "--device", "cpu"]
    assert main([*command, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["examples"] == len(TEXTS)
    assert main(["scales", "show", str(out), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    assert main(["scales", "show", str(out)]) == 0
    assert told["sha256"] in capsys.readouterr().out
    assert main(command) == 1  # it is there already
    assert "--overwrite" in capsys.readouterr().err
