"""Golden bytes of the wire: a change of any of these is a change of the contract and needs a new format number.

Each `.json` beside this file is a document in canonical JSON; `digests.json` holds their SHA-256. The statistics file
is complete, header and values.
"""

import base64
import json
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gramfuse_shared.contract.audit_summary import AuditSummary
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.http_api import AnnouncedPart, FileLocation, PartAnnouncement
from gramfuse_shared.contract.identity import ContributionStatement, SignedAcceptance
from gramfuse_shared.contract.key_handover import SignedHandover
from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import Answer, RequestCreate
from gramfuse_shared.contract.safetensors_header import format_header, parse_header
from gramfuse_shared.contract.scales_file import METADATA_KEY as SCALES_METADATA_KEY
from gramfuse_shared.contract.scales_file import parse_scales_metadata, tensors_of_scales
from gramfuse_shared.contract.secure import STAGES, SignedMessage
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.contract.statistics_file import METADATA_KEY, parse_statistics_metadata, tensors_of_taps
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.succession import require_succession
from support.secure_cohorts import Cohort

FOLDER = Path(__file__).parent
DOCUMENTS: dict[str, type[Document]] = {
    "policy.json": Policy,
    "policy-open.json": Policy,
    "recipe.json": Recipe,
    "base.json": BaseManifest,
    "contribution.json": ContributionManifest,
    "contribution-fisher.json": ContributionManifest,
    "receipt.json": SignedReceipt,
    "acceptance.json": SignedAcceptance,
    "key-handover.json": SignedHandover,
    "policy-requests.json": Policy,
    "request.json": RequestCreate,
    "request-own.json": RequestCreate,
    "answer-evaluate.json": Answer,
    "answer-gram.json": Answer,
    "policy-refits.json": Policy,
    "policy-scales.json": Policy,
    "policy-private.json": Policy,
    "policy-release.json": Policy,
    "contribution-noised.json": ContributionManifest,
    "recipe-head.json": Recipe,
    "answer-head.json": Answer,
    "answer-calibration.json": Answer,
    "contribution-statement.json": ContributionStatement,
    "policy-secure.json": Policy,
    "policy-audit.json": Policy,
    "audit-summary.json": AuditSummary,
    "request-keys.json": RequestCreate,
    "request-shares.json": RequestCreate,
    "secure-session.json": SessionManifest,
    "secure-keys.json": SignedMessage,
    "secure-shares.json": SignedMessage,
    "secure-masked.json": SignedMessage,
    "secure-survivors.json": SignedMessage,
    "secure-unmask.json": SignedMessage,
    "part-announcement.json": PartAnnouncement,
    "announced-part.json": AnnouncedPart,
    "file-location.json": FileLocation,
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_keeps_its_canonical_bytes_and_its_digest(name: str):
    raw = (FOLDER / name).read_bytes()
    document = DOCUMENTS[name].parse(raw)
    assert document.canonical() == raw
    assert document.content_digest() == json.loads((FOLDER / "digests.json").read_text())[name]


def test_trained_labels_are_written_only_where_they_are_said():
    """So a contribution that trained all labels keeps the bytes that it had before there were trained labels."""
    plain = json.loads((FOLDER / "contribution.json").read_bytes())
    said = ContributionManifest.model_validate(plain | {"labels": {"count": 7, "trained": [0, 2, 5]}})
    assert json.loads(said.canonical()) == plain | {"labels": {"count": 7, "trained": [0, 2, 5]}}
    assert said.model_copy(update={"labels": None}).canonical() == (FOLDER / "contribution.json").read_bytes()


def test_the_default_policy_is_the_golden_one():
    assert Policy().canonical() == (FOLDER / "policy.json").read_bytes()


def test_the_golden_receipts_signature_verifies_over_the_receipts_canonical_json():
    signed = SignedReceipt.parse((FOLDER / "receipt.json").read_bytes())
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signed.public_key))
    key.verify(base64.b64decode(signed.signature), signed.receipt.canonical())


def test_a_secure_session_with_known_secrets_keeps_its_messages_and_its_masked_words(tmp_path):
    """Of three members, each with the SHA-256 of its name for a secret: keys, shares, masks and signatures follow."""
    session = SessionManifest.parse((FOLDER / "secure-session.json").read_bytes())
    cohort = Cohort.of(session, tmp_path)
    for name in session.organizations:
        folder = tmp_path / name / session.digest
        folder.mkdir(parents=True)
        (folder / "root").write_bytes(bytes.fromhex(sha256_hex(name.encode())))
    cohort.run()
    for stage in STAGES:
        assert getattr(cohort, stage)["acme"].canonical() == (FOLDER / f"secure-{stage}.json").read_bytes(), stage
    words = json.loads((FOLDER / "digests.json").read_text())["secure-words"]
    assert sha256_hex(cohort.files["acme"].read_bytes()) == words


def test_the_golden_acceptances_signature_verifies_over_the_acceptances_canonical_json():
    signed = SignedAcceptance.parse((FOLDER / "acceptance.json").read_bytes())
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signed.acceptance.identity))
    key.verify(base64.b64decode(signed.signature), signed.acceptance.canonical())


def test_the_golden_hand_over_is_signed_by_both_keys():
    signed = SignedHandover.parse((FOLDER / "key-handover.json").read_bytes())
    assert require_succession([signed], signed.handover.successor) == (signed.handover.former,)


def test_the_statistics_file_keeps_its_bytes():
    """One tap of width 130: block row [128, 128], then block row [2, 130], row-major fp32."""
    raw = (FOLDER / "statistics.safetensors").read_bytes()
    header = parse_header(raw, len(raw))
    metadata = parse_statistics_metadata(header)
    (tap,) = metadata.taps
    assert (tap.width, tap.rows, tap.distinct_rows, tap.source) == (130, 1, 1, "mixed")
    # the one row is x = (1, 2, …, 130), so G[i, j] = (i+1)(j+1)
    values = [float((i + 1) * (j + 1)) for i in range(128) for j in range(128)]
    values += [float((i + 1) * (j + 1)) for i in (128, 129) for j in range(130)]
    assert raw[header.header_bytes :] == struct.pack(f"<{len(values)}f", *values)
    again = format_header([(f"gram.{tap.name}", "F32", (len(values),))], {METADATA_KEY: metadata.canonical().decode()})
    assert again == raw[: header.header_bytes]
    assert sha256_hex(raw) == json.loads((FOLDER / "digests.json").read_text())["statistics.safetensors"]


def test_the_encoding_int16_keeps_its_bytes():
    """The same tap: D = (i+1)², and every correlation is 1, so 32767 stands everywhere; the diagonal comes first."""
    exact = (FOLDER / "statistics.safetensors").read_bytes()
    metadata = parse_statistics_metadata(parse_header(exact, len(exact))).model_copy(update={"encoding": "int16"})
    count = 128 * 128 + 2 * 130
    layout = [("diagonal.encoder.dense", "F32", (130,)), ("gram.encoder.dense", "I16", (count,))]
    layout = [(name.replace("encoder.dense", metadata.taps[0].name), dtype, shape) for name, dtype, shape in layout]
    assert tensors_of_taps(metadata.taps, "int16") == layout
    raw = format_header(layout, {METADATA_KEY: metadata.canonical().decode()})
    raw += struct.pack("<130f", *(float((i + 1) ** 2) for i in range(130))) + struct.pack(
        f"<{count}h", *[32767] * count
    )
    assert parse_statistics_metadata(parse_header(raw, len(raw))) == metadata
    assert sha256_hex(raw) == json.loads((FOLDER / "digests.json").read_text())["statistics-int16"]


def test_the_scales_file_keeps_its_bytes():
    """Two taps, of width 3 and 2: their mean squares, one tap behind the other, fp32."""
    raw = (FOLDER / "scales.safetensors").read_bytes()
    header = parse_header(raw, len(raw))
    metadata = parse_scales_metadata(header)
    assert [(tap.width, len(tap.layers)) for tap in metadata.taps] == [(3, 2), (2, 1)]
    assert (metadata.clip, metadata.clip_percentile, metadata.examples) == (1.25, 50.0, 1000)
    assert raw[header.header_bytes :] == struct.pack("<5f", 1, 4, 0.25, 9, 0.0001)
    again = format_header(tensors_of_scales(metadata.taps), {SCALES_METADATA_KEY: metadata.canonical().decode()})
    assert again == raw[: header.header_bytes]
    assert sha256_hex(raw) == json.loads((FOLDER / "digests.json").read_text())["scales.safetensors"]
