"""`hwm predict RUN VIDEO --at SEC`: what does a trained stage 2 say of one video, at one time?

Run folder of `hwm anticipate` + a video → its frozen backbone sees the video up to SEC and imagines the τ seconds after
it (the run's `protocol.horizon_sec`), as for a segment that starts at SEC + τ → its saved probe → the probability of
each class, most likely first. Nothing after SEC is read, and nothing is written.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm.config import AnticipateConfig
from hwm.data.clips import ClipRequest
from hwm.data.gaze_files import GazeFiles
from hwm.data.protocol import START_MINUS_TAU, last_step_at
from hwm.data.segments import ClassTable, Task
from hwm.data.transforms import centre_square
from hwm.data.video import VideoInfo, num_grid_steps, probe_video
from hwm.engine.runlog import read_facts
from hwm.engine.runtime import start
from hwm.engine.saved_probe import load_probe, trained_on
from hwm.errors import ConfigError, DataError, RunError
from hwm.evaluation.calibration import probabilities
from hwm.evaluation.outputs import read_outputs
from hwm.recipes import load_config
from hwm.tokens.features import FeatureRequest
from hwm.tokens.foresight import open_foresight
from hwm.tokens.measured import gaze_files_folder, gaze_of_clip


class Guess(NamedTuple):
    """One class and how likely it is."""

    id: int | str
    """The data set's own."""
    name: str
    probability: float
    """0..1 over the classes of the task; of the focal loss, whose classes are asked apart, a class's own."""


class Prediction(NamedTuple):
    """What comes next."""

    run: Path
    video: Path
    at_sec: float
    last_seen_sec: float
    """Time of the last step that was observed: at or before `at_sec`."""
    observed_steps: int
    """Padded ones among them."""
    padded_steps: int
    """Observed steps that lie before the video's start."""
    gaze_known_steps: int | None
    """Observed steps whose measured gaze is known; None where the run was trained without measured gaze."""
    starts_at_sec: float
    """When the step that is named starts: `at_sec` + τ."""
    tasks: dict[str, tuple[Guess, ...]]
    """Task → its classes, most likely first."""
    warnings: tuple[str, ...] = ()
    """Why the answer may not be what the run's scores promise."""


def run(folder: Path, video: Path, at_sec: float) -> Prediction:
    """Name the step that starts τ after a time of a video.

    Args:
        folder: of a finished run of `hwm anticipate`.
        video: of the view that the run was trained on.
        at_sec: seconds after the first frame, at most the length of the video.

    Raises:
        RunError: the folder is no finished run of stage 2, or its stage 1 is gone.
        ConfigError: a run of controls, or of the legacy protocol; models that changed since the probe was trained; a
            time before 0.
        DataError: the video cannot be read, or is shorter than `at_sec`.
        WeightsError: a weight file is missing, damaged, or does not fit.
    """
    config = _config_of(folder)
    info = probe_video(video)
    fabric = start(config.runtime)
    foresight = open_foresight(config, fabric.device)
    tables = {
        name: ClassTable(task.classes.ids, task.classes.names) for name, task in read_outputs(folder).tasks.items()
    }
    tasks = [Task(name, table) for name, table in tables.items()]
    probe = load_probe(folder / "probe.safetensors", trained_on(tasks, foresight.frozen_sha256(), config))
    request = _request(info, at_sec, config, foresight.fps)
    unusable = foresight.prepare([info], lambda done: None)
    if unusable:
        raise DataError(f"{video} cannot be used", found=unusable[0].reason)
    with tempfile.TemporaryDirectory(prefix="hwm-predict-") as aside:
        features = foresight.features({"asked": [request]}, Path(aside), lambda done: None, probe.spec.num_steps)[
            "asked"
        ]
        tokens = torch.from_numpy(np.array(features.tokens_STND)).to(fabric.device).float()
    valid, known = (torch.from_numpy(mask).to(fabric.device) for mask in (features.valid_ST, features.gaze_known_ST))
    with torch.inference_mode():
        logits = probe.to(fabric.device)(tokens, valid, known)
    clip = request.clip
    gaze_known_steps, warnings = _gaze_known(clip, config, foresight.fps) if _reads_measured(folder) else (None, ())
    return Prediction(
        folder,
        video,
        at_sec,
        (clip.first_step + clip.num_steps - 1) / foresight.fps,
        clip.num_steps,
        max(0, -clip.first_step),
        gaze_known_steps,
        at_sec + config.protocol.horizon_sec,
        {name: _guesses(logits[name][0, 0].cpu(), table, config) for name, table in tables.items()},
        warnings,
    )


def _config_of(folder: Path) -> AnticipateConfig:
    """The run's settings, with tokens made as they are needed."""
    facts = read_facts(folder)
    if facts.get("verb") != "anticipate" or facts.get("status") != "finished":
        raise RunError(
            f"{folder} is no finished run of stage 2",
            expected="a run folder of hwm anticipate that says `finished`",
            found=", ".join(str(facts[key]) for key in ("verb", "status") if key in facts) or "no run.json",
            fix="train one first: hwm anticipate CONFIG --checkpoint RUN",
        )
    controls = {key: facts.get(key, "none") for key in ("gaze_control", "gaze_point_control")}
    if any(control != "none" for control in controls.values()):
        raise ConfigError(
            f"{folder} is a control, whose gaze is another video's or a mean",
            expected="a run with its own gaze, or with none",
            found=", ".join(f"{key}={value}" for key, value in controls.items()),
            fix="give a run without controls",
        )
    config = load_config(AnticipateConfig, folder / "config.yaml")
    if config.protocol.id != START_MINUS_TAU:
        raise ConfigError(
            f"{folder} was trained on clips that show the step itself, so it cannot say what comes next",
            expected=f"protocol.id={START_MINUS_TAU}",
            found=config.protocol.id,
        )
    live = config.tokens.model_copy(update={"source": "live", "folder": None})
    runtime = config.runtime.model_copy(update={"num_workers": 0, "devices": 1})
    return config.model_copy(update={"tokens": live, "runtime": runtime})


def _request(info: VideoInfo, at_sec: float, config: AnticipateConfig, fps: float) -> FeatureRequest:
    """The clip that ends at or before a time, and how many steps lie between its end and the last that is foreseen."""
    if not 0 <= at_sec <= info.duration_sec:
        raise DataError(
            f"{info.path} has nothing to see at {at_sec:g} s",
            expected=f"--at from 0 to {info.duration_sec:.3f} s, the length of the video",
            found=f"{at_sec:g}",
        )
    num_steps = config.protocol.num_steps
    ahead_sec = config.protocol.horizon_sec + config.protocol.beyond_start_sec
    last = min(last_step_at(at_sec, fps), num_grid_steps(info.duration_sec, fps) - 1)
    num_future = max(
        1, int((at_sec + ahead_sec - last / fps) * fps + 0.5)
    )  # as `observe_before`: half up, at least one
    clip = ClipRequest(info, last - num_steps + 1, num_steps, centre_square(info))
    return FeatureRequest(clip, num_future, ahead_sec)


def _reads_measured(folder: Path) -> bool:
    """Whether the run's world model or its probe was given measured gaze."""
    return read_facts(folder).get("measured_gaze") is not None


def _gaze_known(clip: ClipRequest, config: AnticipateConfig, fps: float) -> tuple[int, tuple[str, ...]]:
    """How many steps of a clip have measured gaze, and a warning where none has."""
    where = gaze_files_folder(config)
    files = GazeFiles(where, config.gaze_files)
    known = int(gaze_of_clip(files, clip, fps)[1].sum())
    if known:
        return known, ()
    missing = files.coverage([clip.video], fps).missing
    reason = missing[0].reason if missing else "no usable sample at the observed steps"
    return 0, (
        f"the run was trained with measured gaze, and none is known of {clip.video.path} ({reason}), so the answer is "
        f"one without gaze; gaze files are looked for in {where}",
    )


def _guesses(logits_C: Tensor, classes: ClassTable, config: AnticipateConfig) -> tuple[Guess, ...]:
    chances = probabilities(logits_C, config.probe.loss == "focal")
    guesses = map(Guess, classes.ids, classes.names, chances.tolist())
    return tuple(sorted(guesses, key=lambda guess: -guess.probability))  # stable: ties go to the lower class index
