"""From a video to its measured gaze: which file, read once, and what is missing counted with its reason.

In: a folder, a video. Out: a `GazeTrack` or None; coverage of many videos (files by kind, steps known and unknown,
reasons). The folder is a dataset root with `takes/<take>/eye_gaze/`, a folder of takes, or a folder of CSVs named after
the videos. Gaze is measured in the picture of the camera on the head: exo views need a projection and have none here.
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwm.config import GazeFilesConfig
from hwm.data.exclusions import Exclusion
from hwm.data.gaze_ego4d import VIDEO_FPS, is_ego4d, read_gaze_ego4d
from hwm.data.gaze_tracks import GazeTrack, read_gaze_2d, read_rows
from hwm.data.transforms import centre_square, point_in_box
from hwm.data.video import CropBox, VideoInfo, num_grid_steps
from hwm.errors import ConfigError, DataError

ALIGNED_FOLDER = "frame_aligned_videos"
EGO_SUFFIX = "_214-1"
"""Ego-Exo4D's RGB camera on the head."""
PREFERRED = ("personalized_eye_gaze_2d.csv", "general_eye_gaze_2d.csv")
"""Ego-Exo4D's files, the better one first: it is calibrated to the person, and not there for all takes."""
NO_FILE = "no gaze file"
EGO4D = "ego4d"


class GazeCoverage(NamedTuple):
    """What is measured of V videos."""

    kinds: dict[str, int]
    """Videos by the kind of their gaze file."""
    missing: tuple[Exclusion, ...]
    """Videos without usable gaze; all their steps are "gaze unknown"."""
    steps_known: int
    """Grid steps (over whole videos, centre square) whose gaze is known."""
    steps_unknown: int
    """Grid steps without gaze: no file, no sample, too old, or outside the crop."""
    sha256: str
    """Over the names and bytes of all files read."""


class _Found(NamedTuple):
    """A video's gaze, or why there is none."""

    track: GazeTrack | None
    kind: str
    reason: str
    digest: str


class GazeFiles:
    """Finds, reads and remembers the gaze of videos.

    Args:
        folder: where the files are.
        config: how Ego4D's files are to be read.

    Raises:
        DataError: there is no such folder.
    """

    def __init__(self, folder: Path, config: GazeFilesConfig) -> None:
        if not folder.is_dir():
            raise DataError(
                f"the folder of gaze files {folder} does not exist",
                expected="a dataset root with takes/<take>/eye_gaze/, or a folder of CSVs named after the videos",
                fix="set gaze_files.folder",
            )
        self.folder, self._config = folder, config
        self._found: dict[Path, _Found] = {}

    def track(self, video: VideoInfo) -> GazeTrack | None:
        """The measured gaze of a video; None where there is no usable file.

        Raises:
            ConfigError: it is Ego4D's, and the direction of y was not given.
        """
        return self._find(video).track

    def file_of(self, video: Path) -> Path | str:
        """The gaze file of a video, or why there is none."""
        parts = video.parts
        if ALIGNED_FOLDER in parts[1:]:
            if not video.stem.endswith(EGO_SUFFIX):
                return "not the ego view"
            name = parts[parts.index(ALIGNED_FOLDER, 1) - 1]
        else:
            name = video.stem
        for written in dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))):
            folders = (self.folder / "takes" / written / "eye_gaze", self.folder / written / "eye_gaze")
            candidates = [folder / file for folder in folders for file in PREFERRED]
            for path in (*candidates, self.folder / f"{written}.csv"):
                if path.is_file():
                    return path
        return NO_FILE

    def coverage(self, videos: Sequence[VideoInfo], fps: float) -> GazeCoverage:
        """What is measured of these videos, on a grid of `fps` steps a second.

        Raises:
            ConfigError: as `track`.
        """
        found = [self._find(video) for video in videos]
        known, total = 0, 0
        for video, (track, *_) in zip(videos, found, strict=True):
            steps = num_grid_steps(video.duration_sec, fps)
            total += steps
            if track is not None:
                known += int(gaze_in_box(track, video, centre_square(video), np.arange(steps) / fps)[1].sum())
        missing = tuple(
            Exclusion(str(video.path), one.reason)
            for video, one in zip(videos, found, strict=True)
            if one.track is None
        )
        kinds = dict(sorted(Counter(one.kind for one in found if one.track is not None).items()))
        digest = hashlib.sha256(json.dumps(sorted(one.digest for one in found)).encode()).hexdigest()
        return GazeCoverage(kinds, missing, known, total - known, digest)

    def _find(self, video: VideoInfo) -> _Found:
        if video.path not in self._found:
            self._found[video.path] = self._read(video)
        return self._found[video.path]

    def _read(self, video: VideoInfo) -> _Found:
        path = self.file_of(video.path)
        if isinstance(path, str):
            return _Found(None, "", path, "")
        try:
            digest = f"{path.relative_to(self.folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
            if is_ego4d(read_rows(path)[0]):
                return self._read_ego4d(path, video, digest)
            if video.width != video.height:
                return _Found(None, "", "not the square picture that Aria gaze is given in", digest)
            kind = path.stem if path.name in PREFERRED else "eye_gaze_2d"
            return _Found(read_gaze_2d(path), kind, "", digest)
        except (DataError, OSError) as error:
            problem = error.problem if isinstance(error, DataError) else str(error)
            return _Found(None, "", f"gaze file cannot be used: {problem}", "")

    def _read_ego4d(self, path: Path, video: VideoInfo, digest: str) -> _Found:
        y_axis = self._config.ego4d_y
        if y_axis is None:
            raise ConfigError(
                f"{path} is Ego4D's gaze, and which way its y runs is documented nowhere",
                expected="gaze_files.ego4d_y=down (0 at the top of the picture) or up",
                fix="score both against a few videos with `hwm gaze-score`, and set the one that fits",
            )
        if abs(video.fps - VIDEO_FPS) > 0.1:
            return _Found(None, "", "not a canonical Ego4D video of 30 frames a second", digest)
        return _Found(read_gaze_ego4d(path, y_axis, self._config.ego4d_min_confidence), EGO4D, "", digest)


def gaze_in_box(
    track: GazeTrack, video: VideoInfo, box: CropBox, times_sec: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The gaze known at given times, as places in a crop of the video.

    Args:
        track: the video's gaze.
        video: gives the size of the picture that the crop is cut from.
        box: the crop, in upright source pixels.
        times_sec: [F] seconds after the first frame.

    Returns:
        Points [F, 2] in 0..1 of the crop, left to right and top to bottom (0 where unknown), and known [F]: there is
        a sample at or before the time, young enough, and inside the crop.
    """
    xy, valid = track.at(times_sec)
    points = np.stack(point_in_box(xy[:, 0] * video.width, xy[:, 1] * video.height, box), axis=1)
    known = valid & ((points >= 0) & (points < 1)).all(axis=1)
    return np.where(known[:, None], points, 0.0), known
