"""Checks of where bytes lie: the blob store by a real round trip, and the free space of local folders."""

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from obstore.exceptions import BaseError

from gramfuse_server.belonging import ADVICE, count_missing, describe_missing, describe_store
from gramfuse_server.blobs import Blobs, open_blobs
from gramfuse_server.clock import Clock
from gramfuse_server.database import Database
from gramfuse_server.direct import open_direct
from gramfuse_server.doctor.clocks import check_clock
from gramfuse_server.doctor.findings import Finding, failed, ok, warning
from gramfuse_server.places import blobs_folder, database_folder, existing
from gramfuse_server.settings import Settings
from gramfuse_shared import limits
from gramfuse_shared.errors import ConfigurationError, ExtraMissingError


class Usage(Protocol):
    """What `shutil.disk_usage` returns of a file system."""

    @property
    def total(self) -> int:
        """All bytes."""

    @property
    def free(self) -> int:
        """Bytes that this user may still write."""


AskUsage = Callable[[Path], Usage]


@dataclass(frozen=True, slots=True)
class Need:
    """How much of a disk must be free."""

    least: int
    """Below it, the next upload or merge fails."""
    enough: int
    """Below it, somebody should look."""
    variable: str


BLOBS_LEAST: Final = 1 * limits.GIB
BLOBS_ENOUGH: Final = 20 * limits.GIB
DATABASE_LEAST: Final = 256 * limits.MIB
DATABASE_ENOUGH: Final = 2 * limits.GIB
SHARDS_ENOUGH: Final = 4


def examine_store(settings: Settings, clock: Clock) -> list[Finding]:
    """Write, read and remove a small blob, and compare the store's clock; a folder that is missing is not made."""
    name, place = "blob store", describe_store(settings)
    folder = blobs_folder(settings.blobs)
    if folder is not None and not folder.is_dir():
        return [check_missing_folder(folder)]
    try:
        blobs = open_blobs(settings.blobs, persistence="hardly")
    except ConfigurationError as error:
        return [failed(name, error.message, "correct GRAMFUSE_BLOBS")]
    return check_round_trip(blobs, place, folder, clock)


def examine_contents(database: Database, settings: Settings) -> list[Finding]:
    """Look for files that the database names; nothing is said of a store that does not answer, which others tell."""
    name = "blob store, files"
    folder = blobs_folder(settings.blobs)
    try:
        mounted = folder is None or folder.is_dir()
        blobs = open_blobs(settings.blobs, persistence="hardly") if mounted else None
        missing = count_missing(database, blobs)
    except (ConfigurationError, BaseError):
        return []
    if missing:
        advice = f"{ADVICE} Neither API nor worker starts with it; `gramfuse-server verify` tells what it lacks"
        return [failed(name, describe_missing(settings, missing), advice)]
    return [ok(name, "it has files that this database names, or that names none")]


def examine_direct(settings: Settings) -> list[Finding]:
    """Put a few bytes into the store as clients do, and others than were announced; nothing stays."""
    name = "direct transfers"
    try:
        direct = open_direct(settings, open_blobs(settings.blobs, persistence="hardly"))
    except (ConfigurationError, ExtraMissingError) as error:
        return [failed(name, error.message, "correct it, or unset GRAMFUSE_DIRECT_TRANSFERS")]
    if direct is None:
        return []
    place = f"clients are sent to {urlsplit(direct.outside.base).netloc}"
    refusal = direct.refusal()
    if refusal is not None:
        advice = "check the AWS_… variables, this machine's clock, and that the store knows If-None-Match"
        return [failed(name, f"{place}; the store does not take what is signed: {refusal}", advice)]
    if direct.checks_digests():
        return [ok(name, f"{place}; the store refuses other bytes than were announced")]
    advice = "nothing, if the API's line to the store can bear it"
    return [
        warning(name, f"{place}; the store takes other bytes than were announced, so the API reads all parts", advice)
    ]


def check_missing_folder(folder: Path) -> Finding:
    """A blob store's folder that is missing can be made; the doctor does not, it may run as another user."""
    name, found = "blob store", f"the folder {folder} is not there"
    parent = existing(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        return failed(name, f"{found}, and cannot be made in {parent}", "correct GRAMFUSE_BLOBS, or make the folder")
    return warning(name, found, "if it should be mounted, mount it; else start the API, which makes it")


def check_round_trip(blobs: Blobs, place: str, folder: Path | None, clock: Clock) -> list[Finding]:
    """The store takes, gives and deletes a blob; and says when it was written."""
    name = "blob store"
    key = f"doctor-{secrets.token_hex(8)}"
    began = clock()
    try:
        # no folder: made by an administrator, it would be closed to the API
        written = blobs.probe(key, folder="")
    except OSError as error:
        where = (
            "the folder's owner and mode, and its mount" if folder else "the AWS_… variables and the bucket's policy"
        )
        advice = f"check {where}: API and workers must list, read, write and delete there"
        return [failed(name, f"{place} cannot be written and read: {error}", advice)]
    found = f"{place}: written, read and removed a blob"
    owner = None if folder is None else folder.stat().st_uid
    round_trip = ok(name, found)
    if owner not in {None, os.geteuid()}:
        advice = "run the doctor as that user: what this one may do says nothing of the API"
        round_trip = warning(name, f"{found}; the folder belongs to {owner}, this runs as {os.geteuid()}", advice)
    return [round_trip, check_clock("clock, blob store", written, began)]


def examine_disks(settings: Settings, usage: AskUsage = shutil.disk_usage) -> list[Finding]:
    """The folders of this machine have room."""
    scratch = Need(settings.shard_bytes, SHARDS_ENOUGH * settings.shard_bytes, "GRAMFUSE_SCRATCH")
    findings = [check_disk("disk, scratch", settings.scratch, scratch, usage)]
    blobs = blobs_folder(settings.blobs)
    if blobs is not None:
        findings.append(check_disk("disk, blobs", blobs, Need(BLOBS_LEAST, BLOBS_ENOUGH, "GRAMFUSE_BLOBS"), usage))
    database = database_folder(settings)
    if database is not None:
        need = Need(DATABASE_LEAST, DATABASE_ENOUGH, "GRAMFUSE_DATABASE_URL")
        findings.append(check_disk("disk, database", database, need, usage))
    return findings


def check_disk(name: str, folder: Path, need: Need, usage: AskUsage) -> Finding:
    """The file system of a folder, or of the one in which it will be made, has room."""
    try:
        space = usage(existing(folder))
    except OSError as error:
        return failed(name, f"{folder} cannot be looked at: {error.strerror}", f"correct {need.variable}")
    found = f"{_gib(space.free)} of {_gib(space.total)} free for {folder}"
    advice = f"free or add space, or move it with {need.variable}; at least {_gib(need.enough)} are advised"
    if space.free < need.least:
        return failed(name, found, advice)
    if space.free < need.enough:
        return warning(name, found, advice)
    return ok(name, found)


def _gib(size: int) -> str:
    return f"{size / limits.GIB:.1f} GiB"
