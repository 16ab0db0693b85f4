"""The precision of frozen models is a setting: honoured, in the cache's key, taken over by stage 2, refused by name.

Runs also say whether the encoder was compiled; see test_compiling.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hwm.config import AdaptConfig, AdaptGazeConfig, AnticipateConfig, GazeScoreConfig, PretrainConfig, RunConfig
from hwm.data.clips import find_videos
from hwm.engine import runtime
from hwm.engine import sweep as sweeping
from hwm.engine.assemble import load_stage1, new_world
from hwm.errors import ConfigError
from hwm.models.layers import Block
from hwm.models.vjepa2 import VJEPA2Encoder
from hwm.models.world_model import TimeGrid
from hwm.pipelines import anticipate, extract, gaze_score, pretrain, pretrain_data, validation_gaze
from hwm.tokens.cache import TokenCache
from hwm.tokens.extraction import centre_only
from hwm.tokens.source import CachedSource
from hwm.weights.pretrained import HumanWorldModel

CPU = torch.device("cpu")
LOW: dict[str, Any] = {"precision": "bf16-mixed"}
WEIGHTS = {"encoder": "e", "gazelle": "g"}
GRID = TimeGrid(4.0, "frame", 64, 56)


def dtypes(module: torch.nn.Module) -> set[torch.dtype]:
    """Of the linear layers in blocks."""
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    return {block.attn.qkv.weight.dtype for block in blocks} | {block.mlp.fc2.weight.dtype for block in blocks}


def test_frozen_models_are_float32_unless_told_otherwise(stage1_settings: dict[str, Any]) -> None:
    world = new_world(PretrainConfig(**stage1_settings)).world
    assert {parameter.dtype for parameter in world.parameters()} == {torch.float32}


@pytest.mark.parametrize("part", ["encoder", "gazelle"])
def test_a_precision_holds_for_the_part_that_it_names(stage1_settings: dict[str, Any], part: str) -> None:
    plain = new_world(PretrainConfig(**stage1_settings)).world
    stage1_settings[part] |= LOW
    world = new_world(PretrainConfig(**stage1_settings)).world
    observer = world.observer
    assert observer.gazelle is not None
    assert dtypes(observer.encoder) == {torch.bfloat16 if part == "encoder" else torch.float32}
    assert dtypes(observer.gazelle) == {torch.bfloat16 if part == "gazelle" else torch.float32}
    assert dtypes(world.predictor) == {torch.float32}
    asked = [name for name, precision in world.grid.precisions.items() if precision == "bf16-mixed"]
    assert asked == [f"{part}.precision"]
    frames, gaze = torch.randn(2, 1, 1, 3, 64, 64), torch.randn(2, 1, 3, 56, 56)
    low, high = world.observe(frames, gaze), plain.observe(frames, gaze)
    changed = {"z": low.z_SND - high.z_SND, "scene": low.scene_SNG - high.scene_SNG}  # type: ignore[operator]
    moved = "z" if part == "encoder" else "scene"
    assert 1e-5 < changed.pop(moved).abs().max() < 0.2
    assert all(not difference.any() for difference in changed.values())


def folders(**changes: Any) -> dict[str, Path]:
    return TokenCache(Path("t"), TimeGrid(4.0, "frame", 64, 56, **changes), WEIGHTS)._folders


def test_the_caches_key_tells_precisions_apart() -> None:
    plain = folders()
    low_encoder, low_gazelle = folders(encoder_precision="bf16-mixed"), folders(gazelle_precision="bf16-mixed")
    assert low_encoder["z"] != plain["z"]
    assert low_encoder["scene"] not in (plain["scene"], low_gazelle["scene"])
    assert low_gazelle["z"] == plain["z"]  # latents know no Gazelle
    assert low_gazelle["scene"] != plain["scene"]
    # A float32 cache made before there was a choice is still found: its identity has no word of precision.
    identity = TokenCache(Path("t"), GRID, WEIGHTS)._identities["z"]
    assert json.loads(identity)["encoder"] == ["e", 64]


def test_a_float32_cache_is_not_read_as_bfloat16(
    stage1_settings: dict[str, Any], toy_world: Path, tmp_path: Path
) -> None:
    videos = find_videos([toy_world / "lists" / "train_cam01.txt"], "**/*", 1.0, None).videos[:1]
    read = {}
    for precision in ("32-true", "bf16-mixed"):
        stage1_settings["encoder"]["precision"] = precision
        world, weights = new_world(PretrainConfig(**stage1_settings))
        cache = TokenCache(tmp_path / "t", world.grid, weights)
        box = centre_only(videos[0])[0]
        assert "z" in cache.missing(videos[0].path, box)
        CachedSource(world.observer, world.grid, CPU, cache).prepare(videos, lambda done: None)
        read[precision] = cache.read(videos[0].path, box, 0, 4).z_SND
    assert not torch.equal(read["32-true"], read["bf16-mixed"])


def test_stage_2_and_saved_models_take_the_precision_over(stage1_settings: dict[str, Any], tmp_path: Path) -> None:
    stage1_settings["encoder"] |= LOW
    stage1_settings["optim"] |= {"num_steps": 1}
    result = pretrain.run(PretrainConfig(**stage1_settings))
    world = load_stage1(result.folder).world
    assert (world.grid.encoder_precision, world.grid.gazelle_precision) == ("bf16-mixed", "32-true")
    world.save_pretrained(tmp_path / "model")
    again = HumanWorldModel.from_pretrained(tmp_path / "model")
    frames = torch.randn(1, 2, 1, 3, 64, 64)
    for model in (world, again):
        assert dtypes(model.observer.encoder) == {torch.bfloat16}
        assert model.observer.gazelle is not None
        assert dtypes(model.observer.gazelle) == {torch.float32}
    assert torch.equal(again.observe(frames).z_SND, world.observe(frames).z_SND)


def test_another_target_encoder_has_its_own_precision(stage1_settings: dict[str, Any]) -> None:
    stage1_settings["target_encoder"] = stage1_settings["encoder"] | LOW
    seer = pretrain_data.target_seer(PretrainConfig(**stage1_settings))
    assert seer is not None
    assert seer.grid.encoder_precision == "bf16-mixed"
    assert dtypes(seer.observer.encoder) == {torch.bfloat16}


@pytest.mark.parametrize("part", ["encoder", "gazelle"])
def test_a_judge_sees_as_the_settings_say(part: str, stage1_settings: dict[str, Any]) -> None:
    stage1_settings[part] |= LOW
    config = PretrainConfig(**stage1_settings | {"gaze": "none", "validation_gaze": "estimated"})
    world, weights = new_world(config)
    seer = validation_gaze.judge_seer(config, world, weights)
    assert seer is not None
    assert seer.grid.gazelle_resolution == config.gazelle.resolution
    assert seer.grid.precisions[f"{part}.precision"] == "bf16-mixed"
    assert list(seer.grid.precisions.values()).count("bf16-mixed") == 1
    # Its latents are the world model's own, and are cached once for both.
    latents = [TokenCache(Path("t"), grid, of)._folders["z"] for grid, of in ((world.grid, weights), seer[1:])]
    assert latents[0] == latents[1]


def test_a_device_without_bfloat16_refuses_it_by_name(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "has_bfloat16", lambda device: False)
    runtime.check_precision(CPU, {"encoder.precision": "32-true"})
    settings = stage1_settings | {"encoder": stage1_settings["encoder"] | LOW}
    with pytest.raises(ConfigError, match=r"encoder\.precision cannot be bf16-mixed") as error:
        pretrain.run(PretrainConfig(**settings))
    assert str(error.value.fix).startswith("encoder.precision=32-true")
    with pytest.raises(ConfigError, match=r"encoder\.precision"):
        extract.run(PretrainConfig(**settings), lambda estimate: None)
    pair: dict[str, Any] = {"kind": "vjepa2", "encoder": LOW, "predictor": LOW}
    with pytest.raises(ConfigError, match=r"backbone\.encoder\.precision and backbone\.predictor\.precision"):
        anticipate.run(AnticipateConfig(**stage2_settings | {"backbone": pair, "tokens": {}}))
    scored: dict[str, Any] = {
        "name": "s",
        "videos": ["a"],
        "prior_videos": ["b"],
        "gaze_files": {"folder": "c"},
        "gazelle": LOW,
    }
    with pytest.raises(ConfigError, match=r"gazelle\.precision"):
        gaze_score.run(GazeScoreConfig(**scored))


def test_settings_that_nothing_would_read_are_refused() -> None:
    data: dict[str, Any] = {"train": ["a"], "val": ["b"]}
    with pytest.raises(ValidationError, match=r"init\.precision is of frozen encoders"):
        AdaptConfig(name="a", data=data, init=LOW)  # type: ignore[arg-type]
    scored: dict[str, Any] = {"videos": ["a"], "prior_videos": ["b"], "gaze_files": {"folder": "c"}}
    verbs: list[tuple[type[RunConfig], dict[str, Any]]] = [
        (AdaptConfig, {"data": data}), (AdaptGazeConfig, {"world": "w"}), (GazeScoreConfig, scored),
    ]  # fmt: skip
    given = {"compile": True, "num_workers": 2, "recompute_activations": True, "precision": "bf16-mixed"}
    for verb, settings in verbs:
        for name, value in given.items():
            config = {"name": "a", **settings, "runtime": {name: value}}
            if verb is AdaptConfig and name == "precision":
                assert verb.model_validate(config).runtime.precision == "bf16-mixed"
                continue
            with pytest.raises(ValidationError, match=rf"runtime\.{name} is for pretrain"):
                verb.model_validate(config)


def test_stage_2_trains_its_probe_in_the_runs_precision(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage1_settings["optim"] |= {"num_steps": 1}
    checkpoint = pretrain.run(PretrainConfig(**stage1_settings)).folder
    loss_of_known, seen = sweeping.loss_of_known, []

    def watched(kind: sweeping.LossKind, logits: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
        seen.append((torch.is_grad_enabled() and logits["step"].requires_grad, logits["step"].dtype))
        return loss_of_known(kind, logits, labels)

    monkeypatch.setattr(sweeping, "loss_of_known", watched)
    for precision, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        seen.clear()
        run: dict[str, Any] = {
            "name": precision,
            "checkpoint": checkpoint,
            "runtime": {"device": "cpu", "precision": precision},
        }
        anticipate.run(AnticipateConfig(**stage2_settings | run))
        assert {found for training, found in seen if training} == {dtype}
        assert {found for training, found in seen if not training} == {torch.float32}  # scores


def test_runs_compile_where_they_are_told_to_and_record_why_not(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[VJEPA2Encoder] = []

    def no_compiler(encoder: VJEPA2Encoder, warn: Callable[[str], None]) -> None:
        asked.append(encoder)
        warn("no compiler on this machine")

    for module in ("hwm.pipelines.pretrain_data", "hwm.pipelines.extract", "hwm.tokens.world_foresight"):
        monkeypatch.setattr(f"{module}.compile_blocks", no_compiler)
    stage1_settings["optim"] |= {"num_steps": 1}
    plain = pretrain.run(PretrainConfig(**stage1_settings))
    assert not asked
    compiled: dict[str, Any] = {"runtime": {"device": "cpu", "compile": True}}
    two = {"target_encoder": stage1_settings["encoder"] | LOW, "name": "compiled"}
    pretrain.run(PretrainConfig(**(stage1_settings | compiled | two)))
    assert len(asked) == 2, "the world model and the target encoder"
    anticipate.run(AnticipateConfig(**(stage2_settings | compiled | {"checkpoint": plain.folder, "name": "second"})))
    extract.run(PretrainConfig(**(stage1_settings | compiled)), lambda estimate: None)
    runs = {"stage1": 0, "compiled": 1, "second": 1, "stage1-extract": 1}
    for name, times in runs.items():
        warnings = json.loads((plain.folder.parent / name / "run.json").read_text()).get("warnings", [])
        assert warnings.count("no compiler on this machine") == times, name
    assert len(asked) == 4
