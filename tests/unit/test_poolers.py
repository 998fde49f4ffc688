"""What a classifier adds to its encoder is a head by the default patterns; what the encoder has itself is none."""

import pytest
import transformers

from gramfuse_shared.contract.policy import Policy

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}


@pytest.mark.parametrize(
    ("config", "pooler"),
    [
        (transformers.BertConfig(**SIZES), "body"),  # bert.pooler: trained with the base
        (transformers.DebertaV2Config(**SIZES, pooler_hidden_size=16), "head"),  # pooler: new with the task
        (transformers.RobertaConfig(**SIZES), None),
        (transformers.ElectraConfig(**SIZES, embedding_size=16), None),
        (transformers.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=50), None),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_heads_are_just_the_parameters_that_a_classifier_has_beside_its_encoder(config, pooler):
    classifier = transformers.AutoModelForSequenceClassification.from_config(config)
    prefix = f"{classifier.base_model_prefix}."
    roles = {
        name: Policy().role_of(name, tuple(parameter.shape), config.vocab_size)
        for name, parameter in classifier.named_parameters()
    }
    assert {name for name, role in roles.items() if role == "head"} == {
        name for name in roles if not name.startswith(prefix)
    }
    assert {role for name, role in roles.items() if "pooler" in name} == ({pooler} - {None})
    private = Policy(head_parameters=("*pooler*",))
    assert {private.role_of(name, (16, 16), config.vocab_size) for name in roles if "pooler" in name} <= {"head"}
