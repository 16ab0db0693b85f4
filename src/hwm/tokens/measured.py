"""Measured gaze joined to the tokens of a source when they are read; it is never part of a token cache.

Gaze files are small and may be corrected; latents are large and depend on pixels alone. So `MeasuredSource` asks any
source (live or cached) for its tokens and puts in measured scene tokens, measured gaze weights, or both. A step at time
t gets the last gaze sample at or before t, in the crop that the step is seen through.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from hwm.config import AnticipateConfig
from hwm.data.clips import ClipRequest
from hwm.data.exclusions import Exclusion, summarise
from hwm.data.gaze_files import GazeFiles, gaze_in_box
from hwm.data.video import VideoInfo
from hwm.engine.runlog import RunLog
from hwm.errors import ConfigError, DataError
from hwm.models.measured_gaze import gaze_point_scene, gaze_point_weights
from hwm.models.world_model import WorldModel
from hwm.tokens.extraction import Crops, centre_only
from hwm.tokens.source import Plan, TokenBatch, TokenSource


class MeasuredSource:
    """A source whose gaze is measured.

    Args:
        source: gives the latents, and what is not replaced.
        files: finds each video's gaze.
        world: gives the time grid and the patch grid.
        scene: put in measured scene tokens (the condition of the predictor).
        point: put in measured gaze weights (the gaze point of the probe).
    """

    def __init__(self, source: TokenSource, files: GazeFiles, world: WorldModel, *, scene: bool, point: bool) -> None:
        side = world.grid.encoder_resolution
        self._source, self._files, self._fps = source, files, world.grid.fps
        self._patches = world.observer.encoder.spec.grid(side, side)
        self._scene, self._point = scene, point

    def record(self, log: RunLog, videos: Mapping[str, Sequence[VideoInfo]]) -> None:
        """Write to `run.json` what is measured of these videos; see `record_measured_gaze`."""
        record_measured_gaze(log, self._files, videos, self._fps)

    def prepare(
        self, videos: Sequence[VideoInfo], on_progress: Callable[[int], None], crops: Crops = centre_only
    ) -> tuple[Exclusion, ...]:
        """See `TokenSource`; a video without gaze is not excluded: its steps are "gaze unknown"."""
        return self._source.prepare(videos, on_progress, crops)

    def batches(self, plan: Plan) -> Iterator[TokenBatch]:
        """See `TokenSource`."""
        for requests, batch in zip(plan, self._source.batches(plan), strict=True):
            looked = [gaze_of_clip(self._files, request, self._fps) for request in requests]
            points = np.concatenate([points for points, _ in looked])
            points_S2 = torch.from_numpy(points).to(batch.z_BTND.device, torch.float32)
            known_BT = torch.from_numpy(np.stack([known for _, known in looked])).to(batch.z_BTND.device)
            shape, known_S = known_BT.shape, known_BT.flatten()
            if self._scene:
                scene_SNG = gaze_point_scene(points_S2, known_S, self._patches)
                batch = batch._replace(scene_BTNG=scene_SNG.unflatten(0, shape), scene_known_BT=known_BT)
            if self._point:
                gaze_SN = gaze_point_weights(points_S2, known_S, self._patches)
                batch = batch._replace(gaze_BTN=gaze_SN.unflatten(0, shape), gaze_known_BT=known_BT)
            yield batch


def gaze_of_clip(files: GazeFiles, request: ClipRequest, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [T, 2] in the clip's crop and known [T]; nothing is known of padding or without a file.

    Raises:
        ConfigError: as `GazeFiles.track`.
    """
    steps = np.arange(request.first_step, request.first_step + request.num_steps)
    track = files.track(request.video)
    if track is None:
        return np.zeros((len(steps), 2)), np.zeros(len(steps), dtype=bool)
    points, known = gaze_in_box(track, request.video, request.box, np.maximum(steps, 0) / fps)
    return np.where((steps >= 0)[:, None], points, 0.0), known & (steps >= 0)


def gaze_files_folder(config: AnticipateConfig) -> Path:
    """Where stage 2 looks for gaze files."""
    return config.gaze_files.folder or config.annotations.videos


def with_measured_gaze(source: TokenSource, config: AnticipateConfig, world: WorldModel) -> TokenSource:
    """The source of stage 2, joined with gaze files where the world model or the probe's gaze point asks for them.

    Raises:
        ConfigError: they ask for it in an exo view, where nothing is measured.
        DataError: the folder of gaze files is not there.
    """
    scene, point = world.grid.gaze == "measured", config.probe.gaze_point == "measured"
    if not scene and not point:
        return source
    if config.annotations.view != "ego":
        raise ConfigError(
            "gaze is measured in the ego view only",
            expected="annotations.view=ego",
            found=f"{config.annotations.view}, with measured gaze in the {'world model' if scene else 'probe'}",
        )
    files = GazeFiles(gaze_files_folder(config), config.gaze_files)
    return MeasuredSource(source, files, world, scene=scene, point=point)


def record_measured_gaze(log: RunLog, files: GazeFiles, videos: Mapping[str, Sequence[VideoInfo]], fps: float) -> None:
    """Write to `run.json` what is measured of each part's videos, and each video without gaze with its reason.

    Args:
        log: the run's record.
        files: finds each video's gaze.
        videos: part, e.g. `train` → its videos.
        fps: steps a second that are counted as known or unknown.

    Raises:
        DataError: no step of a part has known gaze.
        ConfigError: as `GazeFiles.track`.
    """
    parts = {}
    for part, shown in videos.items():
        kinds, missing, known, unknown, digest = files.coverage(shown, fps)
        used = len(shown) - len(missing)
        log.record_coverage(f"{part} gaze files", expected=len(shown), used=used, excluded=missing)
        if not known:
            reasons = ", ".join(f"{count} × {reason}" for reason, count in summarise(missing).items())
            raise DataError(
                f"no step of the {part} videos has measured gaze",
                expected="ego videos and their gaze files",
                found=f"{reasons or 'files without a usable sample'}; looked in {files.folder}",
                fix="check gaze_files.folder, and that the videos are of the ego view",
            )
        parts[part] = {"files": kinds, "steps_known": known, "steps_unknown": unknown, "sha256": digest}
    log.record(measured_gaze=parts)
