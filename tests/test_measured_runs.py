"""Both stages on measured gaze as runs: no Gazelle, what is measured in the record, nothing seen of later gaze."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hwm.config import AnticipateConfig, GazeFilesConfig, PretrainConfig, ProbeConfig
from hwm.data.annotations import read_annotations
from hwm.data.clips import ClipRequest
from hwm.data.gaze_files import GazeFiles
from hwm.data.transforms import centre_square
from hwm.data.video import probe_video
from hwm.engine.assemble import load_stage1
from hwm.engine.requirements import require_inputs
from hwm.errors import ConfigError, DataError, WeightsError
from hwm.models.predictor import GazePredictor
from hwm.models.step_probe import StepProbe, StepProbeSpec
from hwm.pipelines import anticipate, pretrain
from hwm.recipes import load_config
from hwm.tokens.features import FeatureRequest, compute_features
from hwm.tokens.measured import MeasuredSource
from hwm.tokens.source import LiveSource
from hwm.weights.pretrained import HumanWorldModel


@pytest.fixture
def measured_settings(stage1_settings: dict[str, Any], toy_world: Path) -> dict[str, Any]:
    """Stage 1 on measured gaze in the ego view; there is no Gazelle to load."""
    stage1_settings["data"] |= {part: [str(toy_world / "lists" / f"{part}_ego.txt")] for part in ("train", "val")}
    stage1_settings["optim"]["num_steps"] = 4
    return stage1_settings | {
        "gaze": "measured",
        "gaze_files": {"folder": toy_world},
        "gazelle": {"weights": "nowhere"},
    }


@pytest.fixture
def ego_settings(stage2_settings: dict[str, Any]) -> dict[str, Any]:
    stage2_settings["annotations"]["view"] = "ego"
    return stage2_settings


def gaze_files_of(world: Path, folder: Path) -> Path:
    """A copy of the world's gaze files alone."""
    for path in world.glob("takes/*/eye_gaze/*.csv"):
        copy = folder / path.relative_to(world)
        copy.parent.mkdir(parents=True)
        shutil.copy(path, copy)
    return folder


def test_both_stages_run_on_measured_gaze_and_say_so(
    measured_settings: dict[str, Any], ego_settings: dict[str, Any], toy_world: Path, tmp_path: Path
) -> None:
    folder = gaze_files_of(toy_world, tmp_path / "gaze")
    takes = sorted(folder.glob("takes/*"))
    shutil.rmtree(takes[0])  # one training take without a file
    measured_settings["gaze_files"] = {"folder": folder}
    require_inputs(PretrainConfig(**measured_settings))
    run = pretrain.run(PretrainConfig(**measured_settings))
    record = json.loads((run.folder / "run.json").read_text())
    assert set(record["weights"]) == {"encoder"}
    measured = record["measured_gaze"]
    assert measured["train"]["files"] == {"general_eye_gaze_2d": 5}
    assert measured["val"]["files"] == {"general_eye_gaze_2d": 2}
    assert measured["train"]["steps_known"] > 100
    assert measured["train"]["steps_unknown"] > 20
    assert measured["val"]["steps_known"] > 40
    assert record["coverage"]["train gaze files"]["excluded"] == {"no gaze file": 1}
    assert record["coverage"]["train videos"]["used"] == 6  # a video without gaze is still trained on

    stage1 = load_stage1(run.folder)
    assert stage1.world.grid.gaze == "measured"
    assert stage1.world.observer.gazelle is None
    assert stage1.world.predictor.gate != 0
    ego_settings["probe"]["gaze_point"] = "measured"
    ego_settings["gaze_files"] = {"folder": folder}
    result = anticipate.run(AnticipateConfig(**ego_settings, checkpoint=run.folder))
    record = json.loads((result.folder / "run.json").read_text())
    assert record["measured_gaze"]["train"]["files"] == {"general_eye_gaze_2d": 5}
    assert record["stage1"]["predictor_sha256"] == run.predictor_sha256
    assert torch.isfinite(result.logits_SC).all()

    # Saved whole and read back, it is still a model of measured gaze.
    stage1.world.save_pretrained(tmp_path / "model")
    again = load_stage1(tmp_path / "model")
    assert again.world.grid == stage1.world.grid
    assert again.predictor_sha256 == run.predictor_sha256
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["spec"]["grid"].pop("measured_gaze")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="parts do not go together"):
        HumanWorldModel.from_pretrained(tmp_path / "model")


def test_steps_without_gaze_are_never_taken_for_gaze_of_zeros(
    measured_settings: dict[str, Any], toy_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training, in validation and in stage 2, wherever the predictor is given scene tokens."""
    folder = gaze_files_of(toy_world, tmp_path / "gaze")
    names = {part: (toy_world / "lists" / f"{part}_ego.txt").read_text().split()[0] for part in ("train", "val")}
    for name in names.values():
        shutil.rmtree(folder / "takes" / Path(name).parts[-3])
    measured_settings["gaze_files"] = {"folder": folder}
    measured_settings["loss"] = {"gaze_dropout": 0}
    teacher_forced, seen = GazePredictor.teacher_forced, []

    def watched(self: GazePredictor, z: Any, scene: Any, known: Any = None, valid: Any = None) -> Any:
        seen.append((scene.flatten(2).any(dim=2), known, self.training))
        return teacher_forced(self, z, scene, known, valid)

    monkeypatch.setattr(GazePredictor, "teacher_forced", watched)
    world = load_stage1(pretrain.run(PretrainConfig(**measured_settings)).folder).world
    for training in (True, False):
        there, known = (torch.cat([row[part].flatten() for row in seen if row[2] == training]) for part in (0, 1))
        assert torch.equal(there, known)
        assert 0 < known.sum() < known.numel()

    monkeypatch.setattr(GazePredictor, "teacher_forced", teacher_forced)
    with torch.no_grad():
        world.predictor.gate_parameter.fill_(0.1)
        world.predictor.stack.predictor_proj.weight.normal_(std=0.3)
    video = probe_video((toy_world / "lists" / names["val"]).resolve())
    clip = ClipRequest(video, 3, 4, centre_square(video))
    live = LiveSource(world.observer, world.grid, torch.device("cpu"), num_workers=0)
    source = MeasuredSource(live, GazeFiles(folder, GazeFilesConfig()), world, scene=True, point=True)
    features = compute_features(
        world,
        source,
        [FeatureRequest(clip, 2, 1.0)],
        "context+future",
        True,
        2,
        tmp_path / "f.npy",
        1,
        lambda done: None,
    )
    z = next(iter(live.batches([[clip]]))).z_BTND
    blind = world.imagine(z, None, 2).z_BKND.half().numpy()
    assert np.array_equal(features.tokens_STND[:, 4:, :-1], blind)  # conditioned on "no gaze", not on a map of zeros
    assert not features.tokens_STND[:, :, -1].any()
    assert not features.gaze_known_ST.any()
    assert features.valid_ST.all()


def test_two_runs_on_measured_gaze_are_the_same_and_not_those_without(measured_settings: dict[str, Any]) -> None:
    one = pretrain.run(PretrainConfig(**measured_settings | {"name": "one"}))
    two = pretrain.run(PretrainConfig(**measured_settings | {"name": "two"}))
    assert one.predictor_sha256 == two.predictor_sha256
    blind = pretrain.run(PretrainConfig(**measured_settings | {"name": "blind", "gaze": "none"}))
    assert blind.predictor_sha256 != one.predictor_sha256


def test_gaze_after_the_last_observed_step_leaves_the_logits_as_they_are(
    measured_settings: dict[str, Any], ego_settings: dict[str, Any], toy_world: Path, tmp_path: Path
) -> None:
    """Every role at once: condition of the world model, gaze point of the probe, through to the logits."""
    world = load_stage1(pretrain.run(PretrainConfig(**measured_settings)).folder).world
    with torch.no_grad():
        world.predictor.gate_parameter.fill_(0.1)
        world.predictor.stack.predictor_proj.weight.normal_(std=0.3)
    config = AnticipateConfig(**ego_settings)
    table = read_annotations(config.annotations.val, config.annotations, None)
    samples, _ = anticipate.validation_samples(table, config, world.grid.fps)
    torch.manual_seed(0)
    probe = StepProbe(StepProbeSpec(32, 4 + 5, 17, {"step": (1, 6)}, num_heads=2, gaze_point=True)).eval()
    torch.nn.init.normal_(probe.gaze_head.weight)
    rng = np.random.default_rng(0)
    folder = gaze_files_of(toy_world, tmp_path / "gaze")
    changed = {"later": 0, "earlier": 0}
    for sample in samples[:6]:
        video = sample.segment.video
        csv = folder / "takes" / video.path.parts[-3] / "eye_gaze" / "general_eye_gaze_2d.csv"
        original = csv.read_text().splitlines()
        last_time_sec = sample.observation.last_time_sec
        assert last_time_sec <= sample.segment.start_sec - config.protocol.horizon_sec
        request = anticipate.feature_request(sample, config.protocol.id)
        said = {}
        for which in ("as it is", "later", "earlier"):
            lines = [original[0]]
            for line in original[1:]:
                number, clock, x, y = line.split(",")
                if which != "as it is" and (int(number) * 0.1 > last_time_sec + 1e-6) == (which == "later"):
                    x, y = (f"{value:.3f}" for value in rng.uniform(0, 1408, 2))
                lines.append(",".join((number, clock, x, y)))
            csv.write_text("\n".join(lines) + "\n")
            live = LiveSource(world.observer, world.grid, torch.device("cpu"), num_workers=0)
            source = MeasuredSource(live, GazeFiles(folder, GazeFilesConfig()), world, scene=True, point=True)
            features = compute_features(
                world, source, [request], "context+future", True, 5, tmp_path / "f.npy", 1, lambda done: None
            )
            masks = (torch.from_numpy(mask) for mask in (features.valid_ST, features.gaze_known_ST))
            with torch.inference_mode():
                said[which] = probe(torch.from_numpy(np.array(features.tokens_STND)).float(), *masks)["step"]
        csv.write_text("\n".join(original) + "\n")
        for which in changed:
            changed[which] += not torch.equal(said["as it is"], said[which])
    assert changed == {"later": 0, "earlier": 6}


def test_measured_gaze_is_refused_where_there_is_none(
    measured_settings: dict[str, Any], ego_settings: dict[str, Any], toy_world: Path
) -> None:
    with pytest.raises(ValidationError, match=r"gaze_files\.folder"):
        PretrainConfig(**measured_settings | {"gaze_files": {}})
    with pytest.raises(ConfigError, match=r"gaze_files\.folder = nowhere"):
        require_inputs(PretrainConfig(**measured_settings | {"gaze_files": {"folder": "nowhere"}}))
    exo = {"train": [str(toy_world / "lists" / "train_cam01.txt")], "val": [str(toy_world / "lists" / "val_cam01.txt")]}
    with pytest.raises(DataError, match="no step of the train videos has measured gaze") as caught:
        pretrain.run(PretrainConfig(**measured_settings | {"name": "exo", "data": measured_settings["data"] | exo}))
    assert f"6 × not the ego view; looked in {toy_world}" in str(caught.value)

    blind = pretrain.run(PretrainConfig(**measured_settings | {"name": "blind", "gaze": "none"})).folder
    ego_settings["probe"]["gaze_point"] = "measured"
    assert anticipate.run(AnticipateConfig(**ego_settings, checkpoint=blind)).scores  # the probe alone
    ego_settings["annotations"]["view"] = "cam01"
    with pytest.raises(ConfigError, match="measured in the ego view only"):
        anticipate.run(AnticipateConfig(**ego_settings, checkpoint=blind))


@pytest.mark.parametrize("gaze", ["estimated", "none"])
def test_measured_gaze_that_only_judges_is_recorded_and_refused_where_there_is_none(
    measured_settings: dict[str, Any], toy_world: Path, tiny_weights: Path, tmp_path: Path, gaze: str
) -> None:
    folder = gaze_files_of(toy_world, tmp_path / "gaze")
    measured_settings["optim"]["num_steps"] = 1
    measured_settings |= {
        "gaze": gaze,
        "validation_gaze": "measured",
        "gaze_files": {"folder": folder},
        "gazelle": {"weights": str(tiny_weights / "gazelle"), "resolution": 56},
    }
    record = json.loads((pretrain.run(PretrainConfig(**measured_settings)).folder / "run.json").read_text())
    assert "near/skill_1" in record["validation"]
    parts = ("train", "val") if gaze == "estimated" else ("val",)
    assert set(record["measured_gaze"]) == set(parts)
    assert {f"{part} gaze files" for part in parts} <= set(record["coverage"])

    (val, *_) = (toy_world / "lists" / "val_ego.txt").read_text().split()
    damaged = next((folder / "takes" / Path(val).parts[-3]).rglob("*.csv"))
    damaged.write_text("not a gaze file")
    record = json.loads(
        (pretrain.run(PretrainConfig(**measured_settings), resume=False).folder / "run.json").read_text()
    )
    (excluded,) = record["coverage"]["val gaze files"]["excluded"]
    assert excluded.startswith("gaze file cannot be used")

    for path in folder.rglob("*.csv"):
        path.unlink()
    with pytest.raises(DataError, match=f"no step of the {parts[0]} videos has measured gaze"):
        pretrain.run(PretrainConfig(**measured_settings), resume=False)


def test_the_gaze_point_names_its_source() -> None:
    with pytest.raises(ConfigError, match=r"none, estimated \(once true\) or measured"):
        load_config(AnticipateConfig, "anticipate/toyworld", ["probe.gaze_point=true"])
    with pytest.raises(ValidationError, match="'none', 'estimated' or 'measured'"):
        ProbeConfig(gaze_point="yes")  # pyright: ignore[reportArgumentType]


def test_a_gaze_point_that_is_not_known_is_not_read_and_changes_no_other() -> None:
    torch.manual_seed(0)
    module = StepProbe(StepProbeSpec(8, 3, 5, {"step": (1, 4)}, num_heads=2, gaze_point=True))

    def probe(*given: torch.Tensor) -> torch.Tensor:
        return module(*given)["step"]

    torch.nn.init.normal_(module.gaze_head.weight)
    features, valid = torch.randn(6, 3, 5, 8), torch.ones(6, 3, dtype=torch.bool)
    known = valid.clone()
    known[:, 1] = False
    before = probe(features, valid, known)
    assert not torch.allclose(before, probe(features, valid))
    features[:, 1, -1] = 100.0
    torch.testing.assert_close(probe(features, valid, known), before)
    features[:, 1, :-1] = torch.randn(6, 4, 8) * 3  # the patches of that step are read
    assert not torch.allclose(probe(features, valid, known), before)
    features[:, :, -1] = 0.0  # as `compute_features` writes what is unknown
    logits = probe(features, valid, torch.zeros_like(valid))
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
