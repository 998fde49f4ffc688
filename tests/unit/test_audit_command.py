"""`gramfuse audit` on a tiny model: what it prints, keeps, refuses, and says that it did not do."""

import json
import re
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from gramfuse.cli.main import main
from gramfuse.contributing.loading import read_header
from gramfuse.contributing.origin import ORIGIN_KEY
from gramfuse_shared.contract.statistics_file import METADATA_KEY
from support.adapters import save_adapter
from support.tiny_models import tiny_bert
from support.tokenizing import save_word_tokenizer

SENTENCES = [f"{a} {b} {c}" for a in "abcd" for b in "efg" for c in ("h", "i j k", "l m")]
OPEN = "heads: shared\nminimum_rows_per_dimension: 0\nembedding_taps: send\n"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAMFUSE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model whose tokens weigh more than their positions, as in trained ones, its texts and its statistics."""
    folder = tmp_path_factory.mktemp("audit")
    model = tiny_bert()
    with torch.no_grad():
        model.bert.embeddings.position_embeddings.weight.mul_(0.01)
    model.save_pretrained(folder / "model")
    save_word_tokenizer(folder / "model")
    (folder / "texts.txt").write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    (folder / "policy.yaml").write_text("heads: shared\nminimum_rows_per_dimension: 1\n", encoding="utf-8")
    (folder / "open.yaml").write_text(OPEN, encoding="utf-8")
    collect = ("--texts", folder / "texts.txt", "--out", folder / "s.safetensors", "--base", folder / "model")
    assert main([str(word) for word in ("stats", "collect", "--model", folder / "model", *collect)]) == 0
    return folder


@pytest.fixture
def audit(place, capsys):
    def run(*options, policy="policy.yaml"):
        rules = ("--policy", place / policy, "--base", place / "model")
        files = ("--model", place / "model", "--statistics", place / "s.safetensors")
        capsys.readouterr()
        code = main([str(word) for word in ("audit", *files, *rules, *options)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def whys(document):
    return {unrun["what"]: unrun for unrun in document["attacks"]["not_run"]}


def test_it_says_what_leaves_and_that_it_is_no_guarantee(audit, tmp_path):
    code, printed, _ = audit("--out", tmp_path / "audit.json")
    assert code == 0
    assert "no guarantee" in printed
    document = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    taps = {tap["tap"]: tap for tap in document["taps"]}
    first = taps["bert.encoder.layer.0.attention.self.key"]
    assert (first["source"], first["leaves"]) == ("embeddings", False)
    assert "token counts" in first["stays_because"]
    assert taps["classifier"]["leaves"]
    assert 1 < first["effective_rank"] <= 32
    assert (first["outputs"], first["separates_up_to"]) == (96, 6)  # query, key and value: 2·96/33 + 1
    assert taps["classifier"]["separates_up_to"] == 0
    code, printed, _ = audit("--format", "json")
    assert json.loads(printed) == document


def test_without_texts_it_fits_token_counts_and_says_what_it_did_not_attack(audit):
    _, printed, _ = audit("--format", "json")
    document = json.loads(printed)
    (tokens,) = document["attacks"]["tokens"]
    assert not tokens["leaves"]
    assert 0.3 < tokens["explained"] < 1
    assert 0 < tokens["named_once"] <= tokens["named"]
    assert (tokens["auc"], tokens["right"], tokens["singletons"]) == (None, None, None)
    assert document["attacks"]["membership"] == []
    assert "--texts" in whys(document)["membership"]["remedy"]
    assert "not attacked" in whys(document)["fine-tuned weights"]["because"]


def test_with_texts_it_tells_how_much_of_them_is_found(audit, place):
    code, printed, error = audit("--texts", place / "texts.txt", "--public", place / "texts.txt", "--format", "json")
    assert code == 3, error  # of so few texts each is told from others, which refuses
    attacks = json.loads(printed)["attacks"]
    assert attacks["reference"] == "given"
    (tokens,) = attacks["tokens"]
    assert tokens["auc"] > 0.8
    assert 0 < tokens["right"] <= tokens["named"]
    told = {one["tap"]: one for one in attacks["membership"]}["classifier"]
    assert told["leaves"]
    assert told["sums"]["20"] <= told["sums"]["3"] <= told["auc"] <= 1
    assert 0 <= told["against_public"] <= 1
    assert [one["moved"] for one in attacks["vocabulary"]] == [0]  # the base itself


def test_the_table_names_every_attack_and_whether_it_leaves(audit, place):
    _, printed, _ = audit("--texts", place / "texts.txt")
    for word in ("membership", "token counts", "vocabulary", "leaves", "stays", "come with gramfuse", "differ by one"):
        assert word in printed


def test_the_page_is_of_the_same_report(audit, tmp_path):
    code, printed, _ = audit("--html", tmp_path / "audit.html", "--format", "json")
    text = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert code == 0
    for tap in json.loads(printed)["taps"]:
        assert tap["tap"] in text
    code, _, error = audit("--html", tmp_path / "missing" / "audit.html")
    assert (code, "cannot be written" in error) == (1, True)


def test_without_matplotlib_the_page_says_what_to_install(audit, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("gramfuse.auditing.page", "gramfuse.auditing.plots"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    code, _, error = audit("--html", tmp_path / "audit.html")
    assert (code, "extra `report`" in error) == (1, True)
    assert not (tmp_path / "audit.html").exists()


def test_texts_that_were_not_measured_are_told(audit, tmp_path):
    (tmp_path / "others.txt").write_text("[UNK] zebra quux\n", encoding="utf-8")
    code, _, error = audit("--texts", tmp_path / "others.txt")
    assert code == 1
    assert "not measured on these texts" in error


def test_an_attack_that_finds_more_than_is_allowed_refuses_with_exit_code_three(audit, place):
    code, _, error = audit("--texts", place / "texts.txt", "--refuse-above", "0.5")
    assert (code, "audit-refused" in error, "--thresholds" in error) == (3, True, True)


def test_fewer_rows_than_features_refuse_unless_a_file_of_thresholds_says_otherwise(place, audit, tmp_path, capsys):
    few = tmp_path / "few.txt"
    few.write_text("a e h\n", encoding="utf-8")
    collect = ("--texts", few, "--out", tmp_path / "few.safetensors", "--base", place / "model")
    assert main([str(word) for word in ("stats", "collect", "--model", place / "model", *collect)]) == 0
    command = ("--statistics", tmp_path / "few.safetensors", "--attacks", "quick")
    code, _, error = audit(*command, policy="open.yaml")
    assert code == 3
    assert "distinct rows per dimension" in error
    (tmp_path / "mine.yaml").write_text("rows_per_dimension: {warn: 10, refuse: null}\n", encoding="utf-8")
    code, printed, _ = audit(*command, "--thresholds", tmp_path / "mine.yaml", policy="open.yaml")
    assert code == 0
    assert "Warning" in printed
    (tmp_path / "mine.yaml").write_text("rows: 3\n", encoding="utf-8")
    code, _, error = audit(*command, "--thresholds", tmp_path / "mine.yaml", policy="open.yaml")
    assert (code, "rows is not a key" in error) == (1, True)


def test_a_quick_audit_loads_no_model_and_says_so(audit, monkeypatch):
    def never(*_, **__):
        msg = "a quick audit loads no model"
        raise AssertionError(msg)

    monkeypatch.setattr("gramfuse.privacy.attacking.open_to_measure", never)
    _, printed, _ = audit("--attacks", "quick", "--format", "json", policy="open.yaml")
    document = json.loads(printed)
    assert (document["effort"], document["attacks"]["tokens"]) == ("quick", [])
    assert "quick" in whys(document)["token counts, membership"]["because"]


def test_a_bounded_audit_leaves_out_what_takes_long_and_says_so(audit, monkeypatch, place):
    monkeypatch.setattr("gramfuse.privacy.attacking.MOST_PARAMETERS", 10)
    monkeypatch.setattr("gramfuse.privacy.attacking.open_to_measure", None)
    options = ("--texts", place / "texts.txt", "--attacks", "bounded", "--format", "json")
    document = json.loads(audit(*options, policy="open.yaml")[1])
    for what in ("token counts", "membership"):
        assert "takes long" in whys(document)[what]["because"]
        assert "--attacks all" in whys(document)[what]["remedy"]


def test_statistics_with_weighted_rows_are_told_as_not_attacked(place, audit, tmp_path):
    collect = ("--texts", place / "texts.txt", "--base", place / "model", "--weighting", "output_gradient")
    command = ("stats", "collect", "--model", place / "model", "--out", tmp_path / "w.safetensors", *collect)
    assert main([str(word) for word in command]) == 0
    options = ("--statistics", tmp_path / "w.safetensors", "--texts", place / "texts.txt", "--format", "json")
    document = json.loads(audit(*options)[1])
    assert document["attacks"]["membership"] == document["attacks"]["tokens"] == []
    assert "no attack here is made for that" in whys(document)["statistics"]["because"]


def test_an_adapter_is_attacked_with_its_base_and_its_layers_are_told_as_known(place, audit, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", place / "model", target_modules=["query", "value"])
    save_word_tokenizer(adapter)
    files = ("--model", adapter, "--texts", place / "texts.txt", "--base", place / "model")
    collect = ("stats", "collect", *files, "--out", tmp_path / "a.safetensors")
    assert main([str(word) for word in collect]) == 0
    _, printed, error = audit(*files, "--statistics", tmp_path / "a.safetensors", "--format", "json")
    document = json.loads(printed)
    assert document["attacks"]["membership"], error
    assert document["attacks"]["vocabulary"] == []
    assert "change of basis" in whys(document)["an adapter's layers"]["because"]


def test_factors_of_an_adapter_that_are_not_finite_are_refused_before_anything_is_attacked(place, audit, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", place / "model", target_modules=["query", "value"])
    file = adapter / "adapter_model.safetensors"
    factors = load_file(file)
    name = next(name for name in factors if "lora_A" in name)
    factors[name][0, 0] = torch.nan
    save_file(factors, file)
    code, printed, error = audit("--model", adapter)
    assert (code, printed) == (1, "")
    assert f"error[weights-invalid]: tensor {name} holds NaN or infinity" in error
    assert "next: train the model again, or restore it" in error


def test_a_model_that_cannot_be_loaded_is_told_as_not_attacked_and_not_as_safe(audit, monkeypatch):
    def broken(*_, **__):
        msg = "an architecture that nobody knows"
        raise ValueError(msg)

    monkeypatch.setattr("gramfuse.privacy.attacking.open_to_measure", broken)
    code, printed, _ = audit()
    assert code == 0
    assert "Not attacked: token counts, membership: the model cannot be loaded here (ValueError: an arch" in printed


def test_the_report_is_kept_for_its_owner_alone_and_the_next_audit_takes_it(audit, place, home, monkeypatch):
    texts = ("--texts", place / "texts.txt", "--format", "json")
    first = json.loads(audit(*texts)[1])
    (kept,) = (home / "audits").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700

    def never(*_, **__):
        msg = "the kept report is current"
        raise AssertionError(msg)

    monkeypatch.setattr("gramfuse.privacy.audit.audit_draft", never)
    assert json.loads(audit(*texts)[1]) == first
    assert json.loads(audit("--format", "json", "--attacks", "bounded")[1])["attacks"] == first["attacks"]
    # judged anew, since thresholds are no part of what was measured
    assert audit(*texts, "--refuse-above", "0.5")[0] == 3


def test_a_kept_report_says_when_it_was_made_and_of_which_texts(audit, place):
    texts = place / "texts.txt"
    _, first, _ = audit("--texts", texts, policy="open.yaml")
    assert "kept report" not in first
    _, again, _ = audit("--attacks", "bounded", policy="open.yaml")
    told = " ".join(again.split())
    assert re.search(rf"kept report of {datetime.now(UTC):%Y-%m-%d} \d\d:\d\d UTC, made with 36 texts of {texts}", told)
    _, without, _ = audit("--attacks", "bounded")
    assert "kept report" not in without
    _, without, _ = audit("--attacks", "bounded")
    assert "UTC, made without texts;" in " ".join(without.split())


def test_what_it_writes_is_for_its_owner_alone_whatever_lay_there(audit, place, tmp_path):
    out, html = tmp_path / "audit.json", tmp_path / "audit.html"
    out.write_text("public")
    out.chmod(0o644)
    audit("--out", out, "--html", html)
    for file in (out, html, place / "s.safetensors"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "wherever --out or --html wrote one: each readable by you alone (0600)" in html.read_text(encoding="utf-8")


def with_another_last_bit(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    return bytes(content)


def test_statistics_of_a_model_with_other_weights_are_refused(audit, place, tmp_path):
    trained_on = copytree(place / "model", tmp_path / "trained-on")
    (trained_on / "model.safetensors").write_bytes(with_another_last_bit(place / "model" / "model.safetensors"))
    code, printed, error = audit("--model", trained_on)
    assert (code, printed) == (1, "")
    assert f"error[architecture-mismatch]: {place}/s.safetensors was measured on a model with other weights" in error


def test_a_statistics_file_that_does_not_say_of_which_model_it_is_stays_readable(audit, place, tmp_path):
    (tmp_path / "old").mkdir()
    old, header = tmp_path / "old" / "s.safetensors", read_header(place / "s.safetensors")
    assert set(header.metadata) == {METADATA_KEY, ORIGIN_KEY}
    save_file(load_file(place / "s.safetensors"), old, {METADATA_KEY: header.metadata[METADATA_KEY]})
    trained_on = copytree(place / "model", tmp_path / "trained-on")
    (trained_on / "model.safetensors").write_bytes(with_another_last_bit(place / "model" / "model.safetensors"))
    assert audit("--model", trained_on, "--statistics", old)[0] == 0


def test_texts_that_are_others_than_those_measured_are_told_by_their_number(audit, place, tmp_path):
    lines = (place / "texts.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "some.txt").write_text("\n".join(lines[:20]), encoding="utf-8")
    (tmp_path / "more.txt").write_text("\n".join([*lines, "a new text"]), encoding="utf-8")
    code, _, error = audit("--texts", tmp_path / "some.txt")
    assert code == 1
    assert "were not measured on these texts, all of them and no others: tap " in error
    assert "holds 216 distinct rows, and these texts have 120, one a token" in error
    code, _, error = audit("--texts", tmp_path / "more.txt")
    assert code == 1
    assert "not measured on these texts" in error
    (tmp_path / "twice.txt").write_text("\n".join(lines * 2), encoding="utf-8")
    assert audit("--texts", tmp_path / "twice.txt")[0] == 3  # the same texts: their membership refuses, as it should


@pytest.mark.parametrize("change", ["policy", "statistics", "tokenizer", "texts", "effort", "version", "torn"])
def test_a_kept_report_of_something_else_is_not_taken(audit, place, home, tmp_path, monkeypatch, change):
    options = ["--attacks", "quick" if change == "effort" else "bounded"]
    assert audit(*options)[0] == 0
    (kept,) = (home / "audits").iterdir()
    policy, again = "policy.yaml", list(options)
    if change == "policy":
        policy = "open.yaml"
    elif change == "effort":
        again = ["--attacks", "bounded"]
    elif change == "texts":
        again += ["--texts", place / "texts.txt"]
    elif change == "version":
        monkeypatch.setattr("gramfuse.auditing.kept.__version__", "9.9.9")
    elif change == "torn":
        kept.write_bytes(kept.read_bytes()[:100])
    else:
        copy = tmp_path / "copy"
        copy.mkdir()
        if change == "statistics":
            (copy / "s.safetensors").write_bytes(with_another_last_bit(place / "s.safetensors"))
            again += ["--statistics", copy / "s.safetensors"]
        else:
            copytree(place / "model", copy, dirs_exist_ok=True)
            (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text(encoding="utf-8") + " ")
            again += ["--model", copy]
    ran = []
    from gramfuse.privacy import audit as module  # noqa: PLC0415

    real = module.audit_draft
    monkeypatch.setattr(module, "audit_draft", lambda *a, **k: ran.append(1) or real(*a, **k))
    assert audit(*again, policy=policy)[0] == (3 if change == "texts" else 0)
    assert ran == [1]


def test_it_says_whose_rules_it_needs(place, capsys):
    assert main(["audit", "--model", str(place / "model")]) == 1
    assert "--project" in capsys.readouterr().err
