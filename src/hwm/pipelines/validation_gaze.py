"""Whose gaze says which patches are near the place looked at, when a world model is validated.

Skill near gaze and elsewhere can be compared between models only if one gaze map splits the patches of all of them. So
a model may be judged by gaze that it is not given: here a source is joined with the gaze weights of another one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from hwm.config import PretrainConfig
from hwm.data.exclusions import Exclusion
from hwm.data.gaze_files import GazeFiles
from hwm.data.video import VideoInfo
from hwm.engine.assemble import Seer, load_gazelle
from hwm.engine.runlog import RunLog
from hwm.models.observer import Observer
from hwm.models.world_model import TimeGrid, WorldModel
from hwm.tokens.controls import ControlledSource
from hwm.tokens.extraction import Crops, centre_only
from hwm.tokens.measured import MeasuredSource
from hwm.tokens.source import Plan, TokenBatch, TokenSource, open_source


class JudgedSource:
    """A source whose gaze weights are another's; latents and scene tokens stay its own.

    Args:
        source: gives what the world model sees.
        judge: gives the gaze weights.
    """

    def __init__(self, source: TokenSource, judge: TokenSource) -> None:
        self._source, self._judge = source, judge

    def prepare(
        self, videos: Sequence[VideoInfo], on_progress: Callable[[int], None], crops: Crops = centre_only
    ) -> tuple[Exclusion, ...]:
        """See `TokenSource`; the judge goes first: one with Gazelle caches the source's latents in the same go."""
        excluded = self._judge.prepare(videos, on_progress, crops)
        return (*excluded, *self._source.prepare(videos, on_progress, crops))

    def record(self, log: RunLog, videos: Sequence[VideoInfo]) -> None:
        """Write to `run.json` what is measured of the validation videos, where the judge's gaze is measured.

        Raises:
            DataError: as `record_measured_gaze`.
        """
        if isinstance(self._judge, MeasuredSource):
            self._judge.record(log, {"val": videos})

    def batches(self, plan: Plan) -> Iterator[TokenBatch]:
        """See `TokenSource`."""
        for batch, other in zip(self._source.batches(plan), self._judge.batches(plan), strict=True):
            yield batch._replace(gaze_BTN=other.gaze_BTN, gaze_known_BT=other.gaze_known_BT)


def validation_source(
    config: PretrainConfig, world: WorldModel, weights: Mapping[str, str], source: TokenSource, log: RunLog,
    device: torch.device,
) -> TokenSource:  # fmt: skip
    """The source that a world model is validated on: its own, judged by the gaze of `validation_gaze`.

    Args:
        config: the run.
        world: the world model.
        weights: sha256 of its frozen parts' weight files, by name.
        source: what it is trained on.
        log: gets the hashes of the weight files that are read for this alone.
        device: where the source's tokens are.

    Raises:
        WeightsError: Gazelle's weights are missing, damaged, or do not fit.
        DataError: the folder of gaze files is not there.
    """
    if config.validation_gaze in (None, config.gaze):
        return source
    if config.validation_gaze == "measured":
        assert config.gaze_files.folder is not None, "the configuration lets no measured gaze pass without a folder"
        own = source.uncontrolled if isinstance(source, ControlledSource) else source
        tracked = GazeFiles(config.gaze_files.folder, config.gaze_files)
        return JudgedSource(source, MeasuredSource(own, tracked, world, scene=False, point=True))
    seer = judge_seer(config, world, weights)
    assert seer is not None, "an estimated gaze that the model is not given is a judge's"
    log.record(validation_weights={name: digest for name, digest in seer.weights.items() if name not in weights})
    observer = seer.observer.to(device)
    judge = open_source(config.tokens, observer, seer.grid, seer.weights, device, config.runtime.num_workers)
    return JudgedSource(source, judge)


def judge_seer(config: PretrainConfig, world: WorldModel, weights: Mapping[str, str]) -> Seer | None:
    """What turns the frames of validation videos into the world model's latents and a judge's gaze.

    Returns:
        The world model's encoder beside a Gazelle that it is not given; None where no estimated gaze judges it, or
        the one that it is given.

    Raises:
        WeightsError: Gazelle's weights are missing, damaged, or do not fit.
    """
    if config.validation_gaze != "estimated" or config.gaze == "estimated":
        return None
    gazelle, files = load_gazelle(config.gazelle)
    seen = world.grid
    grid = TimeGrid(
        seen.fps, seen.step, seen.encoder_resolution, config.gazelle.resolution,
        encoder_precision=seen.encoder_precision, gazelle_precision=config.gazelle.precision,
    )  # fmt: skip
    return Seer(Observer(world.observer.encoder, gazelle), grid, {"encoder": weights["encoder"]} | files)
