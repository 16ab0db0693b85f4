"""Fetching weights from a server that cuts, changes, lies, ignores and hangs; nothing here leaves 127.0.0.1."""

import hashlib
import itertools
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.client import HTTPMessage, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request

import pytest

from hwm.errors import WeightsError
from hwm.weights import download as downloads
from hwm.weights import fetch as fetching
from hwm.weights.catalog import Release, require
from hwm.weights.download import Limits, download
from hwm.weights.fetch import fetch
from hwm.weights.record import RECORD_NAME, locked, read_record, state_of, write_seen

QUICK = Limits(timeout_sec=0.5, slow_sec=0.4, slow_bytes=1000, attempts=3, wait_sec=0.001)
OLD, NEW = (bytes((i * factor + i // 251) % 256 for i in range(300_000)) for factor in (7, 11))
HUB_FILES = {"/facebook/tiny/resolve/main/config.json": b'{"model_type": "vjepa2"}'}


@dataclass
class Conduct:
    """What the server has, and how it misbehaves; a list of cuts is used up, one a connection."""

    content: bytes = OLD
    tag: str | None = '"one"'
    date: str | None = None
    cuts: list[int] = field(default_factory=list)
    ignores_range: bool = False
    ignores_if_range: bool = False
    claims: int | None = None
    status: int = 200
    content_type: str = "application/octet-stream"
    encoding: str | None = None
    dates_parts: bool = False
    pause_sec: float = 0.0
    redirect: str | None = None
    requests: list[dict[str, str]] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    conduct: Conduct

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/tiny.pt"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        conduct = self.server.conduct
        conduct.requests.append({key.lower(): value for key, value in self.headers.items()} | {"path": self.path})
        self.close_connection = True
        if conduct.redirect is not None:
            self.send_response(302)
            self.send_header("Location", conduct.redirect)
            self.end_headers()
            return
        content = HUB_FILES.get(self.path, conduct.content)
        start = self.start_byte(conduct)
        if start is not None and start >= len(content):
            self.send_error(416)
            return
        if conduct.status != 200:
            self.send_error(conduct.status)
            return
        self.send_response(200 if start is None else 206)
        length = len(content) if conduct.claims is None else conduct.claims
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(length - (start or 0)))
        self.send_header("Content-Type", conduct.content_type)
        self.send_header("X-Repo-Commit", "0" * 40)
        if conduct.encoding is not None:
            self.send_header("Content-Encoding", conduct.encoding)
        for name, value in (("ETag", conduct.tag), ("Last-Modified", conduct.date)):
            # A part may leave the date out.
            if value is not None and (start is None or name == "ETag" or conduct.dates_parts):
                self.send_header(name, value if "config" not in self.path else '"config"')
        self.end_headers()
        if self.command == "GET":
            self.send_body(content[start or 0 :], conduct)

    def start_byte(self, conduct: Conduct) -> int | None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, conduct.tag, conduct.date)
        return int(asked[1]) if asked and not conduct.ignores_range and (same or conduct.ignores_if_range) else None

    def send_body(self, body: bytes, conduct: Conduct) -> None:
        end = conduct.cuts.pop(0) if conduct.cuts else len(body)
        step = 100 if conduct.pause_sec else 1 << 16
        for at in range(0, min(end, len(body)), step):
            time.sleep(conduct.pause_sec)
            try:
                self.wfile.write(body[at : min(at + step, end)])
            except OSError:
                return

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.conduct = Conduct()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def release_at(server: Server, **changes: object) -> Release:
    tiny = Release("tiny", "tiny.pt", server.url, "MIT", "a few bytes", ("encoder",), "tests")
    return replace(tiny, **changes)  # pyright: ignore[reportArgumentType]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_comes_whole_to_its_place_and_its_hash_is_recorded(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = fetch(release_at(server), tmp_path, watch=lambda at, total: seen.append((at, total)))
    assert done.path == tmp_path / "tiny.pt"
    assert done.path.read_bytes() == OLD
    assert (done.sha256, done.size, done.outcome) == (sha256(OLD), len(OLD), "fetched")
    assert seen[-1] == (len(OLD), len(OLD))
    assert read_record(tmp_path)["tiny.pt"].sha256 == sha256(OLD)
    assert state_of(tmp_path, "tiny.pt", read_record(tmp_path)) == "verified"
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("tag", ['"one"', None])
def test_a_cut_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path, tag: str | None) -> None:
    server.conduct.tag, server.conduct.date = tag, "Thu, 01 Jan 2026 00:00:00 GMT"
    server.conduct.cuts = [100_000, 50_000, 1]
    assert fetch(release_at(server), tmp_path, limits=QUICK).path.read_bytes() == OLD
    ranges = [request.get("range") for request in server.conduct.requests]
    assert ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]


def test_a_weak_tag_tells_no_file_from_another_and_the_date_does(server: Server, tmp_path: Path) -> None:
    server.conduct = Conduct(tag='W/"one"', date="Thu, 01 Jan 2026 00:00:00 GMT", cuts=[100_000])
    assert fetch(release_at(server), tmp_path, limits=QUICK).path.read_bytes() == OLD
    assert server.conduct.requests[1]["if-range"] == "Thu, 01 Jan 2026 00:00:00 GMT"


def test_an_interrupted_command_is_resumed_by_the_next_one(server: Server, tmp_path: Path) -> None:
    def stop(at: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(release_at(server), tmp_path, watch=stop, limits=QUICK)
    kept = (tmp_path / "tiny.pt.part").stat().st_size
    assert 0 < kept < len(OLD)
    assert not (tmp_path / "tiny.pt").exists()
    assert fetch(release_at(server), tmp_path, limits=QUICK).path.read_bytes() == OLD
    assert server.conduct.requests[-1]["range"] == f"bytes={kept}-"


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changes_on_the_server_is_never_mixed(server: Server, tmp_path: Path, honest: bool) -> None:
    """A server that does not look at If-Range is found out by its tag."""
    server.conduct.cuts = [100_000, 0, 0]
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetch(release_at(server), tmp_path, limits=QUICK)
    assert (tmp_path / "tiny.pt.part").stat().st_size == 100_000
    server.conduct = Conduct(NEW, tag='"two"', ignores_if_range=not honest)
    assert fetch(release_at(server), tmp_path, limits=QUICK).path.read_bytes() == NEW


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_with_another_date_is_never_mixed(server: Server, tmp_path: Path, honest: bool) -> None:
    server.conduct = Conduct(tag=None, date="Thu, 01 Jan 2026 00:00:00 GMT", cuts=[100_000, 0, 0])
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetch(release_at(server), tmp_path, limits=QUICK)
    dated = "Fri, 02 Jan 2026 00:00:00 GMT"
    server.conduct = Conduct(NEW, tag=None, date=dated, ignores_if_range=not honest, dates_parts=not honest)
    assert fetch(release_at(server), tmp_path, limits=QUICK).path.read_bytes() == NEW


@pytest.mark.parametrize(
    "conduct",
    [
        Conduct(NEW, tag=None, ignores_if_range=True),
        Conduct(NEW[:50_000], tag='"two"'),
        Conduct(NEW[:50_000], tag='"two"', ignores_if_range=True),
    ],
    ids=["no tag any more", "shorter than the part", "shorter, refused"],
)
def test_a_part_is_given_up_for_a_file_that_is_not_the_same(server: Server, tmp_path: Path, conduct: Conduct) -> None:
    server.conduct.cuts = [100_000, 0, 0]
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetch(release_at(server), tmp_path, limits=QUICK)
    server.conduct = conduct
    assert fetch(release_at(server), tmp_path, limits=QUICK).path.read_bytes() == conduct.content


def test_a_file_that_keeps_changing_is_given_up(server: Server, tmp_path: Path) -> None:
    """Each connection brings something, so that only the changes count."""
    server.conduct = Conduct(ignores_if_range=True, cuts=[1000] * 40)

    def change(at: int, total: int) -> None:
        server.conduct.tag = f'"{len(server.conduct.requests)}"'

    with pytest.raises(WeightsError, match="the file kept changing"):
        fetch(release_at(server), tmp_path, watch=change, limits=QUICK)


@pytest.mark.parametrize("damage", ["byte", "short", "long", "longest", "note", "no note", "other address"])
def test_a_part_that_is_not_what_its_note_says_is_not_used(server: Server, tmp_path: Path, damage: str) -> None:
    server.conduct.cuts = [100_000, 0, 0]
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetch(release_at(server), tmp_path, limits=QUICK)
    part, note = tmp_path / "tiny.pt.part", tmp_path / "tiny.pt.part.json"
    content = bytearray(part.read_bytes())
    if damage == "byte":
        content[5000] ^= 1
    more = {"long": b"x", "longest": b"x" * len(OLD)}.get(damage, b"")
    part.write_bytes(bytes(content[:9]) if damage == "short" else bytes(content) + more)
    if damage == "no note":
        note.unlink()
    if damage == "note":
        note.write_text("{")
    if damage == "other address":
        note.write_text(json.dumps(json.loads(note.read_text()) | {"url": "https://elsewhere"}))
    server.conduct = Conduct()
    assert fetch(release_at(server), tmp_path, limits=QUICK).path.read_bytes() == OLD
    # Bytes past what the note vouches for are cut off; all else means starting anew.
    assert server.conduct.requests[0].get("range") == ("bytes=100000-" if more else None)


def test_a_server_without_ranges_is_read_from_the_start(server: Server, tmp_path: Path) -> None:
    server.conduct.cuts, server.conduct.ignores_range = [100_000], True
    assert fetch(release_at(server), tmp_path, limits=QUICK).path.read_bytes() == OLD


def test_without_tag_and_date_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    server.conduct.tag = None
    server.conduct.cuts = [100_000]
    assert fetch(release_at(server), tmp_path, limits=QUICK).path.read_bytes() == OLD
    assert [request.get("range") for request in server.conduct.requests] == [None, None]


@pytest.mark.parametrize(
    ("conduct", "words"),
    [
        (Conduct(claims=len(OLD) + 10), "could not be downloaded"),
        (Conduct(cuts=[0, 0, 0]), "the connection ended at byte 0"),
        (Conduct(status=503), "answers 503"),
        (Conduct(status=404), "answers 404"),
        (Conduct(content_type="text/html; charset=utf-8"), "gives no weight file"),
        (Conduct(encoding="gzip"), "gives no weight file"),
        (Conduct(claims=0), "does not tell its length"),
        (Conduct(pause_sec=5), "timed out"),
        (Conduct(pause_sec=0.1), "bytes in 0 s"),
        (Conduct(redirect="ftp://127.0.0.1/tiny.pt"), "is redirected"),
    ],
    ids=["too long", "cut", "503", "404", "page", "packed", "no length", "silent", "drip", "redirect"],
)
def test_a_server_that_cannot_be_used_is_an_error_and_ends(
    server: Server, tmp_path: Path, conduct: Conduct, words: str
) -> None:
    server.conduct = conduct
    before = time.monotonic()
    with pytest.raises(WeightsError, match=words):
        fetch(release_at(server), tmp_path, limits=QUICK)
    assert time.monotonic() - before < 20
    assert not (tmp_path / "tiny.pt").exists()
    assert not (tmp_path / RECORD_NAME).exists()


class Dripping(HTTPResponse):
    """An answer that begins well and then gives a byte at a time."""

    def __init__(self) -> None:
        self.num_reads = 0

    def read1(self, n: int = -1) -> bytes:
        self.num_reads += 1
        return b"x" * (5000 if self.num_reads == 1 else self.num_reads < 100)

    def close(self) -> None:
        pass


def test_a_server_that_begins_well_and_then_drips_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(0.0, 0.1)
    monkeypatch.setattr(downloads.time, "monotonic", lambda: next(seconds))
    with downloads._Part(tmp_path / "x.part", "http://here") as part:
        part.begin('"one"', 1_000_000)
        with pytest.raises(TimeoutError, match=r"\d bytes in 0 s"):
            downloads._copy(part, Dripping(), QUICK, None)
        assert part.note.done < 5050


def test_retries_are_limited_and_progress_counts_anew(server: Server, tmp_path: Path) -> None:
    server.conduct.cuts = [1000] * 10  # more cuts than attempts, but each brings something
    assert fetch(release_at(server), tmp_path, limits=QUICK).path.read_bytes() == OLD
    server.conduct = Conduct(cuts=[0] * 10)
    with pytest.raises(WeightsError):
        fetch(release_at(server, file="b.pt"), tmp_path, limits=QUICK)
    assert len(server.conduct.requests) == QUICK.attempts


def test_a_server_without_ranges_that_cuts_here_and_there_is_given_up(server: Server, tmp_path: Path) -> None:
    server.conduct = Conduct(ignores_range=True, cuts=[100_000, 200_000] * 20)
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetch(release_at(server), tmp_path, limits=QUICK)
    assert len(server.conduct.requests) <= 2 + QUICK.attempts


def test_no_redirect_from_a_protected_connection_to_an_open_one() -> None:
    redirects = downloads._SafeRedirects()
    secure = Request("https://host/file")
    assert redirects.redirect_request(secure, None, 302, "", HTTPMessage(), "https://other/file") is not None
    with pytest.raises(WeightsError, match="is redirected"):
        redirects.redirect_request(secure, None, 302, "", HTTPMessage(), "http://other/file")


def test_another_size_than_the_catalogue_says_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="another size") as caught:
        fetch(release_at(server, size=len(OLD) + 1), tmp_path, limits=QUICK)
    assert str(len(OLD)) in str(caught.value)
    assert str(len(OLD) + 1) in str(caught.value)


def test_too_little_room_is_said_before_a_byte_comes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = downloads.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage._replace(free=downloads.SPARE_BYTES))
    with pytest.raises(WeightsError, match="no room"):
        fetch(release_at(server), tmp_path, limits=QUICK)
    assert (tmp_path / "tiny.pt.part").stat().st_size == 0


def test_room_is_needed_for_what_is_still_to_come(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.conduct.cuts = [100_000, 0, 0]
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetch(release_at(server), tmp_path, limits=QUICK)
    usage, free = downloads.shutil.disk_usage(tmp_path), downloads.SPARE_BYTES + len(OLD) - 100_000
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage._replace(free=free))
    assert fetch(release_at(server), tmp_path, limits=QUICK).path.read_bytes() == OLD


def test_a_full_disk_is_an_error_that_keeps_the_part(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = downloads._Part.append

    def fails(self: downloads._Part, chunk: bytes) -> None:
        if self.note.done:
            raise OSError(28, "No space left on device")
        append(self, chunk[:70_000])

    monkeypatch.setattr(downloads._Part, "append", fails)
    with pytest.raises(WeightsError, match="No space left"):
        download(server.url, tmp_path / "x.part", None, QUICK)
    monkeypatch.undo()
    assert download(server.url, tmp_path / "x.part", None, QUICK).resumed_at > 0
    assert (tmp_path / "x.part").read_bytes() == OLD


def test_a_later_fetch_with_another_hash_is_refused_and_names_both(server: Server, tmp_path: Path) -> None:
    fetch(release_at(server), tmp_path).path.unlink()
    server.conduct = Conduct(NEW, tag='"two"')
    with pytest.raises(WeightsError, match="another file than before") as caught:
        fetch(release_at(server), tmp_path)
    assert sha256(OLD) in str(caught.value)
    assert sha256(NEW) in str(caught.value)
    assert not (tmp_path / "tiny.pt").exists()
    assert (tmp_path / "tiny.pt.rejected").read_bytes() == NEW
    assert read_record(tmp_path)["tiny.pt"].sha256 == sha256(OLD)


def test_a_stated_hash_is_held(server: Server, tmp_path: Path) -> None:
    assert fetch(release_at(server, sha256=sha256(OLD)), tmp_path).outcome == "fetched"
    with pytest.raises(WeightsError, match="as its publisher states"):
        fetch(release_at(server, file="b.pt", sha256=sha256(NEW)), tmp_path)
    (tmp_path / "c.pt").write_bytes(NEW)
    with pytest.raises(WeightsError, match="as its publisher states"):
        fetch(release_at(server, file="c.pt", sha256=sha256(OLD)), tmp_path, offline=True)


def test_a_file_that_is_here_is_checked_and_never_replaced(server: Server, tmp_path: Path) -> None:
    fetch(release_at(server), tmp_path)
    assert fetch(release_at(server), tmp_path).outcome == "verified"
    assert len(server.conduct.requests) == 1
    seen = read_record(tmp_path)["tiny.pt"]
    (tmp_path / "tiny.pt").write_bytes(OLD[:-1])
    os.utime(tmp_path / "tiny.pt", ns=(seen.mtime_ns, seen.mtime_ns))
    assert state_of(tmp_path, "tiny.pt", read_record(tmp_path)) == "changed", "of another size"
    (tmp_path / "tiny.pt").write_bytes(NEW)
    assert state_of(tmp_path, "tiny.pt", read_record(tmp_path)) == "changed"
    with pytest.raises(WeightsError, match="not the file that it was") as caught:
        fetch(release_at(server), tmp_path)
    assert sha256(OLD) in str(caught.value)
    assert sha256(NEW) in str(caught.value)
    assert (tmp_path / "tiny.pt").read_bytes() == NEW
    assert len(server.conduct.requests) == 1


def test_a_file_put_there_by_hand_is_recorded(tmp_path: Path, server: Server) -> None:
    (tmp_path / "tiny.pt").write_bytes(OLD)
    assert fetch(release_at(server), tmp_path, offline=True).outcome == "recorded"
    assert not server.conduct.requests


def test_offline_makes_no_network_call_and_says_what_to_put_where(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a network call")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for release in (release_at(server), require("vjepa2-vitl-fpc64-256")):
        with pytest.raises(WeightsError, match="offline") as caught:
            fetch(release, tmp_path, offline=True)
        assert f"{release.url} -> {tmp_path / release.file}" in str(caught.value)
    assert "config.json -> " in str(caught.value)
    with pytest.raises(AssertionError, match="a network call"):  # the guard is alive
        fetch(release_at(server), tmp_path, limits=QUICK)


def test_one_process_at_a_time(server: Server, tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".tiny.pt.lock"),
        pytest.raises(WeightsError, match=r"another process is at work on tiny\.pt"),
    ):
        fetch(release_at(server), tmp_path)
    assert not server.conduct.requests
    assert fetch(release_at(server), tmp_path).path.exists()


def test_many_processes_write_one_record(tmp_path: Path) -> None:
    names = [f"{index}.pt" for index in range(8)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(write_seen, [(tmp_path, name, sha256(name.encode())) for name in names])
    assert sorted(read_record(tmp_path)) == names


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": {"sha256": 1, "size": 1, "mtime_ns": 1}}', '{"a": {}}'])
def test_a_damaged_record_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_NAME).write_text(text)
    with pytest.raises(WeightsError, match="damaged"):
        read_record(tmp_path)


def hub_release(server: Server) -> Release:
    url = f"http://127.0.0.1:{server.server_port}/facebook/tiny/resolve/main/model.safetensors"
    return release_at(server, file="tiny/model.safetensors", url=url, repo="facebook/tiny")


def test_a_hugging_face_model_comes_with_its_config(server: Server, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{server.server_port}"
    done = fetch(hub_release(server), tmp_path, endpoint=endpoint)
    assert done.path == tmp_path / "tiny" / "model.safetensors"
    assert done.path.read_bytes() == OLD
    assert json.loads((tmp_path / "tiny" / "config.json").read_text()) == {"model_type": "vjepa2"}
    assert not (tmp_path / "tiny" / ".fetching").exists()
    asked = len(server.conduct.requests)
    assert fetch(hub_release(server), tmp_path, endpoint=endpoint).outcome == "verified"
    assert len(server.conduct.requests) == asked
    done.path.unlink()
    server.conduct = Conduct(NEW, tag='"two"')
    with pytest.raises(WeightsError, match="another file than before"):
        fetch(hub_release(server), tmp_path, endpoint=endpoint)
    assert not done.path.exists()


def test_a_config_that_is_missing_beside_its_weights_is_fetched(server: Server, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{server.server_port}"
    config = fetch(hub_release(server), tmp_path, endpoint=endpoint).path.with_name("config.json")
    config.unlink()
    with pytest.raises(WeightsError, match="offline") as caught:
        fetch(hub_release(server), tmp_path, endpoint=endpoint, offline=True)
    assert str(config) in str(caught.value)
    assert fetch(hub_release(server), tmp_path, endpoint=endpoint).outcome == "verified"
    assert config.is_file()


def test_a_hugging_face_model_needs_room_before_it_comes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, release = fetching.shutil.disk_usage(tmp_path), replace(hub_release(server), size=len(OLD))
    endpoint, free = f"http://127.0.0.1:{server.server_port}", downloads.SPARE_BYTES + len(OLD)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=free - 1))
    with pytest.raises(WeightsError, match="no room"):
        fetch(release, tmp_path, endpoint=endpoint)
    assert not server.conduct.requests
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=free))
    assert fetch(release, tmp_path, endpoint=endpoint).outcome == "fetched"


def test_a_hugging_face_error_is_ours(server: Server, tmp_path: Path) -> None:
    server.conduct.status = 404
    with pytest.raises(WeightsError, match=r"config\.json of facebook/tiny could not be downloaded"):
        fetch(hub_release(server), tmp_path, endpoint=f"http://127.0.0.1:{server.server_port}")


def test_a_killed_process_leaves_a_part_that_is_resumed(server: Server, tmp_path: Path) -> None:
    server.conduct.pause_sec = 0.001
    code = (
        "import sys; from pathlib import Path; from hwm.weights import download as d\n"
        "d.SAVE_EVERY_BYTES = 20_000\n"
        "d.download(sys.argv[1], Path(sys.argv[2]), None, d.Limits())\n"
    )
    part = tmp_path / "x.part"
    process = subprocess.Popen([sys.executable, "-c", code, server.url, str(part)])
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 60_000) and time.monotonic() < until:
        time.sleep(0.005)
    process.kill()
    process.wait()
    server.conduct = Conduct()
    received = download(server.url, part, None, QUICK)
    assert 0 < received.resumed_at < len(OLD)
    assert part.read_bytes() == OLD
    assert fetching.hash_of(part) == received.sha256 == sha256(OLD)
