"""Traps in the videos of takes: each is the ego view of one take, whose original is kept.

In: a drawn world and the takes that get them. Out: other video files, `Trap`s.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from hwm.data.toyworld.actions import ego_video
from hwm.data.toyworld.formats import TakePlan
from hwm.data.toyworld.remux import shifted, turned, with_dropped_frames
from hwm.data.toyworld.traps.record import Trap, damage
from hwm.data.toyworld.traps.rows import KeystepFiles

LATE_SEC = 2.5
ROTATION = 90
LOST_FRAMES = 40
CLAIMED = 3
"""The header claims this many times the true length."""
_FULL_EGO = {"view": "ego", "resolution": "full"}


def kept_frames(num_frames: int) -> np.ndarray:
    """[F] bool: which frames of the variable-rate video are there; all at first, later about half, in bursts."""
    rng = np.random.default_rng(num_frames)
    kept = rng.random(num_frames) < np.linspace(1.2, 0.3, num_frames)
    kept[0] = kept[-1] = True
    return kept


def _laid(out: Path, plan: TakePlan, make: Callable[[Path, Path], None]) -> tuple[tuple[str], dict[str, str]]:
    """Where the damaged file is, and where its original."""
    video = ego_video(out, plan)
    return (video.relative_to(out).as_posix(),), {"take": plan.name, "original": damage(out, video, make)}


def rotated(out: Path, plan: TakePlan) -> Trap:
    """A display matrix."""
    where, facts = _laid(out, plan, lambda original, video: turned(original, video, ROTATION))
    return Trap(
        "rotation-metadata", "ego-exo4d", "the stored picture lies on its side, a display matrix turns it upright",
        where, "use", None, _FULL_EGO, "the picture is turned upright before anything is cut from it",
        facts | {"rotation": ROTATION},
    )  # fmt: skip


def variable_rate(out: Path, plan: TakePlan, fps: int) -> Trap:
    """Frames that were not recorded."""
    kept = kept_frames(round(plan.script.duration_sec * fps))
    where, facts = _laid(out, plan, lambda original, video: with_dropped_frames(original, video, kept))
    return Trap(
        "variable-frame-rate", "ego-exo4d", "some frames are missing, the others stand at their own times", where,
        "use", None, _FULL_EGO, "frames are found by timestamp, never by counting with an average rate",
        facts | {"kept_frames": np.flatnonzero(kept).tolist()},
    )  # fmt: skip


def late_start(out: Path, plan: TakePlan) -> Trap:
    """A stream whose first timestamp is not 0."""
    where, facts = _laid(out, plan, lambda original, video: shifted(original, video, LATE_SEC))
    return Trap(
        "non-zero-stream-start", "ego-exo4d", f"the first frame has the timestamp {LATE_SEC} s", where, "use", None,
        _FULL_EGO, "seconds count from the first frame", facts | {"late_sec": LATE_SEC},
    )  # fmt: skip


def truncated(out: Path, plan: TakePlan, files: KeystepFiles) -> Trap:
    """A broken-off download."""
    where, facts = _laid(out, plan, cut_off)
    return Trap(
        "truncated-mp4", "ego-exo4d", "a broken-off download: the index (moov) at the end of the file is missing",
        files.rows(plan), "exclude", "unreadable video: ", _FULL_EGO, "every row of the take is left out",
        facts | {"file": where[0]},
    )  # fmt: skip


def lost_frames(out: Path, plan: TakePlan, fps: int) -> Trap:
    """An index that promises frames whose data are zeros."""
    where, facts = _laid(out, plan, lambda original, video: zero_packets(original, video, LOST_FRAMES))
    whole = round(plan.script.duration_sec * fps) - LOST_FRAMES
    return Trap(
        "over-reported-frames", "ego-exo4d", f"the file promises {LOST_FRAMES} frames more than can be decoded", where,
        "refuse", None, _FULL_EGO, "frames before the gap are right; one after it is an error that names the file, "
        "never a wait and never another frame", facts | {"decodable_frames": whole},
    )  # fmt: skip


def claimed_length(out: Path, plan: TakePlan) -> Trap:
    """A header that claims a longer video."""
    where, facts = _laid(out, plan, claim_longer)
    return Trap(
        "over-reported-duration", "ego-exo4d", f"the header claims {CLAIMED} times the length", where, "use", None,
        _FULL_EGO, "the length is where the last frame ends", facts | {"duration_sec": plan.script.duration_sec},
    )  # fmt: skip


def cut_off(source: Path, target: Path) -> None:
    """What an mp4 with its index at the end looks like when its download broke off: no `moov`, half of the data."""
    data, place, kept = source.read_bytes(), 0, b""
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] != b"moov":
            kept += data[place : place + size]
        place += size
    target.write_bytes(kept[: len(kept) // 2])


def zero_packets(source: Path, target: Path, count: int) -> None:
    """Set the data of the last `count` frames to zeros; the index still names them."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in packets[-count:]:
        data[position : position + size] = bytes(size)
    target.write_bytes(data)


def claim_longer(source: Path, target: Path) -> None:
    """Multiply the length in the three headers that tell it."""
    data = bytearray(source.read_bytes())
    for box, offset in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)):
        place = data.index(box) + 4 + offset
        (value,) = struct.unpack(">I", data[place : place + 4])
        data[place : place + 4] = struct.pack(">I", value * CLAIMED)
    target.write_bytes(data)
