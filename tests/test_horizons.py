"""Several validation horizons in one run, and the last observed latent in the place of imagined ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from hwm.config import AnticipateConfig, Gaze, PretrainConfig, ProtocolConfig, VJEPA2BackboneConfig
from hwm.data.annotations import read_annotations
from hwm.data.protocol import START_MINUS_TAU, Observation, observe_before
from hwm.engine.assemble import load_stage1
from hwm.errors import ConfigError, DataError
from hwm.models.step_probe import Pooler
from hwm.pipelines import anticipate, predict, pretrain
from hwm.recipes import load_config
from hwm.tokens.features import Inputs, RolloutKind, compute_features
from hwm.tokens.source import LiveSource
from hwm.tokens.vjepa2_foresight import open_vjepa2_foresight
from hwm.tokens.world_foresight import open_world_foresight

CPU = torch.device("cpu")
CURVE = (0.5, 3.0)
NoisyCopy = Callable[[Path, Path, float, int | None], None]


@pytest.fixture
def stage1(stage1_settings: dict[str, Any]) -> Path:
    stage1_settings["optim"]["num_steps"] = 2
    return pretrain.run(PretrainConfig(**stage1_settings)).folder


def curved(settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return settings | {"protocol": settings["protocol"] | {"curve_sec": CURVE} | more}


def test_one_probe_is_scored_at_every_horizon(stage1: Path, stage2_settings: dict[str, Any]) -> None:
    config = AnticipateConfig(**curved(stage2_settings), checkpoint=stage1)
    result = anticipate.run(config)
    record = json.loads((result.folder / "run.json").read_text())
    assert list(record["scores_by_horizon"]) == ["1", "0.5", "3"]
    assert record["scores_by_horizon"]["1"] == record["scores"] == result.scores
    assert any("3 s lie beyond protocol.train_horizon_sec" in warning for warning in record["warnings"])
    assert [at.horizon_sec for at in result.curve] == list(CURVE)
    table = read_annotations(config.annotations.val, config.annotations, None)
    for at, name in zip(result.curve, ("-0.5s", "-3s"), strict=True):
        stored = load_file(result.folder / f"outputs{name}.safetensors")
        assert torch.equal(stored["logits"], at.outputs[0].logits_SZC[:, 0])
        rows = json.loads((result.folder / f"segments{name}.json").read_text())["segments"]
        assert [row["row"] for row in rows] == [sample.segment.row for sample in at.samples]
        assert record["scores_by_horizon"][f"{at.horizon_sec:g}"] == at.scores
        for segment, observation, horizon_sec in at.samples:
            assert horizon_sec == at.horizon_sec
            assert observation.last_time_sec <= segment.start_sec - at.horizon_sec < observation.last_time_sec + 0.25
        coverage = record["coverage"][f"val{name} segments"]
        late = [segment.row for segment in table.segments if segment.start_sec >= at.horizon_sec]
        assert [row["row"] for row in rows] == late
        assert coverage["used"] == len(late)
        assert coverage["expected"] == coverage["used"] + len(coverage["items"])
        # The same probe, read back and asked at that horizon alone, says the same.
        alone = stage2_settings | {"name": f"at{name}", "saved_probe": result.folder / "probe.safetensors"}
        alone["protocol"] = stage2_settings["protocol"] | {"horizon_sec": at.horizon_sec}
        again = anticipate.run(AnticipateConfig(**alone, checkpoint=stage1))
        torch.testing.assert_close(again.logits_SC, stored["logits"], atol=1e-6, rtol=1e-4)
        assert again.scores["probe"] == pytest.approx(at.scores["probe"], abs=1e-6)
        warnings = json.loads((again.folder / "run.json").read_text())["warnings"]
        assert any("protocol.horizon_sec: 3 s lie beyond" in text for text in warnings) == (at.horizon_sec == 3)
    assert record["coverage"]["val-3s segments"]["excluded"]["starts before the horizon"] > 0
    assert not list(result.folder.glob("features-*"))


@pytest.mark.parametrize("trained", [5, 18])
def test_clips_longer_than_those_of_stage_1_are_said(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], trained: int
) -> None:
    stage1_settings["optim"]["num_steps"] = 1
    stage1_settings["data"]["num_steps"] = trained
    checkpoint = pretrain.run(PretrainConfig(**stage1_settings)).folder
    result = anticipate.run(AnticipateConfig(**curved(stage2_settings), checkpoint=checkpoint))
    record = json.loads((result.folder / "run.json").read_text())
    reached = record["steps_reached"]
    for name, samples in (("val", result.samples), ("val-3s", result.curve[1].samples)):
        assert reached[name] == max(s.observation.num_steps + s.observation.num_future for s in samples)
    assert reached["val"] in (8, 9), "four steps are seen, and four or five lie in the second to the start"
    assert (reached["stage1"], set(reached)) == (trained, {"stage1", "train", "val", "val-0.5s", "val-3s"})
    said = [text for text in record["warnings"] if "trained on clips of" in text]
    assert len(said) == (trained == 5)
    assert all(f"{reached['val-3s']} (val-3s)" in text for text in said)


@pytest.mark.parametrize("name", ["ego-exo4d-keystep", "ego4d-goalstep", "ego4d-lta", "epic-kitchens-100"])
def test_recipes_of_released_models_fit_the_clips_of_their_stage_1(name: str) -> None:
    clips = load_config(PretrainConfig, "pretrain/ego4d-vitl").data
    protocol = load_config(AnticipateConfig, f"anticipate/{name}-vitl").protocol
    starts = [10 + step / 100 for step in range(100)]
    longest = max(protocol.train_horizon_sec[1], protocol.horizon_sec, *protocol.curve_sec)
    seen = [
        observe_before(start, start + 1, longest, clips.fps, protocol.num_steps, START_MINUS_TAU) for start in starts
    ]
    reached = {one.num_steps + one.num_future for one in seen if isinstance(one, Observation)}
    assert max(reached) <= clips.num_steps


def test_nothing_is_said_of_clips_that_are_not_continued(stage1: Path, stage2_settings: dict[str, Any]) -> None:
    stage2_settings["probe"]["inputs"] = "context"
    result = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=stage1))
    assert "steps_reached" not in json.loads((result.folder / "run.json").read_text())


def test_horizons_are_guarded_one_by_one(stage1: Path, stage2_settings: dict[str, Any]) -> None:
    config = AnticipateConfig(**stage2_settings)
    table = read_annotations(config.annotations.val, config.annotations, None)
    near, far = (anticipate.validation_samples(table, config, 4.0, tau)[0][-1] for tau in (0.5, 3.0))
    assert near.segment == far.segment
    with pytest.raises(DataError, match="looks into the future"):
        anticipate.feature_request(near._replace(horizon_sec=3.0), config.protocol.id)
    anticipate.feature_request(far._replace(horizon_sec=0.5), config.protocol.id)
    with pytest.raises(DataError, match="observed 900 s before"):
        anticipate.validation_samples(table, config, 4.0, 900.0)


@pytest.mark.parametrize("tau", CURVE)
def test_pixels_after_the_anchor_of_a_horizon_change_nothing(
    stage1: Path, stage2_settings: dict[str, Any], noisy_copy: NoisyCopy, tmp_path: Path, tau: float
) -> None:
    world = load_stage1(stage1).world
    with torch.no_grad():
        world.predictor.gate_parameter.fill_(0.1)
        world.predictor.stack.predictor_proj.weight.normal_(std=0.3)
    config = AnticipateConfig(**stage2_settings)
    table = read_annotations(config.annotations.val, config.annotations, None)
    sample = anticipate.validation_samples(table, config, 4.0, tau)[0][2]
    source = LiveSource(world.observer, world.grid, CPU, num_workers=0)
    features = []
    for seed, after in ((None, 0.0), (1, tau), (1, tau + 0.5)):  # nothing; all after the anchor; half a second more
        path = tmp_path / "copy.mkv"
        noisy_copy(sample.segment.video.path, path, sample.segment.start_sec - after, seed)
        moved = sample._replace(segment=sample.segment._replace(video=sample.segment.video._replace(path=path)))
        request = anticipate.feature_request(moved, config.protocol.id)
        made = compute_features(
            world, source, [request], "context+future", False, 13, tmp_path / "f.npy", 1, lambda done: None
        )
        features.append(np.array(made.tokens_STND))
    assert np.array_equal(features[0], features[1])
    assert not np.array_equal(features[0], features[2])


def test_imagination_goes_on_beyond_the_start_where_it_is_asked(
    stage1: Path, stage2_settings: dict[str, Any], tmp_path: Path
) -> None:
    world = load_stage1(stage1).world
    with torch.no_grad():
        world.predictor.stack.predictor_proj.weight.normal_(std=0.3)
    source = LiveSource(world.observer, world.grid, CPU, num_workers=0)
    further = stage2_settings | {"protocol": stage2_settings["protocol"] | {"beyond_start_sec": 0.5}}
    made = []
    for settings in (stage2_settings, further):
        config = AnticipateConfig(**settings)
        table = read_annotations(config.annotations.val, config.annotations, None)
        sample = anticipate.validation_samples(table, config, 4.0)[0][2]
        request = anticipate.feature_request(sample, config.protocol.id, config.protocol.beyond_start_sec)
        assert request.ahead_sec == 1.0 + config.protocol.beyond_start_sec
        features = compute_features(
            world, source, [request], "future", False, request.num_future, tmp_path / "f.npy", 1, lambda done: None
        )
        made.append(np.array(features.tokens_STND[0]))
    assert len(made[1]) == len(made[0]) + 2, "half a second at four steps a second"
    assert np.array_equal(made[1][:-2], made[0]), "the same future, longer"
    assert not np.array_equal(made[1][-1], made[0][-1])

    world.save_pretrained(tmp_path / "model")
    result = anticipate.run(AnticipateConfig(**further, checkpoint=tmp_path / "model"))
    sample = result.samples[-1]
    at = sample.segment.start_sec - sample.horizon_sec
    said = {
        guess.id: guess.probability for guess in predict.run(result.folder, sample.segment.video.path, at).tasks["step"]
    }
    expected = result.logits_SC[-1].softmax(0).tolist()
    assert [said[class_id] for class_id in result.classes.ids] == pytest.approx(expected, abs=1e-4)


def test_what_lies_beyond_the_start_is_not_asked_of_clips_that_show_it() -> None:
    with pytest.raises(ValidationError, match="beyond_start_sec is of start-minus-tau/v1"):
        ProtocolConfig(id="legacy-end-minus-tau", beyond_start_sec=0.5)


def test_v_jepa_2_has_horizons_too_within_its_positions(
    stage2_settings: dict[str, Any], tiny_weights: Path, tmp_path: Path
) -> None:
    from hwm.models.masked_predictor import MaskedPredictor, MaskedPredictorSpec
    from hwm.weights.load import save_model

    save_model(MaskedPredictor(MaskedPredictorSpec(32, 24, 1, 2)), tmp_path / "predictor")
    settings = curved(stage2_settings, num_steps=4) | {
        "backbone": {
            "kind": "vjepa2",
            "encoder": {"weights": str(tiny_weights / "encoder"), "resolution": 64},
            "predictor": {"weights": str(tmp_path / "predictor")},
            "position_frames": 30,
        },
        "tokens": {"source": "live"},
        "probe": stage2_settings["probe"] | {"num_epochs": 1},
    }
    result = anticipate.run(AnticipateConfig(**settings))
    assert [len(at.samples) > 0 for at in result.curve] == [True, True]
    assert (result.folder / "outputs-3s.safetensors").is_file()
    settings["backbone"]["position_frames"] = 28
    config = AnticipateConfig(**settings)
    assert isinstance(config.backbone, VJEPA2BackboneConfig)
    with pytest.raises(ConfigError, match="beyond the positions"):  # before anything is decoded
        open_vjepa2_foresight(config, config.backbone, CPU)


@pytest.mark.parametrize("curve", [(1.0,), (0.0,), (-1.0,), (2.0, 2.0)])
def test_a_horizon_is_positive_and_named_once(curve: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="curve_sec must be positive seconds"):
        ProtocolConfig(curve_sec=curve)


def test_copy_last_needs_a_probe_that_reads_what_is_to_come(stage2_settings: dict[str, Any]) -> None:
    stage2_settings["probe"]["inputs"] = "context"
    with pytest.raises(ValidationError, match="reads no step of"):
        AnticipateConfig(**stage2_settings | {"backbone": {"kind": "hwm", "rollout": "copy-last"}})


def test_copy_last_gives_the_last_observed_latent_and_asks_no_predictor(
    stage1: Path, stage2_settings: dict[str, Any], tmp_path: Path
) -> None:
    world = load_stage1(stage1).world
    with torch.no_grad():
        world.predictor.stack.predictor_proj.weight.fill_(float("nan"))
    config = AnticipateConfig(**stage2_settings)
    table = read_annotations(config.annotations.val, config.annotations, None)
    sample = anticipate.validation_samples(table, config, 4.0)[0][2]
    request = anticipate.feature_request(sample, config.protocol.id)
    source = LiveSource(world.observer, world.grid, CPU, num_workers=0)
    made = compute_features(
        world, source, [request], "context+future", True, 7, tmp_path / "f.npy", 1, lambda done: None, "copy-last"
    )
    context, missing = config.protocol.num_steps, 7 - request.num_future
    assert missing > 0
    future = np.array(made.tokens_STND)[0, context:]
    assert np.array_equal(made.valid_ST[0, context:], np.arange(7) >= missing)
    assert not future[:missing].any()
    for step in future[missing:]:  # the gaze point too
        assert np.array_equal(step, made.tokens_STND[0, context - 1])


def test_the_probe_is_given_what_the_recipe_asks_of_the_world_model(
    stage1: Path, stage2_settings: dict[str, Any], tmp_path: Path
) -> None:
    """Computed anew with the settings written out: roll-out, steps, patches, gaze point, and room for all horizons."""
    annotations = AnticipateConfig(**stage2_settings).annotations
    table = read_annotations(annotations.val, annotations, None)
    asked: list[tuple[RolloutKind, Inputs, Pooler, Gaze]] = [
        ("imagined", "context+future", "attentive", "estimated"), ("copy-last", "future", "attentive", "none"),
        ("imagined", "future", "mean", "none"), ("imagined", "context", "attentive", "none"),
    ]  # fmt: skip
    for rollout, inputs, pooler, gaze in asked:
        probe = {"inputs": inputs, "pooler": pooler, "gaze_point": gaze}
        settings = stage2_settings | {"probe": probe, "backbone": {"kind": "hwm", "rollout": rollout}}
        config = AnticipateConfig(**settings, checkpoint=stage1)
        foresight = open_world_foresight(config, CPU)
        world = foresight._stage1.world
        with torch.no_grad():
            world.predictor.stack.predictor_proj.weight.normal_(std=0.3)
        sets = {
            name: [
                anticipate.feature_request(sample, config.protocol.id)
                for sample in anticipate.validation_samples(table, config, foresight.fps, tau)[0][-3:]
            ]
            for name, tau in (("near", 0.5), ("far", 3.0))
        }
        foresight.prepare(anticipate.videos_of(table), lambda done: None)
        done: list[int] = []
        found = foresight.features(sets, tmp_path, done.append)
        assert done == sorted(set(done))
        assert done[-1] == 6
        slots = max(request.num_future for request in sets["far"])
        expected = compute_features(
            world, foresight._source, sets["near"], inputs, gaze != "none", slots, tmp_path / "expected.npy", 8,
            lambda done: None, rollout, "mean" if pooler == "mean" else "all",
        )  # fmt: skip
        for name, value in found["near"]._asdict().items():
            np.testing.assert_array_equal(value, getattr(expected, name), err_msg=f"{rollout} {inputs} {name}")
        num_steps = found["near"].tokens_STND.shape[1]
        assert num_steps == (0 if inputs == "future" else 4) + (0 if inputs == "context" else slots)
        near = foresight.features({"near": sets["near"]}, tmp_path, done.append, num_slots=num_steps)["near"]
        np.testing.assert_array_equal(near.tokens_STND, expected.tokens_STND)
        assert foresight.trained_steps == (5 if rollout == "imagined" and inputs != "context" else None)
        assert foresight.facts["backbone"]["rollout"] == rollout


def test_a_run_of_copy_last_says_so_and_its_probe_is_its_own(stage1: Path, stage2_settings: dict[str, Any]) -> None:
    copied = stage2_settings | {"backbone": {"kind": "hwm", "rollout": "copy-last"}}
    result = anticipate.run(AnticipateConfig(**copied, checkpoint=stage1))
    assert json.loads((result.folder / "run.json").read_text())["backbone"]["rollout"] == "copy-last"
    saved = {"saved_probe": result.folder / "probe.safetensors"}
    again = anticipate.run(AnticipateConfig(**copied | saved | {"name": "again"}, checkpoint=stage1))
    torch.testing.assert_close(again.logits_SC, result.logits_SC, atol=1e-6, rtol=1e-4)
    with pytest.raises(ConfigError, match="another rollout"):
        anticipate.run(AnticipateConfig(**stage2_settings | saved | {"name": "other"}, checkpoint=stage1))
