"""Stage-1 clips: which videos, and which steps and crop of each, as pure functions of (seed, epoch, index).

In: files, folders and lists of videos. Out: a `VideoSet` (usable videos, everything left out with its reason) and a
`ClipPlan` whose `ClipRequest`s do not depend on workers, devices or history, so a resumed run equals a straight one.
"""

import csv
import glob as globbing
import hashlib
from collections.abc import Callable, Sequence
from os.path import expanduser, realpath
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwm.config import AugmentConfig
from hwm.data.decoding import NOT_THERE, TIME_TOLERANCE_SEC
from hwm.data.exclusions import Exclusion, check_coverage, with_examples
from hwm.data.manifest import known_videos
from hwm.data.transforms import centre_square, random_box
from hwm.data.video import CropBox, VideoInfo, num_grid_steps
from hwm.errors import DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"})
"""Files of a folder that count as videos."""

LIST_SUFFIXES = frozenset({".txt", ".csv"})
"""Files that name videos."""

VALIDATION_CLIPS_PER_VIDEO = 4
"""At most this many clips of a video in `ClipPlan.validation`."""


class NamedVideos(NamedTuple):
    """The files that some sources name; expected = len(paths) + len(excluded)."""

    paths: tuple[Path, ...]
    excluded: tuple[Exclusion, ...]
    """Those that were named before."""
    expected: int


class VideoSet(NamedTuple):
    """The videos of some sources; expected = len(videos) + len(excluded)."""

    videos: tuple[VideoInfo, ...]
    excluded: tuple[Exclusion, ...]
    expected: int


class ClipRequest(NamedTuple):
    """One clip to be read."""

    video: VideoInfo
    first_step: int
    """Index on the time grid (step i is at i / fps seconds); negative steps are padding."""
    num_steps: int
    box: CropBox
    """The crop of all its views, in upright source pixels."""


def name_videos(sources: Sequence[str | Path], glob: str) -> NamedVideos:
    """The files that `find_videos` would probe; see there.

    Raises:
        DataError: a source is missing, empty or malformed.
    """
    named = [path for source in sources for path in _paths_of(Path(source), glob)]
    fresh: list[Path] = []
    excluded: list[Exclusion] = []
    seen: set[str] = set()
    for path in named:
        real = realpath(path)  # Path.resolve would raise for links that lead in a circle
        if real in seen:
            excluded.append(Exclusion(str(path), "named more than once"))
        else:
            seen.add(real)
            fresh.append(path)
    return NamedVideos(tuple(fresh), tuple(excluded), len(named))


def find_videos(
    sources: Sequence[str | Path],
    glob: str,
    min_duration_sec: float,
    manifest: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> VideoSet:
    """Collect and probe the videos named by files, folders, `.txt` lists and `.csv` lists, in any mixture.

    Args:
        sources: a video file; a folder, searched with `glob`; a `.txt` list (one path a line, `#` starts a comment);
            a `.csv` list (a column `path`, or V-JEPA's headerless `path label` lines). Relative paths in a list are
            relative to the list. Order is kept; folders are sorted.
        glob: pattern for folders, e.g. `**/*_214-1.mp4`. Hidden files and files without a video suffix do not count.
        min_duration_sec: videos that are not longer are excluded: none of their frames is on screen at this time.
        manifest: where the videos' facts stand; None probes the videos.
        on_progress: called with how many were probed, of how many; what it raises ends the search.

    Returns:
        The videos, and for each name that gave none (unreadable, missing, too short, named twice) an `Exclusion`.

    Raises:
        DataError: a source is missing, empty or malformed, no video is left, or one is not in the manifest.
    """
    named = name_videos(sources, glob)
    excluded = list(named.excluded)
    videos: list[VideoInfo] = []
    for path, probed in zip(named.paths, known_videos(named.paths, manifest, on_progress), strict=True):
        if isinstance(probed, str):
            excluded.append(Exclusion(str(path), probed))
        elif probed.duration_sec <= min_duration_sec + TIME_TOLERANCE_SEC:
            excluded.append(Exclusion(str(path), f"not longer than {min_duration_sec:g} s"))
        else:
            videos.append(probed)
    check_coverage("the search for videos", named.expected, len(videos), len(excluded))
    if not videos:
        listed = any(Path(source).suffix.lower() in LIST_SUFFIXES for source in sources)
        elsewhere = listed and any(exclusion.reason == NOT_THERE for exclusion in excluded)
        raise DataError(
            f"no usable video in {', '.join(str(source) for source in sources) or 'an empty list of sources'}",
            expected=f"at least one readable video of more than {min_duration_sec:g} s",
            found=with_examples(excluded) or "nothing",
            fix="relative paths in a list start at the list's folder" if elsewhere else None,
        )
    return VideoSet(tuple(videos), tuple(excluded), named.expected)


class ClipPlan:
    """Which clip of which video, for every epoch: a pure function of (seed, epoch, index).

    Args:
        videos: V videos; one clip of each an epoch.
        fps: grid steps a second.
        num_steps: steps in a clip.
        augment: random crop boxes; None takes the centre square.
        seed: seed of starts, boxes and order.
        num_views: with `augment`, fixed boxes a video of which each clip gets one; 0 draws a new box for each clip.

    Raises:
        DataError: a video is too short for one clip.
    """

    def __init__(
        self,
        videos: Sequence[VideoInfo],
        fps: float,
        num_steps: int,
        augment: AugmentConfig | None,
        seed: int,
        num_views: int = 0,
    ) -> None:
        self.videos, self.fps, self.num_steps = tuple(videos), fps, num_steps
        self._augment, self._seed, self._num_views = augment, seed, num_views
        for video in self.videos:
            if num_grid_steps(video.duration_sec, fps) < num_steps:
                raise DataError(
                    f"{video.path} is too short for a clip",
                    expected=f"{num_steps} steps at {fps:g} a second (more than {(num_steps - 1) / fps:g} s)",
                    found=f"{video.duration_sec:.2f} s",
                    fix="lower data.num_steps, or leave the video out",
                )

    def __len__(self) -> int:
        return len(self.videos)

    def request(self, epoch: int, index: int) -> ClipRequest:
        """The clip of video `index` in `epoch`: start uniform over the grid steps where a whole clip fits."""
        video = self.videos[index]
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch, index]))
        first_step = int(rng.integers(0, self._num_starts(video)))
        if self._augment is None:
            box = centre_square(video)
        elif self._num_views:
            box = fixed_box(video, self._augment, self._seed, int(rng.integers(0, self._num_views)))
        else:
            box = random_box(video, self._augment.scale, self._augment.ratio, rng)
        return ClipRequest(video, first_step, self.num_steps, box)

    def order(self, epoch: int) -> np.ndarray:
        """The order of the videos in an epoch: a permutation [V] of 0..V-1, int64."""
        # A fourth word sets it apart from request(): numpy pads seeds with zeros, so [s, e] would equal [s, e, 0].
        return np.random.default_rng(np.random.SeedSequence([self._seed, epoch, 0, 1])).permutation(len(self.videos))

    def validation(self) -> tuple[ClipRequest, ...]:
        """The fixed clips of validation: up to 4 a video, evenly spaced, centre square; the same every time."""
        requests = []
        for video in self.videos:
            num_starts = self._num_starts(video)
            num_clips = min(VALIDATION_CLIPS_PER_VIDEO, 1 + (num_starts - 1) // self.num_steps)
            # The middle of each of num_clips equal shares of the starts, so that one clip sits in the middle.
            starts = [(2 * share + 1) * num_starts // (2 * num_clips) for share in range(num_clips)]
            box = centre_square(video)
            requests += [ClipRequest(video, start, self.num_steps, box) for start in starts]
        return tuple(requests)

    def _num_starts(self, video: VideoInfo) -> int:
        return num_grid_steps(video.duration_sec, self.fps) - self.num_steps + 1


def fixed_box(video: VideoInfo, augment: AugmentConfig, seed: int, view: int) -> CropBox:
    """Augmented view `view` of a video: a function of seed, view, and the video's file name, length and size.

    The folder does not count, so that a data set may move. Many data sets give all takes the same file names; the
    length tells those apart.
    """
    named = f"{video.path.name}\n{video.duration_sec!r}".encode(errors="surrogateescape")
    entropy = int.from_bytes(hashlib.sha256(named).digest()[:8], "little")
    rng = np.random.default_rng(np.random.SeedSequence([seed, view, entropy, 2]))
    return random_box(video, augment.scale, augment.ratio, rng)


def _paths_of(source: Path, glob: str) -> list[Path]:
    if source.is_dir():
        # The glob module, unlike Path.glob, follows links to folders: takes are often linked in.
        found = sorted(globbing.glob(glob, root_dir=source, recursive=True))
        paths = [source / name for name in found if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        paths = [path for path in paths if not path.is_dir()]
        if not paths:
            raise DataError(
                f"no videos in the folder {source}",
                expected=f"files that match {glob!r} with a video suffix ({', '.join(sorted(VIDEO_SUFFIXES))})",
                found="none",
            )
        return paths
    if not source.exists():
        raise DataError(
            f"the video source {source} does not exist", expected="a video, a folder, or a .txt or .csv list"
        )
    if source.suffix.lower() == ".txt":
        return _relative_to(source, _txt_entries(source))
    if source.suffix.lower() == ".csv":
        return _relative_to(source, _csv_entries(source))
    return [source]


def _relative_to(source: Path, entries: list[str]) -> list[Path]:
    if not entries:
        raise DataError(f"the video list {source} is empty", expected="at least one path")
    return [source.parent / expanduser(entry) for entry in entries]


def _lines(source: Path) -> list[str]:
    try:
        return source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the video list {source}: {error}", expected="text in UTF-8") from error


def _txt_entries(source: Path) -> list[str]:
    lines = (line.strip() for line in _lines(source))
    return [line for line in lines if line and not line.startswith("#")]


def _csv_entries(source: Path) -> list[str]:
    lines = [line for line in _lines(source) if line.strip()]
    if not lines:
        return []
    header = [name.strip().lower() for name in next(csv.reader(lines[:1]))]
    if "path" in header:
        column = header.index("path")
        rows = list(csv.reader(lines[1:]))
        for number, row in enumerate(rows, start=2):
            if len(row) <= column or not row[column].strip():
                raise DataError(f"row {number} of the video list {source} has no path", found=",".join(row))
        return [row[column].strip() for row in rows]
    entries = [line.strip().rsplit(maxsplit=1) for line in lines]
    if all(len(entry) == 2 and entry[1].lstrip("-").isdigit() for entry in entries):
        return [entry[0] for entry in entries]
    raise DataError(
        f"the video list {source} has no column `path`",
        expected="a header line with `path`, or lines of `path label` without a header",
        found=f"{lines[0][:200]!r} in line 1",
    )
