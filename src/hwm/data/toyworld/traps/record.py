"""What a trap is, and the file that lists the traps of a world.

In: nothing. Out: `Trap` records, `OUT/traps.json`. A test reads the list and asks a reader for what each trap says.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hwm.data.takes import read_json
from hwm.data.toyworld.formats import write_json
from hwm.errors import DataError

ORIGINALS = Path("truth") / "originals"
"""Undamaged videos of the takes whose videos are traps: `<take>/<file>`."""


class Trap(NamedTuple):
    """One way in which the files of a world are not what one would expect, and what to do about it."""

    name: str
    dataset: Literal["ego-exo4d", "gaze", "ego4d-lta", "ego4d-goalstep", "epic"]
    what: str
    where: tuple[str, ...]
    """Files below the world's folder, or rows as readers name them: `keystep_val.json#<take_uid>[3]`."""
    must: Literal["use", "exclude", "refuse"]
    """`use`: as if nothing were odd. `exclude`: leave out each row of `where`, counted, for `reason`. `refuse`: an
    error that names the file, and never wrong data."""
    reason: str | None
    """How the reason of the exclusion begins."""
    when: dict[str, str]
    """Settings under which it bites (`view`, `resolution`); empty means always."""
    how: str
    """What a correct reader does."""
    facts: dict[str, Any]
    """Numbers for a test; `original` is the undamaged video."""


def save_traps(out: Path, traps: list[Trap]) -> None:
    """Write `traps.json`.

    Raises:
        DataError: two traps have one name.
    """
    names = [trap.name for trap in traps]
    if len(set(names)) != len(names):
        raise DataError("two traps of a toy world have the same name", found=", ".join(sorted(names)))
    write_json(out / "traps.json", {"traps": [trap._asdict() for trap in traps]})


def load_traps(world: Path) -> tuple[Trap, ...]:
    """The traps of a world, in the order of its file.

    Raises:
        DataError: the world has none, or the file is damaged.
    """
    path = Path(world) / "traps.json"
    if not path.is_file():
        raise DataError(f"{world} has no traps", expected=str(path), fix="make the world with --traps")
    try:
        return tuple(Trap(**row | {"where": tuple(row["where"])}) for row in read_json(path)["traps"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not a list of traps", found=repr(error)) from error


def damage(out: Path, video: Path, make: Callable[[Path, Path], None]) -> str:
    """Put `make(original, video)` in the place of a video and keep the original.

    Other names (links) of the same file keep the original's content.

    Returns:
        Where the original now is, below `out`.
    """
    take = video.relative_to(out).parts[1]
    original = out / ORIGINALS / take / video.name
    original.parent.mkdir(parents=True, exist_ok=True)
    os.replace(video, original)
    make(original, video)
    return original.relative_to(out).as_posix()


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    write_json(path, content)
