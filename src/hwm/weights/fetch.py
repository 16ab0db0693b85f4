"""Bringing a catalogue entry to its place in the weights folder, and holding it to the hash it had the first time.

A `Release` and a folder → the file at `folder / release.file`, checked against the publisher's hash where there is one
and against `sha256.json`. A file is never replaced: what does not fit is an error that names both. No torch here.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hwm.errors import WeightsError
from hwm.terminal import readable_bytes
from hwm.weights.catalog import HUB_CONFIG, HUB_WEIGHTS, Release
from hwm.weights.download import SPARE_BYTES, Limits, download
from hwm.weights.record import RECORD_NAME, Watch, hash_of, locked, read_record, write_seen

Outcome = Literal["fetched", "verified", "recorded"]
_STAGING = ".fetching"


@dataclass(frozen=True)
class Fetched:
    """A file in its place.

    Attributes:
        outcome: `fetched` now; `verified`: it was there with the hash that it had before; `recorded`: it was there, and
            its hash was taken for the first time.
    """

    path: Path
    sha256: str
    size: int
    outcome: Outcome


def fetch(
    release: Release,
    folder: Path,
    *,
    offline: bool = False,
    watch: Watch | None = None,
    limits: Limits | None = None,
    endpoint: str | None = None,
) -> Fetched:
    """Bring a release into the weights folder; a file that is there is checked and not fetched again.

    Args:
        release: what to fetch.
        folder: the weights folder.
        offline: no network call at all; a file that is not there is an error that says where to put it.
        watch: told bytes done and in all (files from Hugging Face show that library's own bar).
        limits: when to give up; None takes the defaults.
        endpoint: another Hugging Face server than the public one.

    Raises:
        WeightsError: it cannot be had, another process is fetching it, or its hash is another one than before.
    """
    target = folder / release.file
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            return _bring(release, folder, offline, watch, limits or Limits(), endpoint)
        if release.repo is not None and not target.with_name(HUB_CONFIG).exists():
            if offline:
                raise _offline(release, target)
            _from_hub(release, target, (HUB_CONFIG,), endpoint)
        return check(release.file, folder, release, watch)


def check(file: str, folder: Path, release: Release | None, watch: Watch | None = None) -> Fetched:
    """Hash a file of the weights folder and compare; the first time, record.

    Args:
        file: its place below the folder.
        folder: the weights folder.
        release: what it should be, where known.
        watch: told bytes done and in all.

    Raises:
        WeightsError: it is missing, or its hash is another one than before.
    """
    path = folder / file
    sha256 = hash_of(path, watch)
    known = file in read_record(folder)
    wrong = _differs(file, folder, release, sha256)
    if wrong is not None:
        raise WeightsError(
            f"{path} is not the file that it was", expected=wrong, found=f"sha256 {sha256}",
            fix=f"move it away and {release.fetch_command if release else 'get it again'}",
        )  # fmt: skip
    write_seen(folder, file, sha256)
    return Fetched(path, sha256, path.stat().st_size, "verified" if known else "recorded")


def _bring(
    release: Release, folder: Path, offline: bool, watch: Watch | None, limits: Limits, endpoint: str | None
) -> Fetched:
    target = folder / release.file
    if offline:
        raise _offline(release, target)
    if release.repo is None:
        part = target.with_name(f"{target.name}.part")
        sha256 = download(release.url, part, release.size, limits, watch).sha256
    else:
        part = _from_hub(release, target, (HUB_CONFIG, HUB_WEIGHTS), endpoint)
        sha256 = hash_of(part, watch)
    wrong = _differs(release.file, folder, release, sha256)
    if wrong is not None:
        rejected = target.with_name(f"{target.name}.rejected")
        part.replace(rejected)
        raise WeightsError(
            f"{release.url} gave another file than before", expected=wrong,
            found=f"sha256 {sha256}, kept as {rejected}",
            fix=f"find out why. To accept the new file, remove {release.file!r} from {folder / RECORD_NAME}, "
            f"rename it to {target.name}, and hwm weights verify {release.name}",
        )  # fmt: skip
    part.replace(target)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)
    shutil.rmtree(target.parent / _STAGING, ignore_errors=True)
    write_seen(folder, release.file, sha256)
    return Fetched(target, sha256, target.stat().st_size, "fetched")


def _differs(file: str, folder: Path, release: Release | None, sha256: str) -> str | None:
    """The hash that a file should have, told in words, where it has another."""
    seen = read_record(folder).get(file)
    if release is not None and release.sha256 is not None and release.sha256 != sha256:
        return f"sha256 {release.sha256}, as its publisher states"
    if seen is not None and seen.sha256 != sha256:
        return f"sha256 {seen.sha256}, as recorded in {folder / RECORD_NAME}"
    return None


def _from_hub(release: Release, target: Path, names: tuple[str, ...], endpoint: str | None) -> Path:
    """Files of a Hugging Face repository, by its own client, which resumes too; the last of them is returned.

    Small files go to their place at once; the weights stay aside until their hash has been compared.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    assert release.repo is not None
    staging = target.parent / _STAGING
    staging.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(staging).free
    if release.size is not None and HUB_WEIGHTS in names and free < release.size + SPARE_BYTES:
        raise WeightsError(
            f"there is no room for {release.name}", expected=f"{readable_bytes(release.size)} free in {target.parent}",
            found=readable_bytes(free), fix="make room, or set HWM_HOME to a folder on a larger disk",
        )  # fmt: skip
    path = staging
    for name in names:
        try:
            path = Path(hf_hub_download(release.repo, name, local_dir=staging, endpoint=endpoint))
        except (OSError, HTTPError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{name} of {release.repo} could not be downloaded", found=f"{type(error).__name__}: {error}"[:500],
                fix=f"run {release.fetch_command} again: it goes on where it stopped",
            ) from error  # fmt: skip
        if name == HUB_CONFIG:
            path = path.replace(target.with_name(HUB_CONFIG))
    return path


def _offline(release: Release, target: Path) -> WeightsError:
    places = [f"{release.url} -> {target}"]
    if release.repo is not None:
        places.append(f"{release.url.removesuffix(HUB_WEIGHTS)}{HUB_CONFIG} -> {target.with_name(HUB_CONFIG)}")
    return WeightsError(
        f"{release.name} is not here, and this is offline",
        expected=f"the file {target}",
        found="nothing there",
        fix="\n    ".join(["fetch on a machine with a network, and put", *places]),
    )
