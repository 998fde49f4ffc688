"""Hostile input through the public API: each a clear problem document, and nothing stored."""

import json
import math
import pickle  # noqa: TID251 - written, never read
import struct

import pytest

from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.contract.statistics_file import METADATA_KEY
from support.server_world import (
    BASE_TENSORS,
    BODY_TENSORS,
    WIDTH,
    make_base,
    make_contribution,
    make_tap,
    problem,
    safetensors,
)

VALUES = sum(math.prod(shape) * DTYPE_BYTES[dtype] for _, dtype, shape in BODY_TENSORS)
HONEST = safetensors(BODY_TENSORS)


def with_header(document, *, length=None):
    """A file of the honest one's tensors' size whose header says something else."""
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(VALUES)


def honest_header():
    (length,) = struct.unpack_from("<Q", HONEST)
    return json.loads(HONEST[8 : 8 + length])


def changed(**changes):
    header = honest_header()
    header["encoder.query.weight"] |= changes
    return with_header(header)


def offsets_of(name):
    return honest_header()[name]["data_offsets"]


def duplicate_key():
    (length,) = struct.unpack_from("<Q", HONEST)
    text = HONEST[8 : 8 + length].rstrip()
    entry = json.dumps(honest_header()["encoder.query.bias"]).encode()
    return with_header(text[:-1] + b',"encoder.query.bias":' + entry + b"}")


HEADERS = {
    "a header cut off": with_header(HONEST[8:60]),
    "a length that lies": with_header(honest_header(), length=5),
    "a length behind the file": with_header(honest_header(), length=VALUES + 10_000),
    "a length of 2^63": with_header(honest_header(), length=2**63),
    "not JSON": with_header(b"{" + b"x" * 300),
    "a list": with_header(b"[" + b" " * 300 + b"]"),
    "a key twice": duplicate_key(),
    "a hole": changed(data_offsets=[8, 8 + 4 * WIDTH * WIDTH]),
    "an overlap": changed(data_offsets=[0, 4]),
    "a size of 2^63": changed(shape=[2**63, 1]),
    "sizes whose product overflows": changed(shape=[2**62, 2**62, 4]),
    "a negative size": changed(shape=[-WIDTH, -WIDTH]),
    "offsets turned around": changed(data_offsets=offsets_of("encoder.query.weight")[::-1]),
    "an unknown dtype": changed(dtype="F7"),
    "a float as size": changed(shape=[12.0, 12]),
    "deep nesting": with_header(b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
    "a pickle": pickle.dumps({"encoder.query.weight": [0.0] * 300}) + bytes(VALUES),
    "zeros": bytes(VALUES + 100),
}


def begin(world, settings):
    world.project("acme", "globex")


@pytest.fixture
def world(request, make_world, begun):
    """A server with a project, for those who ask for that."""
    return begun(begin)[0] if "project" in request.fixturenames else make_world()


@pytest.fixture
def project(world):
    return world.coordinator("acme").get("/v1/projects/acme.tweets").json()


def upload(world, project, contribution):
    """Send everything up to the seal; return the seal's answer."""
    member = world.participant("globex")
    path = f"/v1/projects/{project['id']}/contributions/{contribution.id}"
    answer = member.put_document(path, contribution.manifest)
    assert answer.status_code == 201, answer.text
    member.put_files(path, answer.json(), contribution.files)
    return member.post(f"{path}/seal")


@pytest.mark.parametrize("name", HEADERS)
def test_a_weights_file_with_a_hostile_header_is_rejected_and_its_bytes_are_gone(world, project, name):
    before = world.stored_keys()
    contribution = make_contribution(project, "globex", weights=HEADERS[name])
    answer = upload(world, project, contribution)
    code = "header-too-large" if name in {"a length of 2^63", "a pickle"} else "header-malformed"
    problem(answer, 422, code)
    assert world.stored_keys() == before
    detail = world.participant("globex").get(f"/v1/projects/{project['id']}/contributions/{contribution.id}").json()
    assert detail["state"] == "rejected"
    assert detail["reason"] == answer.json()["detail"]


def test_a_header_that_lists_other_tensors_than_the_manifest_is_rejected(world, project):
    header = honest_header()
    header["encoder.output.weight"], header["encoder.query.weight"] = (
        header["encoder.query.weight"],
        header["encoder.output.weight"],
    )
    problem(
        upload(world, project, make_contribution(project, "globex", weights=with_header(header))),
        422,
        "architecture-mismatch",
    )


def test_free_text_in_a_header_is_refused(world, project):
    weights = safetensors(BODY_TENSORS, metadata={"notes": "the patient in room 3"})
    problem(upload(world, project, make_contribution(project, "globex", weights=weights)), 422, "policy-violation")


@pytest.mark.parametrize(
    "metadata",
    [{}, {METADATA_KEY: "{}"}, {METADATA_KEY: "not json"}, {METADATA_KEY: '{"format": "gramfuse/statistics/9"}'}],
)
def test_statistics_without_their_metadata_are_rejected(world, project, metadata):
    statistics = safetensors((("gram.encoder.query", "F32", (WIDTH * WIDTH,)),), metadata=metadata)
    answer = upload(world, project, make_contribution(project, "globex", statistics=statistics))
    problem(answer, 422, "statistics-malformed")


def test_statistics_that_describe_other_taps_than_the_manifest_are_rejected(world, project):
    honest = make_contribution(project, "globex")
    other = make_contribution(
        project, "globex", taps=(make_tap(rows=501),), statistics=honest.files["statistics.safetensors"]
    )
    problem(upload(world, project, other), 422, "statistics-malformed")


def test_statistics_of_another_base_are_rejected(world, project):
    other = make_contribution(project | {"base": "0" * 64}, "globex").files["statistics.safetensors"]
    answer = upload(world, project, make_contribution(project, "globex", statistics=other))
    problem(answer, 422, "architecture-mismatch")


# --- refused before a byte travels -----------------------------------------------------------------------------------


def create(world, project, contribution):
    path = f"/v1/projects/{project['id']}/contributions/{contribution.id}"
    return world.participant("globex").put_document(path, contribution.manifest)


def replaced(name, /, **changes):
    return tuple(
        (changes.get("name", n), changes.get("dtype", d), changes.get("shape", s)) if n == name else (n, d, s)
        for n, d, s in BODY_TENSORS
    )


@pytest.mark.parametrize(
    "tensors",
    [
        replaced("encoder.query.weight", shape=(WIDTH, WIDTH + 1)),
        replaced("encoder.query.weight", shape=(WIDTH * WIDTH,)),
        replaced("encoder.query.weight", name="encoder.unknown.weight"),
        replaced("encoder.query.weight", dtype="I32"),
        replaced("encoder.query.weight", dtype="F64"),
        (*BODY_TENSORS, ("encoder.position_ids", "I64", (1, 4))),
        (*BODY_TENSORS, ("encoder.position_ids", "F32", (1, 4))),
    ],
    ids=["wider", "flat", "unknown", "integers", "doubles", "a buffer", "a buffer as floats"],
)
def test_tensors_that_do_not_fit_the_base_are_refused_at_creation(world, project, tensors):
    before = world.stored_keys()
    problem(
        create(world, project, make_contribution(project, "globex", tensors=tensors, taps=())),
        422,
        "architecture-mismatch",
    )
    assert world.stored_keys() == before


@pytest.mark.parametrize(
    "tap",
    [
        make_tap(width=WIDTH + 1),
        make_tap(layers=({"weight": "encoder.nothing.weight"},)),
        make_tap(layers=({"weight": "encoder.query.bias"},)),
        make_tap(name="classifier", layers=({"weight": "classifier.weight", "layout": "in_out"},)),
    ],
    ids=["too wide", "unknown layer", "a bias", "wrong layout"],
)
def test_taps_that_do_not_fit_the_base_are_refused_at_creation(world, project, tap):
    problem(create(world, project, make_contribution(project, "globex", taps=(tap,))), 422, "architecture-mismatch")


@pytest.mark.parametrize("claimed", [8, VALUES, VALUES + 2**40])
def test_a_file_that_cannot_hold_its_tensors_is_refused_at_creation(world, project, claimed):
    honest = make_contribution(project, "globex")
    document = honest.manifest.model_dump(mode="json")
    document["weights"]["file"]["bytes"] = claimed
    changed = type(honest)(type(honest.manifest).model_validate(document), honest.files)
    problem(create(world, project, changed), 422, "header-malformed")


@pytest.mark.parametrize("name", ["../weights", "a/b", "..", ".", "", "a\\b", "a\x00b", "ü", "x" * 129])
def test_a_file_name_that_is_a_path_is_refused(world, project, name):
    before = world.stored_keys()
    document = make_contribution(project, "globex").manifest.model_dump(mode="json")
    document["weights"]["file"]["name"] = name
    answer = world.participant("globex").put(f"/v1/projects/{project['id']}/contributions/{'0' * 64}", json=document)
    problem(answer, 422, "document-malformed")
    assert world.stored_keys() == before


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fetc", "a%00b"])
def test_a_path_traversal_in_a_url_reaches_nothing(world, project, name):
    contribution = world.contribute(project, "globex")
    path = f"/v1/projects/{project['id']}/contributions/{contribution.id}/files/{name}/parts/0"
    answer = world.participant("globex").put_part(path.removesuffix("/parts/0"), 0, b"x")
    assert answer.status_code in {404, 405, 422}
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff", b'{"format":"x"}', b'{"a":' * 10_000, b'{"project":"\\ud800"}']
)
def test_what_is_no_manifest_is_refused(world, project, raw):
    answer = world.participant("globex").put(
        f"/v1/projects/{project['id']}/contributions/{'0' * 64}",
        content=raw,
        headers={"content-type": "application/json"},
    )
    problem(answer, 422, "document-malformed")


def test_a_document_over_its_limit_is_refused(world, project):
    url = f"/v1/projects/{project['id']}/contributions/{'0' * 64}"
    headers = {"content-type": "application/json"}
    answer = world.participant("globex").put(url, content=b" " * (16 * 2**20 + 1), headers=headers)
    problem(answer, 413, "too-large")


def test_a_small_request_over_its_limit_is_refused(world):
    answer = world.operator.post("/v1/tokens", content=b" " * (256 * 2**10 + 1))
    problem(answer, 413, "too-large")


# --- base models -----------------------------------------------------------------------------------------------------


def put_base(world, base):
    world.organization("acme")
    document = {"base": base if isinstance(base, dict) else base.manifest.model_dump(mode="json"), "policy": {}}
    return world.coordinator("acme").put("/v1/projects/acme.tweets", json=document)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py", "optimizer.pt", "x.PKL"])
def test_a_base_with_a_pickle_or_code_is_refused(world, name):
    document = make_base().manifest.model_dump(mode="json")
    document["files"][2]["name"] = name
    problem(put_base(world, document), 422, "policy-violation")


@pytest.mark.parametrize("config", [b"not json", b"[1]", b'{"vocab_size": 32}', b"{}"])
def test_a_base_whose_config_is_not_what_the_manifest_says_is_rejected(world, config):
    base = make_base(config=config)
    before = world.stored_keys()
    answer = put_base(world, base)
    assert answer.status_code == 201
    coordinator = world.coordinator("acme")
    coordinator.put_files("/v1/projects/acme.tweets/base", answer.json(), base.files)
    assert coordinator.post("/v1/projects/acme.tweets/base/seal").status_code == 422
    assert coordinator.get("/v1/projects/acme.tweets").json()["state"] == "rejected"
    assert world.stored_keys() == before


def test_a_rejected_base_can_be_replaced_and_the_project_goes_on(world):
    bad = make_base(config=b"{}")
    answer = put_base(world, bad)
    coordinator = world.coordinator("acme")
    coordinator.put_files("/v1/projects/acme.tweets/base", answer.json(), bad.files)
    coordinator.post("/v1/projects/acme.tweets/base/seal")
    assert put_base(world, bad).status_code == 200
    good = make_base()
    answer = put_base(world, good)
    assert answer.status_code == 201
    assert answer.json()["state"] == "open"
    coordinator.put_files("/v1/projects/acme.tweets/base", answer.json(), good.files)
    assert coordinator.post("/v1/projects/acme.tweets/base/seal").json()["state"] == "sealed"


def test_a_base_whose_header_lists_other_tensors_is_rejected(world):
    base = make_base()
    document = base.manifest.model_dump(mode="json")
    document["files"][1]["tensors"] = [
        tensor | ({"dtype": "I32"} if tensor["name"] == "encoder.query.bias" else {})
        for tensor in document["files"][1]["tensors"]
    ]
    answer = put_base(world, document)
    coordinator = world.coordinator("acme")
    coordinator.put_files("/v1/projects/acme.tweets/base", answer.json(), base.files)
    problem(coordinator.post("/v1/projects/acme.tweets/base/seal"), 422, "architecture-mismatch")
    assert len(BASE_TENSORS) == len(document["files"][1]["tensors"])
