"""Traps in the layout: which files a take has, and what `takes.json` says of them.

In: a drawn world and the takes that get them. Out: other files, another `takes.json`, `Trap`s.
"""

import shutil
from pathlib import Path
from typing import Any

from hwm.data.toyworld.actions import ego_video, link, video_folder
from hwm.data.toyworld.formats import TakePlan, stable_uuid
from hwm.data.toyworld.remux import side_by_side
from hwm.data.toyworld.traps.record import Trap
from hwm.data.toyworld.traps.rows import KeystepFiles

_EXTRA_STREAMS = (("1201-2", "slam-right", "slam-right"), ("211-1", "et", "eye-tracking"))
Takes = list[dict[str, Any]]
"""The content of `takes.json`."""


def _entry(takes: Takes, plan: TakePlan) -> dict[str, Any]:
    return next(take for take in takes if take["take_name"] == plan.name)


def side_cameras(out: Path, takes: Takes, plans: list[TakePlan], seed: int) -> list[Trap]:
    """The second grey camera and the eye camera, in every take that stays on disk."""
    for plan in plans:
        folder = video_folder(out, plan)
        streams = _entry(takes, plan)["frame_aligned_videos"][plan.aria]
        for stream, key, readable in _EXTRA_STREAMS:
            file = f"{plan.aria}_{stream}.mp4"
            # All side cameras show the same small grey picture: no reader may show any of them.
            link(folder / f"{plan.aria}_1201-1.mp4", folder / file)
            streams[key] = {
                "cam_id": plan.aria,
                "stream_id": stream,
                "readable_stream_id": readable,
                "clip_uid": stable_uuid(seed, "clip", plan.name, file),
                "relative_path": f"frame_aligned_videos/{file}",
            }
    names = [f"{video_folder(out, plan).relative_to(out).as_posix()}/{plan.aria}" for plan in plans]
    grey = tuple(f"{name}_{stream}.mp4" for name in names for stream in ("1201-1", "1201-2"))
    eyes = tuple(f"{name}_211-1.mp4" for name in names)
    rgb, ego = "the ego view is the stream 214-1", {"view": "ego"}
    return [
        Trap("grey-side-cameras", "ego-exo4d", "two grey cameras that sort first", grey, "use", None, ego, rgb, {}),
        Trap("eye-tracking-stream", "ego-exo4d", "a camera that films the eyes", eyes, "use", None, ego, rgb, {}),
    ]


def aria_names(out: Path, plans: list[TakePlan]) -> list[Trap]:
    """Head-worn cameras that are not called aria01."""
    traps = []
    for aria, name in (("aria", "aria-without-number"), ("aria02", "aria-other-than-01")):
        where = tuple(ego_video(out, plan).relative_to(out).as_posix() for plan in plans if plan.aria == aria)
        what = f"the head-worn camera is called {aria}"
        traps.append(Trap(name, "ego-exo4d", what, where, "use", None, {"view": "ego"}, "any name will do", {}))
    return traps


def collage(out: Path, plan: TakePlan) -> Trap:
    """The preview in which all views stand side by side."""
    folder = video_folder(out, plan)
    side_by_side((ego_video(out, plan), folder / "cam01.mp4"), folder / "ego_preview.mp4")
    where = ((folder / "ego_preview.mp4").relative_to(out).as_posix(),)
    how = "collage and best_exo of takes.json are no cameras"
    what = "a collage of the views lies beside them"
    return Trap("collage", "ego-exo4d", what, where, "use", None, {}, how, {"take": plan.name})


def absent(out: Path, takes: Takes, files: KeystepFiles, gone: TakePlan, unknown: TakePlan, dropped: TakePlan
) -> list[Trap]:  # fmt: skip
    """A take that is not on disk, one that takes.json does not know, one that it gives up."""
    shutil.rmtree(out / "takes" / gone.name)
    takes.remove(_entry(takes, unknown))
    _entry(takes, dropped)["is_dropped"] = True
    made = (
        ("take-not-on-disk", "annotated, in takes.json, but not downloaded", gone, "the video file is not on disk"),
        ("take-not-in-takes-json", "annotated and on disk, but not in takes.json", unknown,
         "the take is not in takes.json"),
        ("dropped-take", "takes.json says is_dropped", dropped, "the take is dropped in takes.json"),
    )  # fmt: skip
    return [
        Trap(name, "ego-exo4d", what, files.rows(plan), "exclude", reason, {}, "every row of the take is left out",
             {"take": plan.name})
        for name, what, plan, reason in made
    ]  # fmt: skip


def views_missing(out: Path, takes: Takes, files: KeystepFiles, plan: TakePlan) -> list[Trap]:
    """A take with another exo camera than the others and no best_exo; its small ego video is missing."""
    folder, entry = video_folder(out, plan), _entry(takes, plan)
    (folder / "cam01.mp4").rename(folder / "cam02.mp4")
    small = folder / "downscaled" / "448"
    videos = entry["frame_aligned_videos"]
    stream = videos.pop("cam01")["0"]
    videos["cam02"] = {"0": stream | {"cam_id": "cam02", "relative_path": "frame_aligned_videos/cam02.mp4"}}
    entry["best_exo"] = None
    rows, facts = files.rows(plan), {"take": plan.name}
    traps = [
        Trap("exo-view-missing", "ego-exo4d", "the take has cam02 but no cam01", rows, "exclude",
             "takes.json has no video of the view cam01", {"view": "cam01"}, "left out: cam02 is another view", facts),
        Trap("null-best-exo", "ego-exo4d", "best_exo is null", ("takes.json",), "use", None, {"view": "ego"},
             "a view is chosen by its name; best_exo is not read", facts),
    ]  # fmt: skip
    if small.is_dir():
        (small / ego_video(out, plan).name).unlink()
        (small / "cam01.mp4").rename(small / "cam02.mp4")
        traps.append(
            Trap("small-copy-missing", "ego-exo4d", "the ego view is not in downscaled/448", rows, "exclude",
                 "the video file is not on disk", {"view": "ego", "resolution": "448"},
                 "left out: the full video is another one", facts)
        )  # fmt: skip
    return traps
