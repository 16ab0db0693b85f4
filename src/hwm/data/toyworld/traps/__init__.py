"""Everything that is odd, missing or broken in the real data sets, laid into a toy world on purpose.

In: a drawn world, before it is renamed to its place. Out: changed files and `traps.json`, which names each trap, where
it is and what a correct reader must do. The takes that get the traps are the same for every seed.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from hwm.config import ToyWorldConfig
from hwm.data.toyworld.formats import TakePlan, write_json
from hwm.data.toyworld.traps import gaze, segments, takes, videos
from hwm.data.toyworld.traps.ego4d import goalstep_traps, lta_traps
from hwm.data.toyworld.traps.epic import epic_traps
from hwm.data.toyworld.traps.record import Trap as Trap
from hwm.data.toyworld.traps.record import load_traps as load_traps
from hwm.data.toyworld.traps.record import save_traps
from hwm.data.toyworld.traps.rows import KeystepFiles

ARIAS = ("aria", "aria02", "aria06", "aria01")
"""Names of head-worn cameras, in turn over the takes of a world with traps."""


def set_traps(out: Path, plans: Sequence[TakePlan], config: ToyWorldConfig) -> None:
    """Lay all traps that the world's formats have room for, and write `traps.json`.

    Args:
        out: the world's folder, with takes, annotations and formats.
        plans: its takes, at least 12 of them for training and 3 for validation.
        config: of the world.
    """
    plans = list(plans)
    train, val = ([plan for plan in plans if plan.split == split] for split in ("train", "val"))
    found: list[Trap] = []
    # First what is made from whole takes, then what takes them away.
    if "lta" in config.formats:
        found += lta_traps(out, train, config.seed)
    if "goalstep" in config.formats:
        found += goalstep_traps(out, train, val, config.seed)
    if "epic" in config.formats:
        found += epic_traps(out, plans)
    files = KeystepFiles(out, config.seed)
    found += segments.odd_but_used(files, train[0])
    found.append(segments.after_the_end(files, train[11]))
    found.append(segments.only_in_validation(files, val[0]))
    found += segments.unusable(files, val[1])
    rows = json.loads((out / "takes.json").read_text(encoding="utf-8"))
    found += takes.side_cameras(out, rows, [plan for plan in plans if plan is not train[7]], config.seed)
    found += takes.aria_names(out, plans)
    found.append(takes.collage(out, train[1]))
    found += gaze.damaged_rows(out, train[1])
    found.append(gaze.missing_file(out, rows, train[10]))
    found += [
        videos.rotated(out, train[2]),
        videos.variable_rate(out, train[3], config.fps),
        videos.late_start(out, train[4]),
        videos.truncated(out, train[5], files),
        videos.lost_frames(out, train[6], config.fps),
        videos.claimed_length(out, train[11]),
    ]
    found += takes.absent(out, rows, files, gone=train[7], unknown=train[8], dropped=train[9])
    found += takes.views_missing(out, rows, files, train[10])
    files.save()
    write_json(out / "takes.json", rows)
    save_traps(out, found)
