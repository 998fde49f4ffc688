"""Uploads send only what is missing; downloads resume, and nothing unverified is ever renamed."""

import errno
import random
import re
import resource
import threading
from pathlib import Path

import httpx
import pytest

from gramfuse.config import Endpoint, Token
from gramfuse.contributing.virtual_files import Source, Span, VirtualFile
from gramfuse.progress import Progress
from gramfuse.transfer.downloads import partial_folder, pull_folder
from gramfuse.transfer.retrying import RetryRule
from gramfuse.transfer.reusing import take_known_files
from gramfuse.transfer.transport import Transport
from gramfuse.transfer.uploads import send_missing_parts
from gramfuse_shared.contract.http_api import FileUpload
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.digest import format_content_digest, sha256_hex
from gramfuse_shared.errors import (
    ConflictError,
    DigestMismatchError,
    FileUnwritableError,
    GramfuseError,
    TransportError,
    UnavailableError,
)
from gramfuse_shared.limits import MIB
from support.receipts import receipt_of, signed

PART = 4


def transport_to(answer, attempts: int = 2) -> Transport:
    return Transport(
        Endpoint("http://127.0.0.1:1", Token("gf_a_b"), allow_http=False, through_server=True),
        connection=httpx.MockTransport(answer),
        retry=RetryRule(attempts=attempts),
        sleep=lambda _: None,
    )


class PartStore:
    """A server's parts of one file, over the real protocol."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content = name, content
        self.parts: dict[int, bytes] = {}
        self.puts: list[int] = []
        self.fails_at: set[int] = set()
        self.lock = threading.Lock()

    def announced(self) -> FileUpload:
        count = -(-len(self.content) // PART)
        return FileUpload(
            name=self.name,
            bytes=len(self.content),
            sha256=sha256_hex(self.content),
            part_bytes=PART,
            part_count=count,
            received_parts=len(self.parts),
        )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        with self.lock:
            if request.method == "GET":
                parts = [{"number": n, "bytes": len(b), "sha256": sha256_hex(b)} for n, b in sorted(self.parts.items())]
                return httpx.Response(
                    200, json={"file": self.name, "part_bytes": PART, "part_count": 9, "parts": parts}
                )
            number = int(request.url.path.rpartition("/")[2])
            self.puts.append(number)
            if number in self.fails_at:
                raise httpx.ReadError("connection reset")
            assert request.headers["Content-Digest"] == format_content_digest(sha256_hex(body))
            assert int(request.headers["Content-Length"]) == len(body)
            self.parts[number] = body
            return httpx.Response(201, json={})


def a_file(tmp_path: Path, content: bytes) -> VirtualFile:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    return VirtualFile.of_path(path)


@pytest.mark.parametrize("parallel", [1, 4])
def test_all_parts_of_a_file_arrive_and_every_byte_is_told(tmp_path, parallel):
    store, told = PartStore("weights.safetensors", bytes(range(30))), list[Progress]()
    file = a_file(tmp_path, store.content)
    sent = send_missing_parts(
        transport_to(store), "v1/c", [file], [store.announced()], parallel=parallel, on_progress=told.append
    )
    assert sent == 8
    assert b"".join(store.parts[n] for n in sorted(store.parts)) == store.content
    assert (told[0].done_bytes, told[-1].done_bytes, told[-1].total_bytes) == (0, 30, 30)


def test_a_rerun_sends_only_the_missing_parts(tmp_path):
    store = PartStore("weights.safetensors", bytes(range(30)))
    file = a_file(tmp_path, store.content)
    store.fails_at = {3}
    with pytest.raises(TransportError, match="connection reset"):
        send_missing_parts(transport_to(store), "v1/c", [file], [store.announced()], parallel=1)
    arrived = set(store.parts)
    assert arrived
    assert 3 not in arrived
    store.fails_at, store.puts, told = set(), [], list[Progress]()
    send_missing_parts(transport_to(store), "v1/c", [file], [store.announced()], on_progress=told.append)
    assert set(store.puts) == set(range(8)) - arrived
    assert told[0].done_bytes == PART * len(arrived)
    assert told[-1].done_bytes == 30


def test_bytes_of_a_failed_attempt_are_not_counted_twice(tmp_path):
    store, told, failures = PartStore("weights.safetensors", bytes(8)), list[Progress](), []

    def flaky(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT" and not failures:
            failures.append(request.read())
            raise httpx.WriteError("broken pipe")
        return store(request)

    file = a_file(tmp_path, store.content)
    send_missing_parts(transport_to(flaky), "v1/c", [file], [store.announced()], parallel=1, on_progress=told.append)
    assert max(progress.done_bytes for progress in told) == told[-1].done_bytes == 8


def test_a_file_that_the_server_does_not_expect_is_not_sent(tmp_path):
    store = PartStore("other.safetensors", bytes(8))
    with pytest.raises(ConflictError, match="does not expect"):
        send_missing_parts(transport_to(store), "v1/c", [a_file(tmp_path, bytes(8))], [store.announced()])
    assert store.puts == []


@pytest.mark.parametrize("part_bytes", [1, 3, 7, 29, 30, 31, 1000])
def test_the_pass_that_digests_a_file_digests_its_parts_too_and_they_are_not_read_again(tmp_path, part_bytes):
    content = bytes(range(30))
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    source = Source.of(path)
    file = VirtualFile("f", b"head", [Span(source, 5, 12), Span(source, 13, 30), Span(source, 0, 2)])
    whole = b"head" + content[5:12] + content[13:30] + content[:2]
    told: list[int] = []
    assert file.digest(told.append, part_bytes=part_bytes) == sha256_hex(whole)
    assert sum(told) == len(whole)
    path.unlink()
    for start in range(0, len(whole), part_bytes):
        part = whole[start : start + part_bytes]
        assert file.part_digest(start, start + len(part)) == sha256_hex(part)


def test_a_server_with_parts_of_another_size_gets_their_digests(tmp_path):
    store = PartStore("weights.safetensors", bytes(range(30)))
    file = a_file(tmp_path, store.content)
    file.digest(part_bytes=PART + 1)
    assert send_missing_parts(transport_to(store), "v1/c", [file], [store.announced()]) == 8
    assert b"".join(store.parts[n] for n in sorted(store.parts)) == store.content


# --- downloads -------------------------------------------------------------------------------------------------------

FILES = {"config.json": b"{}" * 40, "model.safetensors": bytes(range(256)) * 8}


class FileServer:
    """Serves files with Range and If-Range; may break off, or lie."""

    def __init__(self, files=FILES) -> None:
        self.files = dict(files)
        self.breaks_after: int | None = None
        self.ranges: list[tuple[str, int]] = []

    def entries(self) -> list[FileEntry]:
        return [FileEntry(name=n, bytes=len(b), sha256=sha256_hex(b)) for n, b in FILES.items()]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        content = self.files[name]
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "bytes=0-"))
        start = int(match[1])
        etag = f'"{sha256_hex(content)}"'
        if start and request.headers["If-Range"] != etag:
            start = 0
        self.ranges.append((name, start))
        headers = {"ETag": etag, "Content-Length": str(len(content) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stream = self._stream(content[start:])
        return httpx.Response(206 if start else 200, headers=headers, stream=stream)

    def _stream(self, content: bytes) -> httpx.SyncByteStream:
        server = self

        class Stream(httpx.SyncByteStream):
            def __iter__(self):
                for start in range(0, len(content), 100):
                    if server.breaks_after is not None and start >= server.breaks_after:
                        raise httpx.ReadError("connection reset")
                    yield content[start : start + 100]

        return Stream()


def pull(server, folder: Path, **options) -> None:
    pull_folder(transport_to(server), "v1/m/files", server.entries(), folder, retry=RetryRule(attempts=2), **options)


def test_a_pulled_folder_holds_just_the_announced_files(tmp_path):
    pull(FileServer(), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == FILES
    assert not partial_folder(tmp_path / "out").exists()


def test_a_pull_that_breaks_shows_no_folder_and_a_rerun_asks_for_the_rest_only(tmp_path):
    server, folder, told = FileServer(), tmp_path / "out", list[Progress]()
    server.breaks_after = 300

    def stop(request: httpx.Request) -> httpx.Response:
        if any(start for _, start in server.ranges):
            raise httpx.ConnectError("gone")
        return server(request)

    with pytest.raises(TransportError):
        pull_folder(transport_to(stop), "v1/m/files", server.entries(), folder, retry=RetryRule(attempts=1))
    assert not folder.exists()
    server.breaks_after, server.ranges = None, []
    pull(server, folder, on_progress=told.append)
    (name, start), *rest = server.ranges
    assert (name, rest) == ("model.safetensors", [])
    assert start > 0
    assert told[0].done_bytes == len(FILES["config.json"]) + start
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


def test_a_stream_that_breaks_again_and_again_but_moves_on_is_resumed(tmp_path):
    server = FileServer()
    server.breaks_after = 200
    pull(server, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert len(server.ranges) > 10


@pytest.mark.parametrize("where", [0, 100, 2047])
def test_a_corrupted_byte_on_the_way_is_reported_removed_and_never_renamed(tmp_path, where):
    server, folder = FileServer(), tmp_path / "out"
    damaged = bytearray(FILES["model.safetensors"])
    damaged[where] ^= 1
    server.files["model.safetensors"] = bytes(damaged)
    with pytest.raises(DigestMismatchError, match=r"model\.safetensors") as caught:
        pull(server, folder)
    assert caught.value.facts["expected"] == sha256_hex(FILES["model.safetensors"])
    assert not folder.exists()
    assert [path.name for path in partial_folder(folder).iterdir()] == ["config.json"]
    server.files = dict(FILES)
    pull(server, folder)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_byte_that_the_disk_corrupted_between_two_runs_is_found(tmp_path):
    server, folder = FileServer(), tmp_path / "out"
    server.breaks_after = 300
    with pytest.raises(GramfuseError):
        pull_folder(transport_to(server), "v1/m/files", server.entries(), folder, retry=RetryRule(attempts=1))
    (growing,) = partial_folder(folder).glob("*.part")
    damaged = bytearray(growing.read_bytes())
    damaged[7] ^= 0x40
    growing.write_bytes(damaged)
    server.breaks_after = None
    with pytest.raises(DigestMismatchError):
        pull(server, folder)
    assert not folder.exists()
    assert not growing.exists()


def test_a_finished_file_that_was_altered_in_the_partial_folder_is_fetched_anew(tmp_path):
    folder = tmp_path / "out"
    partial_folder(folder).mkdir()
    (partial_folder(folder) / "config.json").write_bytes(b"[]" * 40)
    pull(FileServer(), folder)
    assert (folder / "config.json").read_bytes() == FILES["config.json"]


def test_a_server_that_sends_more_than_announced_is_cut_off(tmp_path):
    server = FileServer()
    server.files["config.json"] += b"more"
    with pytest.raises(DigestMismatchError, match="more than the announced"):
        pull(server, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_last_check_refuses_does_not_appear(tmp_path):
    def refuse(_: Path) -> None:
        raise UnavailableError("not so")

    with pytest.raises(UnavailableError):
        pull(FileServer(), tmp_path / "out", finish=refuse)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    server = FileServer()
    with pytest.raises(ConflictError, match="choose another"):
        pull(server, tmp_path / "out")
    assert server.ranges == []


def test_leftovers_of_another_download_do_not_come_along(tmp_path):
    folder = tmp_path / "out"
    partial_folder(folder).mkdir()
    (partial_folder(folder) / "pytorch_model.bin").write_bytes(b"old")
    pull(FileServer(), folder)
    assert {path.name for path in folder.iterdir()} == set(FILES)


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileUnwritableError, match="file"):
        pull(FileServer(), tmp_path / "file" / "out")


def test_a_full_disk_leaves_a_beginning_of_the_file_from_which_a_rerun_goes_on(tmp_path):
    content = random.Random(0).randbytes(9 * MIB)
    entry = FileEntry(name="big.safetensors", bytes=len(content), sha256=sha256_hex(content))
    server, folder = FileServer({entry.name: content}), tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB + 5, hard))
    try:
        with pytest.raises(FileUnwritableError):
            pull_folder(transport_to(server), "v1/m/files", [entry], folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (growing,) = partial_folder(folder).glob("*.part")
    assert growing.read_bytes() == content[: 2 * MIB + 5]
    server.ranges = []
    pull_folder(transport_to(server), "v1/m/files", [entry], folder)
    assert server.ranges == [(entry.name, 2 * MIB + 5)]
    assert (folder / entry.name).read_bytes() == content


# --- what an earlier model has in common ----------------------------------------------------------------------------


def earlier_model(folder: Path, files: dict[str, bytes]) -> Path:
    """A pulled model's folder, with the receipt that says what its files are."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "receipt.json").write_bytes(signed(receipt_of(files)).canonical())
    return folder


def test_files_of_an_earlier_model_are_not_fetched_again_whatever_they_are_called_there(tmp_path):
    server = FileServer()
    first, second = FILES
    before = earlier_model(tmp_path / "before", {"another-name.safetensors": FILES[first]})
    take_known_files(tmp_path / "model", server.entries(), [tmp_path / "none", before])
    told = []
    pull(server, tmp_path / "model", on_progress=told.append)
    assert [name for name, _ in server.ranges] == [second]
    assert told[0].done_bytes == len(FILES[first])
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == FILES
    assert (before / "another-name.safetensors").read_bytes() == FILES[first]


def test_a_file_that_is_not_what_its_receipt_says_is_fetched(tmp_path):
    server = FileServer()
    before = earlier_model(tmp_path / "before", FILES)
    for name, content in FILES.items():
        (before / name).write_bytes(b"\0" * len(content))
    take_known_files(tmp_path / "model", server.entries(), [before])
    pull(server, tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == FILES


def test_without_links_files_are_copied_and_what_cannot_be_taken_is_fetched(tmp_path, monkeypatch):
    server = FileServer()
    first, second = FILES
    before = earlier_model(tmp_path / "before", FILES)
    (before / second).unlink()

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "other disk")

    monkeypatch.setattr("gramfuse.transfer.reusing.os.link", refuse)
    take_known_files(tmp_path / "model", server.entries(), [before])
    pull(server, tmp_path / "model")
    assert [name for name, _ in server.ranges] == [second]
    (tmp_path / "model" / first).write_bytes(b"mine")
    assert (before / first).read_bytes() == FILES[first]


def test_a_model_that_is_there_is_left_alone(tmp_path):
    server = FileServer()
    before = earlier_model(tmp_path / "before", FILES)
    there = earlier_model(tmp_path / "model", FILES)
    take_known_files(there, server.entries(), [before])
    assert not partial_folder(there).exists()
