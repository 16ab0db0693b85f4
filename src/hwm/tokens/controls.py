"""Controls of gaze: other scene tokens or gaze weights in the place of a clip's own, put in when tokens are read.

    shuffled        those of a clip of another video
    time-shuffled   those of the same clip, each at another step
    mean            the training videos' mean for each patch: a centre prior
    future          those of the next step: an ORACLE, which sees past what the protocol allows

Everything else (latents, padding, order) stays as it is. What gaze gains and a control gains too is no gain of gaze.
`dinov2`, the fifth control, is the observer's own (`models.observer`). Within a clip `time-shuffled` gives a step the
gaze of a later one. Training and validation of stage 1 can use that; stage 2 sees nothing after the clip.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm.config import GazeControl, GazePointControl
from hwm.data.clips import ClipPlan, ClipRequest
from hwm.data.exclusions import Exclusion
from hwm.data.video import VideoInfo, num_grid_steps
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.errors import DataError
from hwm.losses import layer_normed
from hwm.models.world_model import WorldModel
from hwm.terminal import counted
from hwm.tokens.extraction import Crops, centre_only
from hwm.tokens.lending import LENT_CONTROLS, GazeLender, LentPlan
from hwm.tokens.measured import MeasuredSource
from hwm.tokens.source import Plan, TokenBatch, TokenSource
from hwm.weights.files import hash_tensors

MEAN_CLIP_STEPS = 8
"""Most steps of the fixed clips that a mean is taken over."""

MEAN_BATCH = 16


class ControlledSource:
    """A source whose gaze is replaced.

    Args:
        source: gives the tokens.
        world: gives the time grid, the control of the scene tokens (`grid.gaze_control`) and their mean.
        point: control of the gaze weights.
        seed: of what is drawn.
    """

    def __init__(self, source: TokenSource, world: WorldModel, point: GazePointControl, seed: int) -> None:
        self.uncontrolled = source
        """The source with the clips' own gaze."""
        self._world = world
        self._point: GazePointControl = point
        self._lender = GazeLender(world.grid.fps, seed)
        self._mean_gaze_N: Tensor | None = None

    def prepare(
        self, videos: Sequence[VideoInfo], on_progress: Callable[[int], None], crops: Crops = centre_only
    ) -> tuple[Exclusion, ...]:
        """See `TokenSource`; videos that are prepared together get one another's gaze under `shuffled`."""
        excluded = self.uncontrolled.prepare(videos, on_progress, crops)
        lost = {exclusion.item for exclusion in excluded}
        self._lender.add([video for video in videos if str(video.path) not in lost])
        return excluded

    def record(self, log: RunLog, videos: Mapping[str, Sequence[VideoInfo]]) -> None:
        """Write to `run.json` what is measured, and take the mean gaze weights of the training videos where asked for.

        Raises:
            DataError: as `record_measured_gaze` and `mean_gaze`.
        """
        if isinstance(self.uncontrolled, MeasuredSource):
            self.uncontrolled.record(log, videos)
        if self._point == "mean":
            clips = fixed_clips(videos["train"], self._world.grid.fps)
            self._mean_gaze_N = mean_gaze(self.uncontrolled, clips).gaze_N
            assert self._mean_gaze_N is not None, "a gaze point without gaze weights"
            log.record(mean_gaze_sha256=hash_tensors({"gaze": self._mean_gaze_N}))

    def batches(self, plan: Plan) -> Iterator[TokenBatch]:
        """See `TokenSource`.

        Raises:
            DataError: as the source's own, or `shuffled` finds no other video that is long enough.
        """
        controls: list[GazeControl] = [self._world.grid.gaze_control, self._point]
        lent = LentPlan(plan, self._lender, controls)
        for requests, read, batch in zip(plan, lent, self.uncontrolled.batches(lent), strict=True):
            yield self._replaced(batch, {request: row for row, request in enumerate(read)}, requests)

    def _replaced(
        self, batch: TokenBatch, rows: Mapping[ClipRequest, int], requests: Sequence[ClipRequest]
    ) -> TokenBatch:
        own_B = torch.tensor([rows[request] for request in requests], device=batch.z_BTND.device)
        z, valid = batch.z_BTND[own_B], batch.valid_BT[own_B]
        scene_known, gaze_known = batch.scene_known_BT[own_B], batch.gaze_known_BT[own_B]
        scene, gaze = (None if part is None else part[own_B] for part in (batch.scene_BTNG, batch.gaze_BTN))
        control = self._world.grid.gaze_control
        if control in LENT_CONTROLS and batch.scene_BTNG is not None:
            scene, scene_known = self._lent(control, batch.scene_BTNG, batch.scene_known_BT, rows, requests)
        elif control == "mean" and scene is not None:
            scene = self._world.mean_scene_NG.expand_as(scene)
        if self._point in LENT_CONTROLS and batch.gaze_BTN is not None:
            gaze, gaze_known = self._lent(self._point, batch.gaze_BTN, batch.gaze_known_BT, rows, requests)
        elif self._point == "mean" and gaze is not None:
            assert self._mean_gaze_N is not None, "the mean is taken when the run is recorded"
            gaze = self._mean_gaze_N.to(gaze.device).expand_as(gaze)
        scene_known, gaze_known = scene_known & valid, gaze_known & valid
        return TokenBatch(z, _kept(scene, scene_known), _kept(gaze, gaze_known), valid, scene_known, gaze_known)

    def _lent(
        self, control: GazeControl, tokens: Tensor, known_BT: Tensor, rows: Mapping[ClipRequest, int],
        requests: Sequence[ClipRequest],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What each step of the requests gets of the tokens [B, T, …] that were read, and whether that is known."""
        lent = [self._lender.lend(control, request) for request in requests]
        device = known_BT.device
        clip_B1 = torch.tensor([rows[clip] for clip, _ in lent], device=device)[:, None]
        steps_BT = torch.from_numpy(np.stack([steps for _, steps in lent])).to(device)
        from_BT = steps_BT.clamp(min=0)
        return tokens[clip_B1, from_BT], known_BT[clip_B1, from_BT] & (steps_BT >= 0)


def with_gaze_control(source: TokenSource, world: WorldModel, point: GazePointControl, seed: int) -> TokenSource:
    """The source, its gaze replaced as the world model and `point` say; unchanged where nothing is."""
    if world.grid.gaze_control in ("none", "dinov2") and point == "none":
        return source
    return ControlledSource(source, world, point, seed)


def control_facts(scene: GazeControl, point: GazePointControl = "none") -> dict[str, Any]:
    """What `run.json` says of the controls of a run; `oracle` is true if any of them sees the future."""
    return {"gaze_control": scene, "gaze_point_control": point, "oracle": "future" in (scene, point)}


class MeanGaze(NamedTuple):
    """Mean over known steps, for each patch."""

    scene_NG: Tensor | None
    gaze_N: Tensor | None


def fixed_clips(videos: Sequence[VideoInfo], fps: float) -> tuple[ClipRequest, ...]:
    """Up to four evenly spaced clips of each video, shorter ones where the shortest video is short."""
    num_steps = min(num_grid_steps(video.duration_sec, fps) for video in videos)
    return ClipPlan(videos, fps, min(num_steps, MEAN_CLIP_STEPS), None, seed=0).validation()


@torch.no_grad()
def mean_gaze(source: TokenSource, clips: Sequence[ClipRequest]) -> MeanGaze:
    """The mean scene token and the mean gaze weight of each patch over the known steps of some clips.

    Raises:
        DataError: gaze is known at no step.
    """
    plan = [list(clips[first : first + MEAN_BATCH]) for first in range(0, len(clips), MEAN_BATCH)]
    sums: dict[str, Tensor] = {}
    counts = {"scene": 0, "gaze": 0}
    with Progress("training clips for the mean of gaze", total=len(clips)) as bar:
        for batch in source.batches(plan):
            parts = {"scene": (batch.scene_BTNG, batch.scene_known_BT), "gaze": (batch.gaze_BTN, batch.gaze_known_BT)}
            for name, (tokens, known_BT) in parts.items():
                if tokens is not None and known_BT.any():
                    sums[name] = sums.get(name, 0) + tokens[known_BT].double().sum(dim=0).cpu()
                    counts[name] += int(known_BT.sum())
            bar.advance(len(batch.valid_BT))
    if not sums:
        raise DataError(
            "there is no known gaze to take the mean of", expected="videos with gaze", found=counted(len(clips), "clip")
        )
    means = {name: (total / counts[name]).float() for name, total in sums.items()}
    return MeanGaze(means.get("scene"), means.get("gaze"))


def mean_scene(source: TokenSource, clips: Sequence[ClipRequest], normed: bool) -> Tensor:
    """The mean scene token [N, G] of each patch, layer-normed again where scene tokens are (`normed`).

    Raises:
        DataError: gaze is known at no step.
    """
    scene_NG = mean_gaze(source, clips).scene_NG
    assert scene_NG is not None, "the mean of scene tokens without scene tokens"
    return layer_normed(scene_NG) if normed else scene_NG


def _kept(tokens: Tensor | None, known_BT: Tensor) -> Tensor | None:
    """Zeros where gaze is not known."""
    if tokens is None:
        return None
    return tokens * known_BT.reshape(*known_BT.shape, *[1] * (tokens.ndim - 2)).to(tokens.dtype)
