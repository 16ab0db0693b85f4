"""One file over HTTPS into a `.part` file: resumable, never mixed from two versions, never waiting for ever.

A URL → the whole file's bytes in the part file, and their SHA-256. Beside the part stands `….part.json`: which file of
the server it is a part of (ETag or date), how many bytes are certain to be on the disk, and the hash of those. A part
that does not fit its note, or a server that has another file by now, means starting anew. No torch here.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from hwm.errors import WeightsError
from hwm.terminal import readable_bytes
from hwm.weights.record import Watch, replace_text

READ_BYTES = 1 << 20
SAVE_EVERY_BYTES = 64 << 20
SPARE_BYTES = 64 << 20
"""Room that a download leaves on the disk."""
MAX_RESTARTS = 3
_TRY_AGAIN = (408, 416, 425, 429, 500, 502, 503, 504)
_TROUBLE = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class Limits:
    """When a download gives up.

    Attributes:
        timeout_sec: silence after which a connection is dropped.
        slow_sec: over this time at least `slow_bytes` must arrive.
        slow_bytes: see `slow_sec`.
        attempts: connections in a row that bring the file less than `slow_bytes` further.
        wait_sec: pause before the second attempt; doubles with each, up to a minute.
    """

    timeout_sec: float = 30.0
    slow_sec: float = 60.0
    slow_bytes: int = 64 << 10
    attempts: int = 5
    wait_sec: float = 1.0


class Received(NamedTuple):
    """A whole file."""

    sha256: str
    size: int
    resumed_at: int
    """Bytes that an earlier download had left."""


def download(url: str, part: Path, size: int | None, limits: Limits, watch: Watch | None = None) -> Received:
    """Download a file, going on where an earlier download of the same file stopped.

    Args:
        url: `https://…` (or `http://…`, for a server of your own).
        part: where the bytes go; stays, with its note, where the download fails.
        size: bytes that the file must have; None believes the server.
        limits: when to give up.
        watch: told bytes done and in all.

    Raises:
        WeightsError: no such file, another size, no room on the disk, or the connection failed too often.
    """
    failures = restarts = 0
    with _Part(part, url) as growing:
        resumed_at = furthest = growing.note.done
        while not growing.is_whole:
            try:
                _receive(growing, url, size, limits, watch)
            except _AnotherFileError as error:
                growing.start_anew()
                furthest, restarts = 0, restarts + 1
                if restarts > MAX_RESTARTS:
                    raise _gave_up(url, f"the file kept changing: {error}", growing) from error
            except _TROUBLE as error:
                failures = 1 if growing.note.done - furthest >= limits.slow_bytes else failures + 1
                furthest = max(furthest, growing.note.done)
                if failures >= limits.attempts:
                    raise _gave_up(url, _plain(error), growing) from error
                time.sleep(min(limits.wait_sec * 2 ** (failures - 1), 60.0))
        return Received(growing.sha256, growing.note.done, resumed_at)


class _AnotherFileError(Exception):
    """The server has another file than the one that the part is of."""


@dataclass(frozen=True)
class _Note:
    """What is known of a part."""

    url: str
    validator: str = ""
    size: int = -1
    done: int = 0
    sha256: str = ""


class _Part:
    """The part file and its note; used in a `with` block, which saves both however it ends."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.note_path = path, path.with_name(f"{path.name}.json")
        self.note = _Note(url)
        self._digest = hashlib.sha256()
        self._saved = 0

    def __enter__(self) -> "_Part":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("r+b" if self.path.exists() else "w+b")
            self._take_up()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.save()
            self._file.close()
        except OSError as failure:
            if error is None:
                raise _unwritable(self.path, failure) from failure

    @property
    def is_whole(self) -> bool:
        return self.note.done == self.note.size

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def start_anew(self) -> None:
        """Forgets all bytes."""
        self.begin("", -1)

    def begin(self, validator: str, size: int) -> None:
        """Starts with the first byte of a file."""
        self._digest = hashlib.sha256()
        self._file.seek(0)
        self._file.truncate()
        self.note = _Note(self.note.url, validator, size)
        self.save()

    def append(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._digest.update(chunk)
        self.note = _Note(self.note.url, self.note.validator, self.note.size, self.note.done + len(chunk))
        if self.note.done - self._saved >= SAVE_EVERY_BYTES:
            self.save()

    def save(self) -> None:
        """Brings the bytes to the disk, and then the note that says so."""
        self._file.flush()
        os.fsync(self._file.fileno())
        note = asdict(self.note) | {"sha256": self.sha256}
        replace_text(self.note_path, json.dumps(note) + "\n")
        self._saved = self.note.done

    def _take_up(self) -> None:
        """Goes on with an earlier part where its note and its bytes agree; else the part is empty."""
        note = _read_note(self.note_path)
        if note is None or note.url != self.note.url or not note.validator:
            return self.start_anew()
        left = note.done
        while left and (chunk := self._file.read(min(left, READ_BYTES))):
            self._digest.update(chunk)
            left -= len(chunk)
        if left or self.sha256 != note.sha256:
            return self.start_anew()
        self._file.seek(note.done)
        self._file.truncate()
        self.note, self._saved = note, note.done


def _read_note(path: Path) -> _Note | None:
    try:
        note = _Note(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    texts = all(isinstance(text, str) for text in (note.url, note.validator, note.sha256))
    numbers = isinstance(note.done, int) and isinstance(note.size, int) and 0 <= note.done <= note.size
    return note if texts and numbers else None


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from a protected connection to an open one."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith(("https://", f"{req.type}://")):
            raise WeightsError(f"{req.full_url} is redirected", expected="an https address", found=newurl[:200])
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(part: _Part, url: str, size: int | None, limits: Limits, watch: Watch | None) -> None:
    """One connection: takes what comes, up to the end of the file."""
    headers = {"User-Agent": "hwm", "Accept-Encoding": "identity"}
    if not part.note.validator:
        part.start_anew()  # nothing would tell whether the rest is of the same file
    if part.note.done:
        headers |= {"Range": f"bytes={part.note.done}-", "If-Range": part.note.validator}
    opener = urllib.request.build_opener(_SafeRedirects())
    try:
        response: http.client.HTTPResponse = opener.open(
            urllib.request.Request(url, headers=headers), timeout=limits.timeout_sec
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise _AnotherFileError("it has fewer bytes than before") from error
        if error.code in _TRY_AGAIN:
            raise ConnectionError(f"the server answers {error.code}") from error
        raise WeightsError(
            f"{url} cannot be had", expected="the file", found=f"the server answers {error.code} {error.reason}",
            fix="check the address in a browser; the publisher may have moved the file",
        ) from error  # fmt: skip
    with response:
        _check_answer(part, response, size)
        _check_room(part)
        _copy(part, response, limits, watch)
    if not part.is_whole:
        raise ConnectionError(f"the connection ended at byte {part.note.done} of {part.note.size}")


def _check_answer(part: _Part, response: http.client.HTTPResponse, size: int | None) -> None:
    """Whether what comes is the file, and from which byte on; a part of another file is given up."""
    url, headers = part.note.url, response.headers
    if headers.get_content_type() == "text/html" or headers.get("Content-Encoding", "identity") != "identity":
        raise WeightsError(
            f"{url} gives no weight file", expected="plain bytes",
            found=f"{headers.get('Content-Type')}, encoding {headers.get('Content-Encoding', 'none')}",
            fix="a proxy or a log-in page may stand in between: fetch the file with a browser",
        )  # fmt: skip
    if response.status == 206:
        _check_range(part, headers)
    else:
        length = headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) == 0:
            raise WeightsError(f"{url} does not tell its length", expected="Content-Length", found=length or "none")
        part.begin(_validator(headers), int(length))
    if size is not None and part.note.size != size:
        found = part.note.size
        part.start_anew()
        raise WeightsError(
            f"{url} has another size than the catalogue says", expected=f"{size} bytes", found=f"{found} bytes",
            fix="the publisher may have replaced the file; do not use it before you know why",
        )  # fmt: skip


def _check_range(part: _Part, headers: Message) -> None:
    asked = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
    if asked is None or (int(asked[1]), int(asked[3])) != (part.note.done, part.note.size):
        raise _AnotherFileError(
            f"asked for byte {part.note.done} of {part.note.size}, got {headers.get('Content-Range')}"
        )
    # A server that ignores If-Range would send the tail of a new file: its tag gives it away. A date may be left out.
    now = _validator(headers)
    if now != part.note.validator and (now or part.note.validator.startswith('"')):
        raise _AnotherFileError(f"it was {part.note.validator}, it is {now or 'without a tag'}")


def _validator(headers: Message) -> str:
    """What tells this file from another at the same address: a strong ETag, else the date of its last change."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _check_room(part: _Part) -> None:
    need, free = part.note.size - part.note.done + SPARE_BYTES, shutil.disk_usage(part.path.parent).free
    if free < need:
        raise WeightsError(
            f"there is no room for {part.note.url}", expected=f"{readable_bytes(need)} free in {part.path.parent}",
            found=readable_bytes(free), fix="make room, or set HWM_HOME to a folder on a larger disk",
        )  # fmt: skip


def _copy(part: _Part, response: http.client.HTTPResponse, limits: Limits, watch: Watch | None) -> None:
    since, at_since = time.monotonic(), part.note.done
    while chunk := response.read1(READ_BYTES):
        try:
            part.append(chunk)
        except OSError as error:
            raise _unwritable(part.path, error) from error
        if watch is not None:
            watch(part.note.done, part.note.size)
        if time.monotonic() - since >= limits.slow_sec:
            if part.note.done - at_since < limits.slow_bytes:
                raise TimeoutError(f"{part.note.done - at_since} bytes in {limits.slow_sec:.0f} s")
            since, at_since = time.monotonic(), part.note.done


def _gave_up(url: str, reason: str, part: _Part) -> WeightsError:
    whole = f" of {part.note.size}" if part.note.size >= 0 else ""
    return WeightsError(
        f"{url} could not be downloaded", expected="the whole file",
        found=f"{reason} (have {part.note.done} bytes{whole})",
        fix=f"run the command again: it goes on where it stopped ({part.path})",
    )  # fmt: skip


def _unwritable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(
        f"{path} cannot be written", found=str(error),
        fix="make room, or set HWM_HOME to a folder that can be written; then fetch again: it goes on where it stopped",
    )  # fmt: skip


def _plain(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
