"""What was already checked, so that a second `hwm data check` only looks at what changed.

    <manifest>.checked.jsonl      one line a video, added as it is checked: path, size, time, version, result

A line holds for a file of the same path, size and time of modification, checked by the same version of the check. The
file is a memory and no record: lines that cannot be read are checked again, and deleting it is safe.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from hwm.data.checking import VideoCheck
from hwm.data.manifest import VideoFacts
from hwm.errors import DataError

CHECK_VERSION = 1
"""Raised whenever the check looks at something else, or calls it by another name."""

ANOTHER_PLACE = "free some space, or set annotations.manifest, data.manifest or folder to a place that can be written"
"""What to do where the manifest, or what lies beside it, cannot be written."""


class CheckLog:
    """Results of earlier checks; made for one manifest."""

    def __init__(self, manifest: Path) -> None:
        self.path = manifest.with_suffix(".checked.jsonl")
        self._lines: dict[str, bytes] = {}
        self._checks: dict[str, VideoCheck] = {}
        content = self.path.read_bytes() if self.path.is_file() else b""
        for line in content.splitlines():
            self._take(line)

    def get(self, path: Path, stat: os.stat_result) -> VideoCheck | None:
        """The result that still holds for a file as it is now, if there is one."""
        return self._checks.get(_key(path, stat))

    def add(self, path: Path, stat: os.stat_result, check: VideoCheck) -> None:
        """Keep a result; one that is not final (a time-out, a crash) is not kept."""
        if not check.is_final:
            return
        line = json.dumps({"key": _key(path, stat), "check": check._asdict()}).encode()
        self._take(line)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(b"\n" + line + b"\n")  # the line before may be torn
        except OSError as error:
            raise self._unwritable(error) from error

    def keep_only(self, files: Iterable[tuple[Path, os.stat_result]]) -> None:
        """Drop what was said of files that are no longer so."""
        wanted = [key for key in (_key(path, stat) for path, stat in files) if key in self._lines]
        if not self.path.is_file():
            return
        aside = self.path.with_suffix(".tmp")
        try:
            aside.write_bytes(b"".join(self._lines[key] + b"\n" for key in wanted))
            aside.replace(self.path)
        except OSError as error:
            raise self._unwritable(error) from error

    def _take(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            key, check = said["key"], VideoCheck(**said["check"])
            if check.facts is not None:
                VideoFacts.model_validate(check.facts)
        except (ValueError, TypeError, KeyError):  # torn by a crash, damaged, or another program's
            return
        if isinstance(key, str):
            self._lines[key], self._checks[key] = line, check

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"cannot keep results in {self.path}: {error.strerror or error}", fix=ANOTHER_PLACE)


def _key(path: Path, stat: os.stat_result) -> str:
    return json.dumps([CHECK_VERSION, str(path), stat.st_size, stat.st_mtime_ns])
