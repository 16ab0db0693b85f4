"""One interface to tokens, live or cached; the stages that read it never know which.

source.prepare(videos)          → videos that cannot be used, with reasons
source.batches(plan)            → for each list of clip requests, a `TokenBatch`
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hwm.config import TokenConfig
from hwm.data.ahead import ahead
from hwm.data.clips import ClipRequest
from hwm.data.exclusions import Exclusion
from hwm.data.open_readers import OpenReaders
from hwm.data.parent import end_with_parent
from hwm.data.video import VideoInfo
from hwm.engine.home import home
from hwm.engine.loading import loaded
from hwm.engine.runtime import check_precision
from hwm.errors import HwmError
from hwm.models.observer import Observer
from hwm.models.world_model import TimeGrid
from hwm.tokens.cache import TokenCache, unpacked
from hwm.tokens.extraction import Crops, Extractor, Wanted, centre_only, require_room
from hwm.tokens.observe import StepPixels, StepTokens, encode_pixels, read_pixels

Plan = Sequence[Sequence[ClipRequest]]


class TokenBatch(NamedTuple):
    """Tokens of a batch of clips; zeros where `valid_BT` is false (steps before the video's start)."""

    z_BTND: Tensor
    scene_BTNG: Tensor | None
    gaze_BTN: Tensor | None
    valid_BT: Tensor
    scene_known_BT: Tensor
    """Steps whose scene tokens are known: Gazelle's of all valid steps, measured ones of fewer."""
    gaze_known_BT: Tensor
    """Steps whose gaze weights are known."""


@runtime_checkable
class TokenSource(Protocol):
    """Where both stages get their tokens."""

    def prepare(
        self, videos: Sequence[VideoInfo], on_progress: Callable[[int], None], crops: Crops = centre_only
    ) -> tuple[Exclusion, ...]:
        """Make everything ready that is done once a video; `on_progress` gets the number of videos done.

        `crops` says which crops of a video will be asked for; only a cache needs to know.
        """
        ...

    def batches(self, plan: Plan) -> Iterator[TokenBatch]:
        """Tokens of each batch of requests, in order, on the source's device."""
        ...


class LiveSource:
    """Decodes and encodes every clip when it is asked for; `num_workers` processes decode ahead."""

    def __init__(self, observer: Observer, grid: TimeGrid, device: torch.device, num_workers: int) -> None:
        self._observer, self._grid, self._device, self._num_workers = observer, grid, device, num_workers

    def prepare(
        self, videos: Sequence[VideoInfo], on_progress: Callable[[int], None], crops: Crops = centre_only
    ) -> tuple[Exclusion, ...]:
        """Nothing to do: a live source keeps nothing."""
        on_progress(len(videos))
        return ()

    def batches(self, plan: Plan) -> Iterator[TokenBatch]:
        """See `TokenSource`.

        Raises:
            DataError: a clip cannot be decoded; the message names the video.
        """
        for pixels, valid_BT in decode_batches(plan, self._grid, self._num_workers, self._device):
            batch, steps = valid_BT.shape
            flat = StepPixels(
                pixels.frames_SFYXR.flatten(0, 1), _each(pixels.gaze_frames_SYXR, lambda view: view.flatten(0, 1))
            )
            tokens = _into_clips(encode_pixels(self._observer, flat, self._device), batch, steps)
            yield _masked(tokens, valid_BT.to(self._device, non_blocking=True))


class CachedSource:
    """Encodes each video once (`extraction`) and reads clips back from the cache."""

    def __init__(self, observer: Observer, grid: TimeGrid, device: torch.device, cache: TokenCache) -> None:
        self._device, self._cache = device, cache
        self._extractor = Extractor(observer, grid, device, cache)

    def prepare(
        self, videos: Sequence[VideoInfo], on_progress: Callable[[int], None], crops: Crops = centre_only
    ) -> tuple[Exclusion, ...]:
        """Encode what the cache does not hold; a video that cannot be decoded to its end is excluded.

        Raises:
            CacheError: the tokens do not fit on the disk, or it refuses.
        """
        wanted = [Wanted(video, crops(video)) for video in videos]
        require_room(self._extractor.survey(wanted, lambda: on_progress(0)), self._cache.folder)
        return self._extractor.fill(wanted, on_video=on_progress)

    def batches(self, plan: Plan) -> Iterator[TokenBatch]:
        """See `TokenSource`.

        Raises:
            CacheError: a token file is damaged, or not there: its crop was not asked of `prepare`.
        """
        read = self._stored(plan)
        if self._device.type == "cuda":  # files are read while the device computes
            read = ahead(read, depth=1)
        with closing(read):
            for stored, valid_BT in read:
                there = {name: tensor.to(self._device, non_blocking=True) for name, tensor in stored.items()}
                valid_BT = valid_BT.to(self._device, non_blocking=True)
                yield TokenBatch(*unpacked(there), valid_BT, valid_BT, valid_BT)  # padding was stacked as zeros

    def _stored(self, plan: Plan) -> Generator[tuple[dict[str, Tensor], Tensor], None, None]:
        """Batches as they are stored: half as many bytes or fewer on their way to a device, in memory that it reads."""
        for requests in plan:
            clips = [self._read(request) for request in requests]
            stored = {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}
            valid_BT = torch.stack([_valid_steps(request) for request in requests])
            if self._device.type == "cuda":
                stored = {name: tensor.pin_memory() for name, tensor in stored.items()}
                valid_BT = valid_BT.pin_memory()
            yield stored, valid_BT

    def _read(self, request: ClipRequest) -> dict[str, Tensor]:
        num_padded = min(max(0, -request.first_step), request.num_steps)
        first_step, num_steps = max(0, request.first_step), request.num_steps - num_padded
        stored = self._cache.read_stored(request.video.path, request.box, first_step, num_steps)
        return {name: _left_padded(tensor, num_padded) for name, tensor in stored.items()}


def decode_batches(
    plan: Plan, grid: TimeGrid, num_workers: int, device: torch.device
) -> Iterator[tuple[StepPixels, Tensor]]:
    """Pixels [B, T, …] of each batch of requests and `valid` [B, T], in order, decoded by `num_workers` processes.

    They lie in the main memory; for a CUDA device, in pages that it copies from while it computes.

    Raises:
        DataError: a clip cannot be decoded; the message names the video.
        RunError: a process was killed.
    """
    context = "spawn" if num_workers else None  # a forked worker would inherit decoder and thread state
    loader = DataLoader(
        _PixelBatches(plan, grid), batch_size=None, num_workers=num_workers, multiprocessing_context=context,
        pin_memory=device.type == "cuda", worker_init_fn=_with_parent,
    )  # fmt: skip
    for batch in loaded(loader):
        if isinstance(batch, HwmError):
            raise batch
        yield batch


def _with_parent(worker: int) -> None:
    """Ends a worker whose parent is gone, also where it went before torch's own watch in the worker began."""
    del worker
    end_with_parent()


class _PixelBatches(Dataset["tuple[StepPixels, Tensor] | HwmError"]):
    """Item i is batch i of the plan, decoded: pixels [B, T, ...] and valid [B, T].

    What is wrong with a video is an item too: an error that leaves a worker carries the worker's traceback in its text.
    """

    def __init__(self, plan: Plan, grid: TimeGrid) -> None:
        self._plan, self._grid = plan, grid
        self._readers = OpenReaders()  # empty when it is sent to a worker

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> tuple[StepPixels, Tensor] | HwmError:
        try:
            clips = [read_pixels(request, self._grid, self._readers) for request in self._plan[index]]
        except HwmError as error:
            return error
        frames = torch.stack([pixels.frames_SFYXR for pixels, _ in clips])
        gaze = [pixels.gaze_frames_SYXR for pixels, _ in clips if pixels.gaze_frames_SYXR is not None]
        valid = torch.stack([valid for _, valid in clips])
        return StepPixels(frames, torch.stack(gaze) if gaze else None), valid


def _valid_steps(request: ClipRequest) -> Tensor:
    return torch.arange(request.first_step, request.first_step + request.num_steps) >= 0


def _left_padded(tokens: Tensor, num_padded: int) -> Tensor:
    return torch.cat([tokens.new_zeros(num_padded, *tokens.shape[1:]), tokens]) if num_padded else tokens


def _into_clips(tokens: StepTokens, batch: int, steps: int) -> StepTokens:
    """Steps of several clips in a row [B·T, …] → [B, T, …]."""
    z, scene, gaze = tokens
    return StepTokens(
        z.unflatten(0, (batch, steps)),
        _each(scene, lambda x: x.unflatten(0, (batch, steps))),
        _each(gaze, lambda x: x.unflatten(0, (batch, steps))),
    )


def _each(tokens: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    """A change to tokens that may not be there."""
    return None if tokens is None else change(tokens)


def _masked(tokens: StepTokens, valid_BT: Tensor) -> TokenBatch:
    """Zeros on padding, so that live and cached tokens agree there too."""
    z, scene, gaze = tokens
    keep = valid_BT[:, :, None]
    return TokenBatch(
        z * keep[..., None],
        None if scene is None else scene * keep[..., None],
        None if gaze is None else gaze * keep,
        valid_BT,
        valid_BT,
        valid_BT,
    )


def cache_folder(config: TokenConfig) -> Path:
    """Where a configuration keeps its token cache."""
    return config.folder or home() / "tokens"


def open_cache(config: TokenConfig, grid: TimeGrid, weights: Mapping[str, str]) -> TokenCache:
    """The token cache that a configuration asks for; see `open_source`."""
    return TokenCache(cache_folder(config), grid, weights, config.dtype)


def open_source(
    config: TokenConfig, observer: Observer, grid: TimeGrid, weights: Mapping[str, str], device: torch.device,
    num_workers: int,
) -> TokenSource:  # fmt: skip
    """The source that a configuration asks for.

    Args:
        config: live or cached, and where the cache is.
        observer: frozen encoder and Gazelle; its Gazelle is used where the grid has a Gazelle resolution.
        grid: the time grid.
        weights: name → sha256 of the observer's weight files; decides where cached tokens are found.
        device: where to encode, and where the tokens come out.
        num_workers: processes that decode ahead (live).

    Raises:
        ConfigError: the grid asks for bfloat16, and the device has none.
    """
    check_precision(device, grid.precisions)
    if config.source == "live":
        return LiveSource(observer, grid, device, num_workers)
    return CachedSource(observer, grid, device, open_cache(config, grid, weights))
