"""Tokens of whole videos on disk: one token file a video, crop and part, read back by steps, memory-mapped.

    <folder>/z-<16 hex>/<32 hex of the video>-<8 hex of the crop>.safetensors           latents, and when each step is
    <folder>/scene-<16 hex>/...                                                         scene tokens, gaze weights
    <folder>/video_hashes.txt                                                           see `video_hashes`

Models with and without gaze share the latents. A file's place holds three hashes: of everything that decides the
numbers for all videos (weights, time grid, resolutions, precision of computing and of storing, version of this code),
of the video's bytes, and of the crop box in source pixels. Nothing stale can be read by mistake; a changed video or
weight file gives new names. Several processes may share a folder: a file appears whole or not at all (`token_file`),
and while one process makes a video's files the others go on with other videos (`claim`).
"""

import fcntl
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm.config import Precision, TokenDtype
from hwm.data.video import CropBox
from hwm.errors import CacheError
from hwm.models.world_model import TimeGrid
from hwm.tokens.observe import StepTokens
from hwm.tokens.stored import names_of, pack, unpack
from hwm.tokens.token_file import PARTIAL, TokenWriter, read_steps
from hwm.tokens.video_hashes import VIDEO_HASHES, VideoHashes

FORMAT = 3
"""Raised whenever the code that computes or stores tokens changes their numbers; tests/test_token_cache.py holds it."""

SUFFIX = ".safetensors"
LOCK = ".lock"


class TokenCache:
    """A folder of token files for one observer on one time grid.

    Args:
        folder: where files are kept; made if missing.
        grid: the time grid and resolutions; its Gazelle resolution says whether there are scene tokens.
        weights: `encoder`, and the files of Gazelle where there is one → sha256.
        dtype: how tokens are stored.
    """

    def __init__(self, folder: Path, grid: TimeGrid, weights: Mapping[str, str], dtype: TokenDtype = "float16") -> None:
        self.folder = folder
        self.dtype: TokenDtype = dtype
        seen: dict[str, Any] = {
            "format": FORMAT,
            "fps": grid.fps,
            "step": grid.step,
            "dtype": dtype,
            "encoder": [weights["encoder"], grid.encoder_resolution, *_unless_float32(grid.encoder_precision)],
        }
        identities = {"z": seen}
        if grid.gazelle_resolution is not None:
            files = {name: digest for name, digest in weights.items() if name != "encoder"}
            identities["scene"] = seen | {
                "gazelle": [files, grid.gazelle_resolution, *_unless_float32(grid.gazelle_precision)]
            }
            if grid.gaze_control == "dinov2":
                identities["scene"] |= {"scene": "dinov2"}
        self._identities = {part: json.dumps(identity, sort_keys=True) for part, identity in identities.items()}
        self._folders = {
            part: folder / f"{part}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
            for part, identity in self._identities.items()
        }
        self._hashes = VideoHashes(folder / VIDEO_HASHES)
        self._digests: dict[str, str] = {}

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of this cache's parts."""
        return tuple(self._folders.values())

    def unhashed(self, videos: Iterable[Path], check: Callable[[], None]) -> list[Path]:
        """Videos that must be read for their hash; those of the others are remembered.

        Args:
            videos: any; one that cannot be looked at is left to `missing`.
            check: called before each; what it raises ends the search.
        """
        unhashed = []
        for video in videos:
            check()
            if str(video) not in self._digests:
                with suppress(OSError):
                    digest = self._hashes.recall(video)
                    if digest is None:
                        unhashed.append(video)
                    else:
                        self._digests[str(video)] = digest
        return unhashed

    def hash_videos(self, videos: Iterable[Path], on_bytes: Callable[[int], None]) -> None:
        """Read each video for its hash, which is remembered; one that cannot be read is left to `missing`.

        In an order of this process's own: several that start at once share the work.

        Args:
            videos: each once.
            on_bytes: called with each number of bytes that was read, by this process or meanwhile by another.
        """
        shuffled = list(videos)
        random.Random().shuffle(shuffled)
        for video in shuffled:
            with suppress(OSError):
                digest = self._hashes.recall(video)
                if digest is not None:
                    on_bytes(video.stat().st_size)
                self._digests[str(video)] = digest or self._hashes.sha256(video, on_bytes)

    def missing(self, video: Path, box: CropBox) -> tuple[str, ...]:
        """Parts of a video's crop that are not there.

        Raises:
            OSError: the video cannot be read.
        """
        return tuple(part for part in self._folders if not self.path(part, video, box).exists())

    def path(self, part: str, video: Path, box: CropBox) -> Path:
        """File of one part; the video's bytes are looked at once a run at most."""
        digest = self._digests.get(str(video))
        if digest is None:
            digest = self._digests[str(video)] = self._hashes.sha256(video)
        return self._folders[part] / f"{digest[:32]}-{_box_hash(box)}{SUFFIX}"

    @contextmanager
    def writing(self, video: Path, box: CropBox, num_steps: int) -> "Iterator[EntryWriter]":
        """The files of a video's crop, to be filled step by step; parts that are there already are left alone.

        Raises:
            CacheError: the disk is full or refuses.
        """
        with ExitStack() as files:
            opened = {}
            for part in self.missing(video, box):
                facts = self._facts(part, box) | {"video": video.name}
                opened[part] = files.enter_context(TokenWriter(self.path(part, video, box), num_steps, facts))
            yield EntryWriter(opened, self.dtype)

    @contextmanager
    def claim(self, video: Path, *, wait: bool) -> Iterator[bool]:
        """Inside, no other process makes this video's files; false where another does and `wait` is false.

        The system gives the claim back when the process ends, however it ends.

        Raises:
            CacheError: the disk refuses.
        """
        path = self.path("z", video, CropBox(0, 0, 0, 0))
        path = path.with_name(f".{path.name[:32]}{LOCK}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            locked = _locked(path, wait)
        except OSError as error:
            raise CacheError(
                f"token folder {self.folder} cannot be used: {error.strerror or error}",
                expected=f"a folder that can be written: tokens of {video} are missing in it",
                fix="make it writable, or set another tokens.folder (or HWM_HOME)",
            ) from error
        if locked is None:
            yield False
            return
        try:
            if locked.was_left:  # to look each time would list the whole folder once a video
                self._remove_remains(path)
            yield True
        finally:
            path.unlink(missing_ok=True)  # before the lock is given back; see _locked
            os.close(locked.handle)

    def _remove_remains(self, lock: Path) -> None:
        """What a process that was killed left of a video, which under its lock nobody writes."""
        for folder in self.folders:
            for remains in folder.glob(f"{lock.stem}*{PARTIAL}"):
                remains.unlink(missing_ok=True)

    def read(self, video: Path, box: CropBox, first_step: int, num_steps: int) -> StepTokens:
        """Tokens of the steps `first_step` … `first_step + num_steps` − 1 as float32.

        Raises:
            CacheError: a file is missing or damaged, is not this cache's, or the steps lie outside the video.
        """
        return unpacked(self.read_stored(video, box, first_step, num_steps))

    def read_stored(self, video: Path, box: CropBox, first_step: int, num_steps: int) -> dict[str, Tensor]:
        """The same as it is stored, without the times: for `unpacked`, on whatever device.

        Raises:
            CacheError: as `read`.
        """
        steps = slice(first_step, first_step + num_steps)
        stored: dict[str, Tensor] = {}
        for part in ("z", "scene"):
            if part in self._folders:
                stored |= self._stored(part, video, box, steps)
        del stored["times"]
        return stored

    def times(self, video: Path, box: CropBox, first_step: int, num_steps: int) -> np.ndarray:
        """When the last frame of each step is shown: [S] float64, seconds after the first frame of the video.

        Raises:
            CacheError: as `read`.
        """
        return self._stored("z", video, box, slice(first_step, first_step + num_steps))["times"].numpy()

    def _stored(self, part: str, video: Path, box: CropBox, steps: slice) -> dict[str, Tensor]:
        path = self.path(part, video, box)
        stored = read_steps(path, self._facts(part, box), steps)
        if set(stored) != set(names_of(part, self.dtype)):
            raise CacheError(
                f"token file {path} holds other tensors",
                expected=", ".join(names_of(part, self.dtype)),
                found=", ".join(sorted(stored)),
                fix=f"rm {path}",
            )
        return stored

    def _facts(self, part: str, box: CropBox) -> dict[str, str]:
        return {"identity": self._identities[part], "crop": json.dumps(list(box))}


def unpacked(stored: Mapping[str, Tensor]) -> StepTokens:
    """Tokens as float32 of what `TokenCache.read_stored` gave, in clips [B, T, …] too, on the device where they are."""
    z = unpack("z", stored)
    if "scene" not in stored:
        return StepTokens(z, None, None)
    return StepTokens(z, unpack("scene", stored), stored["gaze"].float())


class EntryWriter:
    """The open files of one video's crop."""

    def __init__(self, files: Mapping[str, TokenWriter], dtype: TokenDtype) -> None:
        self._files = files
        self._dtype: TokenDtype = dtype

    def append(self, tokens: StepTokens, times_S: np.ndarray) -> None:
        """Write the next steps and when they are shown.

        Raises:
            CacheError: the disk is full or refuses, or a token is not finite or too large for how it is stored.
        """
        if "z" in self._files:
            times = torch.from_numpy(times_S.copy())  # a single time, cut out of others, would keep their stride
            self._append("z", pack("z", tokens.z_SND, self._dtype) | {"times": times})
        if "scene" in self._files:
            assert tokens.scene_SNG is not None, "a cache with scene tokens was given none"
            assert tokens.gaze_SN is not None, "a cache with gaze weights was given none"
            gaze = {"gaze": tokens.gaze_SN.to(torch.float16)}
            self._append("scene", pack("scene", tokens.scene_SNG, self._dtype) | gaze)

    def _append(self, part: str, stored: Mapping[str, Tensor]) -> None:
        file = self._files[part]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in stored.values() if tensor.is_floating_point()):
            raise CacheError(
                f"the frozen models gave tokens for {file.path} that cannot be kept",
                expected=f"finite values that {self._dtype} can hold",
                found="nan or infinity",
                fix="check the weights: they may be damaged, or of another model",
            )
        file.append(stored)


def _unless_float32(precision: Precision) -> list[str]:
    """What a precision adds to an identity; float32 nothing, as in the caches made before there was a choice."""
    return [] if precision == "32-true" else [precision]


def _box_hash(box: CropBox) -> str:
    return hashlib.sha256(json.dumps(list(box)).encode()).hexdigest()[:8]


class _Lock(NamedTuple):
    """A lock that is held."""

    handle: int
    was_left: bool
    """Whether its file was there: whoever held it was killed, since it goes with the claim."""


def _locked(path: Path, wait: bool) -> _Lock | None:
    """A lock on the file at `path`, or None where another process has it and `wait` is false.

    The holder removes the file before it lets go, so whoever waited may hold a lock on a file that is gone; it then
    tries again on the file that is there.
    """
    while True:
        handle, was_left = _opened(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                return _Lock(handle, was_left)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


def _opened(path: Path) -> tuple[int, bool]:
    """A handle on the file at `path`, and whether it was there before."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), False
    except FileExistsError:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666), True
