"""How the emotions of the paper's tables are learned: the head begins at its labels' log-odds, or it learns nothing."""

import pytest
import torch
import transformers

import support.paper_modules  # noqa: F401 - makes the package of the next lines known

from benchmarks.paper.emotions import EMOTIONS, Emotions, log_odds  # isort: skip


def test_log_odds_are_those_of_the_labels_shares_and_finite_where_a_label_never_or_always_occurs():
    truth = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    always, never, sometimes = log_odds(truth).sigmoid().tolist()
    assert (always, never, sometimes) == pytest.approx((4 / 5, 1 / 5, 2 / 5))


def test_the_head_begins_at_the_log_odds_of_its_own_texts(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "benchmarks.paper.emotions.Trainer.train",
        lambda trainer: seen.update(bias=trainer.model.classifier.bias.detach().clone()),
    )
    monkeypatch.setattr("benchmarks.paper.emotions.DataCollatorWithPadding", lambda _: None)
    width = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    configuration = transformers.BertConfig(vocab_size=4, num_labels=len(EMOTIONS), **width)
    model = transformers.BertForSequenceClassification(configuration)
    texts = [{"text": "", "labels": labels} for labels in (["joy"], ["joy", "fear"], ["joy"], [])]
    Emotions().finetune(model, lambda *_, **__: {"input_ids": [1]}, texts, epochs=1, learning_rate=1e-3, seed=1)
    expected = {"joy": 4 / 6, "fear": 2 / 6}
    assert seen["bias"].sigmoid().tolist() == pytest.approx([expected.get(emotion, 1 / 6) for emotion in EMOTIONS])
