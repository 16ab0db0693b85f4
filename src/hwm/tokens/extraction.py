"""Filling the token cache: each video is decoded once, from start to end, for all crops of it that are missing.

    extractor.survey(wanted)       → what is there, what is missing, how many bytes that needs (before anything is made)
    extractor.fill(wanted, …)      → makes it; videos that cannot be decoded to their end, with reasons

Decoding runs in a thread ahead of the encoder. Memory: two chunks of 32 steps of pixels and one of tokens, whatever the
length of the video.
"""

import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import torch

from hwm.config import TokenDtype
from hwm.data.ahead import ahead
from hwm.data.exclusions import Exclusion
from hwm.data.transforms import centre_square
from hwm.data.video import Clip, CropBox, VideoInfo, VideoReader, num_grid_steps
from hwm.engine.progress import Progress
from hwm.errors import CacheError, DataError
from hwm.models.observer import Observer
from hwm.models.world_model import TimeGrid
from hwm.terminal import readable_bytes
from hwm.tokens.cache import TokenCache
from hwm.tokens.observe import encode_pixels, split_views, step_offsets, view_sizes
from hwm.tokens.stored import TokenSizes, bytes_a_step

Crops = Callable[[VideoInfo], tuple[CropBox, ...]]
"""The crops of a video that are wanted."""

RESERVED_BYTES = 1 << 28
"""Room on the disk that is left alone."""


def centre_only(video: VideoInfo) -> tuple[CropBox, ...]:
    """The centre square alone: what validation and stage 2 read."""
    return (centre_square(video),)


class Wanted(NamedTuple):
    """One video and the crops of it that are wanted."""

    video: VideoInfo
    boxes: tuple[CropBox, ...]


class Survey(NamedTuple):
    """What filling a cache takes."""

    num_videos: int
    num_crops: int
    crops_held: int
    """Crops that are there already."""
    steps_missing: int
    """Steps that will be encoded: grid steps times crops."""
    bytes_missing: int
    bytes_per_hour: int
    """Of one crop of one hour of video."""

    def __add__(self, other: object) -> "Survey":
        """Both together; a file's size an hour adds up, since each hour is kept in both."""
        if not isinstance(other, Survey):
            return NotImplemented
        added = Survey(*(mine + its for mine, its in zip(self, other, strict=True)))
        return added._replace(num_videos=max(self.num_videos, other.num_videos))


class Extractor:
    """Makes the token files of one observer on one time grid.

    Args:
        observer: frozen encoder and Gazelle; its Gazelle is used where the grid has a Gazelle resolution.
        grid: the time grid.
        device: where to encode.
        cache: where the tokens go.
    """

    def __init__(self, observer: Observer, grid: TimeGrid, device: torch.device, cache: TokenCache) -> None:
        self.cache = cache
        self._observer, self._grid, self._device = observer, grid, device
        rows, columns = observer.encoder.spec.grid(grid.encoder_resolution, grid.encoder_resolution)
        gazelle = observer.gazelle if grid.gazelle_resolution is not None else None
        scene_width = None if gazelle is None else gazelle.spec.width
        self._sizes = TokenSizes(rows * columns, observer.encoder.spec.width, scene_width)

    def survey(self, wanted: Sequence[Wanted], check: Callable[[], None] = lambda: None) -> Survey:
        """What is missing, and how many bytes it needs; a video that cannot be read needs none.

        Args:
            wanted: videos, each once; tokens are filed under a video's hash: one whose hash is not remembered is read.
            check: called again and again meanwhile; what it raises ends the survey.
        """
        self._hash([item.video.path for item in wanted], check)
        parts = ("z",) if self._sizes.scene_width is None else ("z", "scene")
        dtype: TokenDtype = self.cache.dtype
        held = steps = num_bytes = 0
        for video, boxes in wanted:
            check()
            num_steps = num_grid_steps(video.duration_sec, self._grid.fps)
            for box in boxes:
                missing = self._missing(video.path, box)
                held += missing == ()
                steps += num_steps if missing else 0
                num_bytes += num_steps * bytes_a_step(self._sizes, dtype, missing or ())
        an_hour = round(3600 * self._grid.fps * bytes_a_step(self._sizes, dtype, parts))
        return Survey(len(wanted), sum(len(item.boxes) for item in wanted), held, steps, num_bytes, an_hour)

    def _hash(self, videos: Sequence[Path], check: Callable[[], None]) -> None:
        unhashed = self.cache.unhashed(videos, check)
        if not unhashed:
            return
        with Progress("bytes hashed", total=sum(video.stat().st_size for video in unhashed if video.is_file())) as bar:

            def on_bytes(count: int) -> None:
                check()
                bar.advance(count)

            self.cache.hash_videos(unhashed, on_bytes)

    def lacks(self, item: Wanted) -> bool:
        """Whether a crop of a video is missing; false for a video that cannot be read."""
        return any(self._missing(item.video.path, box) for box in item.boxes)

    def fill(
        self,
        wanted: Sequence[Wanted],
        on_steps: Callable[[int], None] = lambda count: None,
        on_video: Callable[[int], None] = lambda done: None,
    ) -> tuple[Exclusion, ...]:
        """Make what is missing. Videos that another process is at are left to it and looked at again at the end.

        Args:
            wanted: videos, each once.
            on_steps: called with the number of steps made, after each chunk.
            on_video: called with the number of videos done.

        Returns:
            The videos that cannot be read to their end; nothing of them is kept.

        Raises:
            CacheError: the disk is full or refuses.
        """
        excluded: list[Exclusion] = []
        left: Sequence[Wanted] = wanted
        done = 0
        for wait in (False, True):
            taken: list[Wanted] = []
            for item in left:
                found = self._fill_one(item, wait, on_steps)
                if found is None:
                    taken.append(item)
                    continue
                excluded += found
                done += 1
                on_video(done)
            left = taken
        return tuple(excluded)

    def _fill_one(self, item: Wanted, wait: bool, on_steps: Callable[[int], None]) -> tuple[Exclusion, ...] | None:
        """What was left out; None where another process is at this video."""
        path = item.video.path
        lacks = [self._missing(path, box) for box in item.boxes]
        if None in lacks:
            return (Exclusion(str(path), "cannot be read"),)
        if not any(lacks):
            return ()
        with self.cache.claim(path, wait=wait) as mine:
            if not mine:
                return None
            try:
                self._make(item, on_steps)
            except DataError as error:
                return (Exclusion(str(path), f"cannot be decoded whole: {error.problem}"),)
        return ()

    def _make(self, item: Wanted, on_steps: Callable[[int], None]) -> None:
        """Decode a video once and write all that is missing of it (asked again: its maker may just have gone)."""
        path, offsets = item.video.path, step_offsets(self._grid)
        boxes = [box for box in item.boxes if self.cache.missing(path, box)]
        num_steps = num_grid_steps(item.video.duration_sec, self._grid.fps)
        with ExitStack() as opened:
            files = [opened.enter_context(self.cache.writing(path, box, num_steps)) for box in boxes]
            for clips in opened.enter_context(closing(ahead(self._decoded(path, boxes), depth=1))):
                for file, clip in zip(files, clips, strict=True):
                    tokens = encode_pixels(self._observer, split_views(clip.views, len(offsets)), self._device)
                    file.append(tokens, clip.times_sec[len(offsets) - 1 :: len(offsets)])
                    on_steps(len(tokens.z_SND))

    def _decoded(self, path: Path, boxes: Sequence[CropBox]) -> Generator[tuple[Clip, ...], None, None]:
        with VideoReader(path) as reader:
            yield from reader.read_grid_crops(self._grid.fps, view_sizes(self._grid), boxes, step_offsets(self._grid))

    def _missing(self, video: Path, box: CropBox) -> tuple[str, ...] | None:
        """Parts that are not there; None for a video that cannot be read."""
        try:
            return self.cache.missing(video, box)
        except OSError:
            return None


def require_room(survey: Survey, folder: Path) -> int:
    """Refuse to start what the disk cannot hold.

    Args:
        survey: what is missing.
        folder: of the cache; it may not exist yet.

    Returns:
        Bytes that are free.

    Raises:
        CacheError: there is not enough room.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if survey.bytes_missing and survey.bytes_missing + RESERVED_BYTES > free:
        raise CacheError(
            f"the tokens do not fit on the disk of {folder}",
            expected=f"{readable_bytes(survey.bytes_missing + RESERVED_BYTES)} free; "
            f"a crop has {readable_bytes(survey.bytes_per_hour)} an hour",
            found=readable_bytes(free),
            fix="tokens.dtype=int8 halves them; or fewer tokens.views, a lower data.fps, another tokens.folder",
        )
    return free
