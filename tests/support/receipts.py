"""Receipts of made-up models, signed by a made-up server."""

import base64
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gramfuse_shared.contract.receipt import Receipt, SignedReceipt
from gramfuse_shared.digest import sha256_hex

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def receipt_of(files: Mapping[str, bytes], **contribution: str) -> Receipt:
    return Receipt.model_validate(
        {
            "project": "acme.tweets",
            "model": "regmean-1",
            "attempt": 1,
            "base": "ab" * 32,
            "policy": {"version": 1, "digest": "cd" * 32},
            "recipe": {"merge_method": "regmean"},
            "method_version": "regmean/1",
            "contributions": [{"organization": "globex", "manifest": "ef" * 32, "weight": 1.0} | contribution],
            "outputs": [{"name": n, "bytes": len(b), "sha256": sha256_hex(b)} for n, b in files.items()],
            "created": "2026-01-02T03:04:05Z",
            "software": "gramfuse 0.1.0",
        }
    )


def signed(receipt: Receipt, key: Ed25519PrivateKey = KEY) -> SignedReceipt:
    signature = base64.b64encode(key.sign(receipt.canonical())).decode()
    return SignedReceipt(receipt=receipt, public_key=public(key), signature=signature)
