"""`gramfuse stats` and `gramfuse audit` on a tiny model folder, interruption included."""

import json
import signal
import stat
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoTokenizer

import gramfuse
from gramfuse.cli.main import main
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.contributing.origin import digest_of_weights
from gramfuse.measuring.collection import Collector
from gramfuse.measuring.enough_texts import texts_needed
from gramfuse.measuring.forward_pass import ForwardPass
from gramfuse.measuring.forwarding import collect
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.texts import Fields, read_texts
from gramfuse.privacy.audit import effective_rank
from gramfuse_shared.contract.manifest import LayerInfo, TapInfo
from gramfuse_shared.contract.rules import why_tap_stays
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    CancelledError,
    ConfigurationError,
    ConflictError,
    DocumentMalformedError,
    FileUnreadableError,
)
from gramfuse_shared.fusion import packing
from support.tiny_models import tiny_bert
from support.tokenizing import save_word_tokenizer

SENTENCES = [f"{a} {b} {c}" for a in "abcd" for b in "efg" for c in ("h", "i j k", "l m")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_word_tokenizer(path)
    tiny_bert().save_pretrained(path)
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(SENTENCES) + "\n\n", encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_collect_writes_a_statistics_file_and_show_tells_what_it_says(folder, texts, tmp_path, capsys):
    out = tmp_path / "statistics.safetensors"
    code, printed, _ = run(
        capsys, "stats", "collect", "--model", folder, "--texts", texts, "--out", out, "--format", "json"
    )
    assert code == 0
    result = json.loads(printed)
    tokens = sum(2 + len(sentence.split()) for sentence in SENTENCES)
    assert (result["examples"], result["rows"], result["distinct_rows"]) == (len(SENTENCES), tokens, tokens)
    assert result["bytes"] == out.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics.safetensors", "texts.txt"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert Statistics.load(out).measured_on == digest_of_weights(folder)

    code, printed, _ = run(capsys, "stats", "show", out, "--format", "json")
    assert code == 0
    shown = json.loads(printed)
    assert {tap["source"] for tap in shown["taps"]} == {"embeddings", "mixed"}
    code, printed, _ = run(capsys, "stats", "show", out)
    assert "embeddings" in printed


def test_the_statistics_of_the_first_examples_are_those_of_a_run_on_just_these(folder, texts, tmp_path, capsys):
    """Fewer batches, as the RegMean paper tries them; in a loop of one's own, by leaving it."""
    out = tmp_path / "statistics.safetensors"
    arguments = ["--model", folder, "--texts", texts, "--out", out, "--batch-size", 4, "--examples", 8]
    assert run(capsys, "stats", "collect", *arguments)[0] == 0
    model, tokenizer = tiny_bert().eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad(), Collector(model) as left:
        for number, start in enumerate(range(0, len(SENTENCES), 4)):
            if number == 2:
                break
            model(**tokenizer(SENTENCES[start : start + 4], padding=True, return_tensors="pt"))
    expected = collect(folder, SENTENCES[:8], batch_size=4)
    for found in (Statistics.load(out), left):
        for tap, exact in zip(found.taps, expected.taps, strict=True):
            assert (tap.info.rows, tap.info.distinct_rows) == (exact.info.rows, exact.info.distinct_rows)
            assert torch.allclose(tap.gram, exact.gram, rtol=1e-5, atol=1e-5)


def test_the_base_models_fingerprint_is_noted(folder, texts, tmp_path, capsys):
    out = tmp_path / "statistics.safetensors"
    code, *_ = run(
        capsys, "stats", "collect", "--model", folder, "--texts", texts, "--out", out, "--base", folder, "--examples", 5
    )
    assert code == 0
    assert Statistics.load(out).base == build_base_manifest(folder).content_digest()


def test_an_interrupted_run_goes_on_from_its_checkpoint(folder, tmp_path):
    checkpoint = tmp_path / "statistics.partial"
    texts = read_texts_of(tmp_path)
    whole = collect(folder, texts, batch_size=4)
    calls: list[int] = []

    def after_three() -> bool:
        calls.append(1)
        return len(calls) == 3

    with pytest.raises(CancelledError, match="3 of 9 batches"):
        collect(folder, texts, batch_size=4, checkpoint=checkpoint, is_cancelled=after_three)
    resumed: list[int] = []
    again = collect(
        folder,
        texts,
        batch_size=4,
        checkpoint=checkpoint,
        on_progress=lambda progress: resumed.append(progress.resumed),
    )
    assert len(resumed) == 6
    assert resumed[0] > 0
    for one, two in zip(whole.taps, again.taps, strict=True):
        assert one.info == two.info
        torch.testing.assert_close(one.gram, two.gram, rtol=1e-5, atol=1e-5)


def read_texts_of(folder: Path) -> list[Any]:
    path = folder / "texts.txt"
    path.write_text("\n".join(SENTENCES), encoding="utf-8")
    return read_texts(path)


def test_a_checkpoint_of_other_settings_is_not_continued(folder, tmp_path):
    checkpoint = tmp_path / "statistics.partial"
    texts = read_texts_of(tmp_path)
    with pytest.raises(CancelledError):
        collect(folder, texts, batch_size=4, checkpoint=checkpoint, is_cancelled=lambda: True)
    with pytest.raises(ConflictError, match="delete it to start anew"):
        collect(folder, texts, batch_size=5, checkpoint=checkpoint)
    with pytest.raises(ConflictError):
        collect(folder, texts[1:], batch_size=4, checkpoint=checkpoint)


def test_ctrl_c_keeps_the_checkpoint_and_the_same_command_finishes(folder, texts, tmp_path, capsys, monkeypatch):
    out = tmp_path / "statistics.safetensors"
    command = ("stats", "collect", "--model", folder, "--texts", texts, "--out", out, "--batch-size", 4)
    finish, passes = ForwardPass.finish, []

    def interrupted(self: ForwardPass) -> None:
        finish(self)
        passes.append(1)
        if len(passes) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ForwardPass, "finish", interrupted)
    code, _, printed = run(capsys, *command)
    assert code == 130
    assert "2 of 9 batches are kept" in printed
    assert (tmp_path / "statistics.safetensors.partial").exists()
    assert not out.exists()
    code, *_ = run(capsys, *command)
    assert code == 0
    assert len(passes) == 9
    assert not (tmp_path / "statistics.safetensors.partial").exists()


def test_no_trace_of_single_examples_enters_the_file(folder, tmp_path):
    texts = read_texts_of(tmp_path)
    statistics = collect(folder, texts)
    statistics.save(tmp_path / "statistics.safetensors")
    content = (tmp_path / "statistics.safetensors").read_bytes()
    assert statistics.distinct.examples
    assert not any(example in content or example.hex().encode() in content for example in statistics.distinct.examples)


def test_words_pairs_and_saved_datasets_are_read(folder, tmp_path):
    words, pairs = tmp_path / "words.jsonl", tmp_path / "pairs.jsonl"
    words.write_text('{"tokens": ["a", "b"]}\n{"tokens": []}\n{"tokens": ["c"]}\n', encoding="utf-8")
    pairs.write_text('{"premise": "a b", "other": "c"}\n', encoding="utf-8")
    assert read_texts(words) == [["a", "b"], ["c"]]
    assert read_texts(pairs, Fields(text="premise", pair="other")) == [("a b", "c")]
    dataset = datasets.Dataset.from_dict({"text": ["a b", "c"]})
    dataset.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(str(tmp_path / "two"))
    assert read_texts(tmp_path / "one", limit=1) == ["a b"]
    assert read_texts(tmp_path / "two", split="test") == ["a b", "c"]
    with pytest.raises(ConfigurationError, match="--split"):
        read_texts(tmp_path / "two")
    rows = [collect(folder, read_texts(words)), collect(folder, [("a b", "c")])]
    assert [statistics.taps[0].info.rows for statistics in rows] == [4 + 3, 3 + 1 + 2]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{", DocumentMalformedError),
        ("[1]", DocumentMalformedError),
        ('{"text": 3}', DocumentMalformedError),
        ('{"words": "a b"}', DocumentMalformedError),
        ('{"unknown": "a"}', ConfigurationError),
        ("", DocumentMalformedError),
    ],
)
def test_malformed_texts_are_refused_with_their_line(tmp_path, content, error):
    path = tmp_path / "texts.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=r"line 1|holds no text"):
        read_texts(path)


def test_a_field_that_is_not_there_is_told_with_those_that_are(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"note": "a", "tags": ["O"]}\n')
    for fields, named in ((Fields(tokens="token"), "'token'"), (Fields(text="note", pair="other"), "'other'")):
        with pytest.raises(DocumentMalformedError, match=f"has no field {named}, but note, tags"):
            read_texts(path, fields)
    with pytest.raises(ConfigurationError, match="tokens, words, but note, tags: name it"):
        read_texts(path)


@pytest.mark.parametrize("name", ["texts.csv", "texts.yaml", "texts.csv.gz", "texts.parquet"])
def test_a_table_is_no_text_a_line_and_what_is_read_is_said(tmp_path, name):
    (tmp_path / name).write_text("text,label\na b,1\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"ends in \.\w+, which is not read: give JSON lines .*\*\.txt"):
        read_texts(tmp_path / name)


@pytest.mark.parametrize("name", ["texts.txt", "texts.TXT", "texts"])
def test_plain_text_may_be_called_so_or_have_no_ending(tmp_path, name):
    (tmp_path / name).write_text("a b\n\nc\n", encoding="utf-8")
    assert read_texts(tmp_path / name) == ["a b", "c"]


def test_how_many_texts_the_usual_policy_would_want_is_told_for_taps_of_few_rows(folder, texts, tmp_path, capsys):
    out = tmp_path / "s.safetensors"
    code, printed, _ = run(capsys, "stats", "collect", "--model", folder, "--texts", texts, "--out", out)
    needed = texts_needed(Statistics.load(out).metadata.taps, len(SENTENCES), gramfuse.Policy())
    assert code == 0
    assert needed
    told = " ".join(printed.split())
    assert f"so many texts like these would do, and {len(SENTENCES)} were measured:" in told
    assert all(f"{texts:,} texts: " in told for texts in needed.values())


def test_a_tap_that_reads_a_row_a_text_needs_as_many_texts_as_rows():
    def tap(name, width, rows):
        layers = (LayerInfo(weight=name),)
        return TapInfo(name=name, width=width, rows=rows, distinct_rows=rows, source="mixed", layers=layers)

    taps = (tap("pooler", 768, 300), tap("dense", 768, 6_000), tap("enough", 768, 15_360))
    assert texts_needed(taps, 300, gramfuse.Policy()) == {"pooler": 15_360, "dense": 768}
    assert "the policy wants 15360 (20 per dimension): measure 52 times as many" in why(taps[0])
    assert "the policy wants 15360 (20 per dimension): measure 2.6 times as many" in why(taps[1])


def why(tap):
    return why_tap_stays(tap, {tap.name}, gramfuse.Policy())


def test_missing_texts_and_models_are_named(folder, tmp_path, capsys):
    with pytest.raises(FileUnreadableError, match=r"nowhere\.txt"):
        read_texts(tmp_path / "nowhere.txt")
    (tmp_path / "t.txt").write_text("a")
    code, _, error = run(
        capsys, "stats", "collect", "--model", tmp_path, "--texts", tmp_path / "t.txt", "--out", tmp_path / "o"
    )
    assert code == 1
    assert "save_pretrained" in error


def test_a_folder_without_its_head_is_refused(folder, tmp_path):
    model = tiny_bert()
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "classifier" not in k})
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ArchitectureMismatchError, match=r"classifier\.bias"):
        collect(tmp_path, ["a b"])


def test_a_model_in_memory_comes_back_as_it_was(folder):
    model = tiny_bert()
    model.train()
    with pytest.raises(ConfigurationError, match="tokenizer"):
        collect(model, ["a b c"])
    statistics = collect(model, ["a b c"], tokenizer=AutoTokenizer.from_pretrained(folder))
    assert statistics.taps[0].info.rows == 5
    assert all(module.training for module in model.modules())


def test_the_rank_of_rows_in_few_directions_is_their_number():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20_000, 200, generator=generator)
    rows[:, 150:] = 0  # dead features
    rank, dead = effective_rank(packing.pack(rows.T @ rows), 200)
    assert dead == 50
    assert 147 < rank <= 150
    one_direction = torch.outer(torch.randn(50, generator=generator), torch.randn(200, generator=generator))
    rank, dead = effective_rank(packing.pack(one_direction.T @ one_direction), 200)
    assert dead == 0
    assert rank == pytest.approx(1, abs=1e-3)
