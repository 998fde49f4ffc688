"""Policies, recipes, manifests and digests: what they mean, and what they refuse."""

import json
import re

import pytest

from gramfuse_shared import errors
from gramfuse_shared.contract import http_api
from gramfuse_shared.contract.document import Reply
from gramfuse_shared.contract.http_api import OrganizationCreate
from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest, TapInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.receipt import Receipt
from gramfuse_shared.contract.recipe import Recipe, parse_recipe, resolve
from gramfuse_shared.contract.safetensors_header import Header, TensorEntry
from gramfuse_shared.contract.statistics_file import (
    BLOCK,
    METADATA_KEY,
    StatisticsMetadata,
    gram_tensor_name,
    packed_length,
    parse_statistics_metadata,
)
from gramfuse_shared.digest import canonical_json, format_content_digest, parse_content_digest, sha256_hex
from gramfuse_shared.errors import (
    DocumentMalformedError,
    GramfuseError,
    NotFoundError,
    RecipeInvalidError,
    RequestMalformedError,
    StatisticsMalformedError,
    TooLargeError,
    error_class,
)
from gramfuse_shared.identifiers import IN_WORDS, is_file_name

DIGEST = "ab" * 32


# --- errors --------------------------------------------------------------------------------------------------------


def test_every_code_names_one_class_and_an_unknown_code_is_the_base_class():
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, GramfuseError)]
    assert len(classes) > 30
    assert all(error_class(cls.code) is cls for cls in classes)
    assert error_class("not-found") is NotFoundError
    assert error_class("from-the-future") is GramfuseError


def test_a_second_class_with_the_same_code_is_refused():
    with pytest.raises(TypeError, match="'not-found' belongs to NotFoundError"):
        type("AnotherError", (GramfuseError,), {"code": "not-found"})


# --- digests -------------------------------------------------------------------------------------------------------


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    assert (
        canonical_json({"b": 1, "a": [1.0, "é"]})
        == canonical_json({"a": [1, "é"], "b": 1})
        == '{"a":[1,"é"],"b":1}'.encode()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53 + 1])
def test_values_without_one_canonical_form_are_refused(value: float):
    with pytest.raises(DocumentMalformedError):
        canonical_json({"value": value})


def test_a_content_digest_survives_the_wire():
    digest = sha256_hex(b"part")
    assert parse_content_digest(format_content_digest(digest)) == digest
    assert format_content_digest(sha256_hex(b"")) == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"


@pytest.mark.parametrize(
    "field", ["", "sha-256=", "md5=:abcd:", "sha-256=:short=:", f"sha-256=:{'A' * 44}:", "sha-256=:A:, x"]
)
def test_a_content_digest_of_another_form_is_refused(field: str):
    with pytest.raises(RequestMalformedError):
        parse_content_digest(field)


@pytest.mark.parametrize("name", ["", ".", "..", "...", "a/b", "../x", "a\\b", "a b", "a\0", "é", "x" * 129, "a\n"])
def test_a_file_name_is_never_a_path(name: str):
    assert not is_file_name(name)


# --- policies ------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_safe_settings():
    policy = Policy()
    assert (policy.embeddings, policy.embedding_taps, policy.heads, policy.cohorts) == (
        "base",
        "withhold",
        "private",
        "frozen",
    )
    assert policy.missing_statistics == "average"
    assert (policy.minimum_rows_per_dimension, policy.advised_rows_per_dimension, policy.minimum_cohort) == (20, 200, 3)


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("bert.embeddings.word_embeddings.weight", (30522, 384), "embedding"),
        ("bert.embeddings.position_embeddings.weight", (512, 384), "embedding"),
        ("bert.embeddings.LayerNorm.weight", (384,), "body"),
        ("unheard.of.name", (384, 30522), "embedding"),
        ("lm_head.bias", (30522,), "embedding"),
        ("model.embed_tokens.weight", (100, 8), "embedding"),
        ("bert.encoder.layer.0.attention.self.query.weight", (384, 384), "body"),
        ("bert.pooler.dense.weight", (384, 384), "body"),
        ("pooler.dense.weight", (384, 384), "head"),
        ("classifier.weight", (7, 384), "head"),
        ("score.weight", (2, 384), "head"),
        ("transformer.wte.weight", (50257, 768), "embedding"),
        ("vit.embeddings.cls_token", (1, 1, 8), "embedding"),
    ],
)
def test_a_parameter_has_one_role_and_anything_of_the_vocabularys_size_is_an_embedding(
    name: str, shape: tuple[int, ...], role: str
):
    assert Policy().role_of(name, shape, 30522) == role


def test_only_what_the_policy_opens_may_leave():
    closed, opened = Policy(), Policy(embeddings="average", heads="shared")
    assert [closed.may_leave(role) for role in ("embedding", "head", "body")] == [False, False, True]
    assert [opened.may_leave(role) for role in ("embedding", "head", "body")] == [True, True, True]


def test_the_minimum_of_rows_grows_with_the_width():
    assert Policy().minimum_rows(384) == 7_680
    assert Policy(minimum_rows_per_dimension=0.3).minimum_rows(10) == 3


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"name": "A b"}, "name must be up to 40 lower-case letters, digits and hyphens, no hyphen first or last"),
        ({"name": 3}, "name must be text"),
        ({}, "name is missing"),
    ],
)
def test_what_is_wrong_with_a_document_is_said_in_words(document, words):
    with pytest.raises(DocumentMalformedError, match=words):
        OrganizationCreate.parse(json.dumps(document))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"heads": "public"}, "heads must be 'private' or 'shared'"),
        ({"minimum_cohort": 1}, "minimum_cohort must be at least 2"),
        ({"minimum_cohort": 2.5}, "minimum_cohort must be a whole number"),
        ({"methods": []}, "methods must have at least 1 item"),
    ],
)
def test_what_is_wrong_with_a_policy_is_said_in_words(rule, words):
    with pytest.raises(DocumentMalformedError, match=words):
        Policy.parse(json.dumps(rule))


def test_every_form_that_the_contract_asks_for_has_words():
    documents = [ContributionManifest, BaseManifest, Policy, Recipe, Receipt, StatisticsMetadata, http_api.JobCreate]
    schemas = json.dumps([document.model_json_schema() for document in documents])
    asked = {json.loads(f'"{pattern}"') for pattern in re.findall(r'"pattern": "((?:[^"\\\\]|\\\\.)*)"', schemas)}
    assert len(asked) >= 6
    assert asked <= set(IN_WORDS)


def test_an_unknown_key_of_a_policy_is_refused_by_name():
    with pytest.raises(DocumentMalformedError, match="embedings is not a key that is known here"):
        Policy.parse('{"embedings": "average"}')


@pytest.mark.parametrize(
    ("read", "text", "told"),
    [
        (Policy.parse, '{"minimum_cohrt": 3}', "did you mean minimum_cohort?"),
        (Policy.parse, '{"release": {"metric": "f1", "maen": 0.5}}', "release.maen .*did you mean mean?"),
        (Policy.parse, '{"zzz": 1}', r"known are advised_rows_per_dimension, aggregation, .*, scales\)"),
        (parse_recipe, "merge_method: regmean\nparameters: {alfa: 0.5}", "parameters.alfa .*did you mean alpha?"),
        (parse_recipe, "merge_method: regmean\nmodels: [{modell: acme}]", r"models.0.modell .*did you mean model\?"),
        (parse_recipe, "merge_method: regmeen", r"merge_method must be 'linear', .* \(did you mean regmean\?\)"),
        (Policy.parse, '{"cohorts": "zzz"}', "cohorts must be 'frozen' or 'open'$"),
    ],
)
def test_a_key_or_word_that_is_not_known_is_told_with_the_likely_one_or_all(read, text, told):
    with pytest.raises(GramfuseError, match=told):
        read(text)


def test_a_client_passes_over_what_a_newer_server_adds_to_its_answers_but_not_within_what_is_signed():
    told = {"name": "acme", "created_at": "2026-11-28T00:00:00Z", "colour": "blue"}
    assert http_api.Organization.parse(json.dumps(told)).name == "acme"
    replies = [kind for kind in vars(http_api).values() if isinstance(kind, type) and issubclass(kind, Reply)]
    assert {http_api.Job, http_api.Project, http_api.Contribution, http_api.Model} <= set(replies)
    for signed in (Policy, Receipt, ContributionManifest, http_api.JobCreate, http_api.ProjectCreate):
        assert signed.model_config["extra"] == "forbid"


# --- recipes -------------------------------------------------------------------------------------------------------


def test_a_recipe_in_mergekits_words_is_read():
    recipe = parse_recipe(
        """
        merge_method: regmean
        base_model: ./base
        models:
          - model: ./a
            parameters: {weight: 2}
          - model: ./b
            parameters:
              weight:
                - {filter: mlp, value: 0.25}
                - {value: 1}
        parameters:
          alpha: [{filter: "*.layer.0.*", value: 0.5}, {value: 0.9}]
          normalize: rows
          exclude: ["classifier.*"]
        dtype: float64
        out_dtype: bfloat16
        tokenizer_source: base
        """
    )
    first, second = (entry.parameters.weight for entry in recipe.models)
    assert resolve(first, "anything", default=1.0) == 2.0
    assert [resolve(second, name, default=1.0) for name in ("h.0.mlp.w", "h.0.attn.w")] == [0.25, 1.0]
    alpha = recipe.parameters.alpha
    assert [resolve(alpha, name, default=0.0) for name in ("e.layer.0.q", "e.layer.10.q")] == [0.5, 0.9]
    assert (recipe.dtype, recipe.out_dtype, recipe.tokenizer.source) == ("float64", "bfloat16", "base")


def test_where_no_filter_selects_a_parameter_the_default_applies():
    recipe = parse_recipe("{merge_method: linear, models: [{model: a, parameters: {weight: [{filter: q, value: 3}]}}]}")
    assert resolve(recipe.models[0].parameters.weight, "k", default=1.0) == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: magic", "merge_method"),
        ("merge_method: regmean\nparameters: {alpha: 1.1}", "alpha lies between 0 and 1"),
        ("merge_method: regmean\nparameters: {alpha: .nan}", "alpha"),
        ("merge_method: regmean\nparameters: {ridge: -0.1}", "ridge lies between 0 and 1e"),
        ("merge_method: regmean\nparameters: {ridge: .inf}", "ridge"),
        ("merge_method: regmean\nparameters: {ridge: [{filter: q, value: 1e7}]}", "ridge lies between 0 and 1e"),
        ("merge_method: regmean\nparameters: {missing_statistics: guess}", "missing_statistics must be 'average' or"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: -1}}]", "not negative"),
        ("merge_method: linear\nmodels: [{model: a}, {model: a}]", "named twice"),
        ("merge_method: linear\nslices: []", "slices is not a key that is known here"),
        ("- a\n- b", "not a mapping"),
        ("merge_method: [", "not YAML"),
        ("a: &x [1]\nb: *x", "not YAML: aliases are not read"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_a_recipe_that_cannot_be_carried_out_says_where(text: str, message: str):
    with pytest.raises(RecipeInvalidError, match=message):
        parse_recipe(text)


def test_an_endless_recipe_is_not_read():
    with pytest.raises(TooLargeError):
        parse_recipe(" " * 300_000)


# --- manifests -----------------------------------------------------------------------------------------------------


def contribution(**changes: object) -> dict[str, object]:
    document: dict[str, object] = {
        "project": "acme.tweets",
        "organization": "globex",
        "base": DIGEST,
        "policy": {"version": 1, "digest": DIGEST},
        "weights": {
            "file": {"name": "weights.safetensors", "bytes": 100, "sha256": DIGEST},
            "tensors": [{"name": "w", "dtype": "F32", "shape": [2, 2]}],
        },
    }
    return document | changes


def test_a_manifests_digest_does_not_depend_on_how_it_was_written():
    first = ContributionManifest.model_validate(contribution())
    second = ContributionManifest.parse(first.model_dump_json(indent=3))
    assert first == second
    assert first.content_digest() == second.content_digest()


@pytest.mark.parametrize(
    "change",
    [
        {"project": "../etc"},
        {"project": "tweets"},
        {"organization": "Glo bex"},
        {"base": "AB" * 32},
        {"generation": 0},
        {"note": "free text"},
        {"weights": {"file": {"name": "../w", "bytes": 1, "sha256": DIGEST}, "tensors": []}},
        {"weights": {"file": {"name": "w", "bytes": 2**63, "sha256": DIGEST}, "tensors": []}},
        {"weights": {"file": {"name": "w", "bytes": 8, "sha256": DIGEST}, "tensors": []}},
        {"labels": {"count": 3, "trained": [0, 3]}},
        {"labels": {"count": 3, "trained": [-1]}},
        {"labels": {"count": 3, "trained": [1, 0]}},
        {"labels": {"count": 3, "trained": [1, 1]}},
        {"labels": {"count": 3, "trained": ["sports"]}},
        {"labels": {"count": 3, "trained": [0.5]}},
        {"labels": {"count": 3, "trained": [0], "names": ["sports"]}},
        {"labels": {"count": 0, "trained": []}},
        {"labels": {"count": 2**31, "trained": []}},
        {"labels": [0, 1]},
    ],
)
def test_a_manifest_that_breaks_the_schema_is_refused(change: dict[str, object]):
    with pytest.raises(DocumentMalformedError):
        ContributionManifest.parse(canonical_json(contribution(**change)))


def test_a_tensor_may_be_named_once_only():
    weights = contribution()["weights"]
    assert isinstance(weights, dict)
    weights["tensors"] = weights["tensors"] * 2
    with pytest.raises(DocumentMalformedError, match="a tensor is named twice"):
        ContributionManifest.parse(canonical_json(contribution(weights=weights)))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [
                {
                    "name": "model.safetensors",
                    "bytes": 9,
                    "sha256": DIGEST,
                    "tensors": [{"name": "w", "dtype": "F32", "shape": []}],
                }
            ],
            "config.json",
        ),
        ([{"name": "config.json", "bytes": 9, "sha256": DIGEST}], "holds tensors"),
        (
            [
                {
                    "name": "config.json",
                    "bytes": 9,
                    "sha256": DIGEST,
                    "tensors": [{"name": "w", "dtype": "F32", "shape": []}],
                },
            ],
            "safetensors files, and only these",
        ),
    ],
)
def test_a_base_model_is_a_whole_folder(files: list[object], message: str):
    with pytest.raises(DocumentMalformedError, match=message):
        BaseManifest.parse(canonical_json({"files": files}))


# --- statistics files ----------------------------------------------------------------------------------------------


def test_the_packed_length_is_the_sum_over_the_block_rows():
    for width in (1, 127, 128, 129, 384, 1000):
        blocks = [(start, min(start + BLOCK, width)) for start in range(0, width, BLOCK)]
        assert packed_length(width) == sum((end - start) * end for start, end in blocks)


def tap(name: str, width: int, **changes: object) -> TapInfo:
    document = {
        "name": name,
        "width": width,
        "rows": 10,
        "distinct_rows": 10,
        "source": "mixed",
        "layers": [{"weight": f"{name}.weight"}],
    }
    return TapInfo.model_validate(document | changes)


def statistics_header(*taps: TapInfo, lengths: list[int] | None = None, metadata: str | None = None) -> Header:
    document = StatisticsMetadata.model_validate({"collector": {"collector_version": "1"}, "taps": taps})
    lengths = lengths or [packed_length(t.width) for t in taps]
    entries = {
        gram_tensor_name(t.name): TensorEntry(gram_tensor_name(t.name), "F32", (n,), 0, 4 * n)
        for t, n in zip(taps, lengths, strict=False)
    }
    return Header(tensors=entries, metadata={METADATA_KEY: metadata or document.model_dump_json()})


def test_a_statistics_file_says_what_its_tensors_mean():
    taps = (tap("a", 4), tap("b", 200))
    assert parse_statistics_metadata(statistics_header(*taps)).taps == taps


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (Header(tensors={}), "not a statistics file"),
        (statistics_header(tap("a", 4), metadata="{"), "StatisticsMetadata"),
        (statistics_header(tap("a", 4), lengths=[15]), "gram.a"),
        (statistics_header(tap("a", 4), tap("b", 4), lengths=[16]), "1 tensors for 2 taps"),
    ],
)
def test_a_statistics_file_whose_parts_disagree_is_refused(header: Header, message: str):
    with pytest.raises(StatisticsMalformedError, match=message):
        parse_statistics_metadata(header)


def test_more_distinct_rows_than_rows_are_a_lie():
    with pytest.raises(ValueError, match="distinct_rows exceeds rows"):
        tap("a", 4, distinct_rows=11)
