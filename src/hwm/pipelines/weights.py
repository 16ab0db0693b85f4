"""`hwm weights list | fetch | verify`: released weight files in `$HWM_HOME/weights`, by name. No torch here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from os.path import expanduser
from pathlib import Path
from typing import NamedTuple

from hwm.engine.named_weights import weights_folder
from hwm.errors import ConfigError, HwmError, WeightsError
from hwm.terminal import counted
from hwm.weights import catalog
from hwm.weights.catalog import CATALOG, Release
from hwm.weights.fetch import Fetched, check, fetch
from hwm.weights.record import State, Watch, hash_of, read_record, state_of

Watching = Callable[[str], AbstractContextManager[Watch | None]]
"""A label → a context in which progress is shown."""


class Listed(NamedTuple):
    """One line of the list."""

    release: Release
    state: State
    size: int | None
    """Bytes on the disk; of a file that is absent, what the catalogue says."""


class Checked(NamedTuple):
    """One file that was checked. `outcome` says how in a word or two."""

    path: Path
    sha256: str
    outcome: str


def listed() -> list[Listed]:
    """The catalogue, with what is on the disk; nothing is hashed.

    Raises:
        WeightsError: the record of hashes is damaged.
    """
    folder = weights_folder()
    record = read_record(folder)
    lines = []
    for release in CATALOG:
        state = state_of(folder, release.file, record)
        size = release.size if state == "absent" else (folder / release.file).stat().st_size
        lines.append(Listed(release, state, size))
    return lines


def silent(label: str) -> AbstractContextManager[Watch | None]:
    """Shows nothing."""
    return nullcontext()


def fetch_all(names: Sequence[str], offline: bool, watching: Watching = silent) -> Iterator[Fetched]:
    """Bring released files to their place, one after the other; tells of each as soon as it is there.

    Args:
        names: catalogue names; all are looked up before the first is fetched.
        offline: no network call at all.
        watching: shows progress.

    Raises:
        ConfigError: an unknown name.
        WeightsError: a file cannot be had, or is not the file that it was.
    """
    releases = [catalog.require(name) for name in dict.fromkeys(names)]
    for release in releases:
        with watching(release.name) as watch:
            done = fetch(release, weights_folder(), offline=offline, watch=watch)
        yield done


def verify_all(targets: Sequence[str], watching: Watching = silent) -> list[Checked]:
    """Hash files and compare with what they were when they were first seen.

    Args:
        targets: catalogue names and paths; none means every fetched file that is there.
        watching: shows progress.

    Raises:
        ConfigError: a target is neither a catalogue name nor a file.
        WeightsError: files are not what they were; all are checked first, and all are named.
    """
    chosen = targets or [line.release.name for line in listed() if line.state != "absent"]
    checked, wrong = [], []
    for target in dict.fromkeys(chosen):
        with watching(Path(target).name) as watch:
            try:
                checked.append(_verify(target, watch))
            except WeightsError as error:
                wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise WeightsError("\n".join([f"{len(wrong)} of {counted(len(chosen), 'file')} failed:", *map(str, wrong)]))
    return checked


def _verify(target: str, watch: Watch | None) -> Checked:
    folder = weights_folder()
    release = catalog.find(target)
    path = Path(expanduser(target)) if release is None else folder / release.file
    if not path.is_file():
        raise _missing(target, path)
    if path.resolve().is_relative_to(folder.resolve()):
        file = path.resolve().relative_to(folder.resolve()).as_posix()
        owner = next((entry for entry in CATALOG if entry.file == file), None)
        fetched = check(file, folder, owner, watch)
        return Checked(path, fetched.sha256, fetched.outcome)
    return _compare_elsewhere(path, folder, watch)


def _compare_elsewhere(path: Path, folder: Path, watch: Watch | None) -> Checked:
    """A file outside of the weights folder: compared by its released name, where that has been seen."""
    sha256 = hash_of(path, watch)
    release = catalog.find_file(path.name)
    seen = None if release is None else read_record(folder).get(release.file)
    if release is None or seen is None:
        return Checked(path, sha256, "nothing to compare with")
    if seen.sha256 != sha256:
        raise WeightsError(
            f"{path} is not the {path.name} that was fetched",
            expected=f"sha256 {seen.sha256}, as recorded in {folder}",
            found=f"sha256 {sha256}",
            fix=f"use the one that {release.fetch_command} brings",
        )
    return Checked(path, sha256, f"same as {release.name}")


def _missing(target: str, path: Path) -> HwmError:
    release = catalog.find(target)
    if release is not None:
        return WeightsError(f"{target} is not here", expected=f"the file {path}", fix=release.fetch_command)
    near = catalog.near(target)
    return ConfigError(
        f"{target} is neither a catalogue name nor a file",
        expected=f"did you mean {' or '.join(near)}?" if near else None,
        found="nothing there",
        fix="all names: hwm weights list",
    )
