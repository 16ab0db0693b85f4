"""Stage 1 as a run: resume equals straight on, bit for bit; no bad value reaches the weights."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from hwm.config import PretrainConfig
from hwm.data.batches import StepBatches
from hwm.data.clips import ClipPlan, find_videos
from hwm.data.seen_videos import take_name
from hwm.data.video import write_video
from hwm.engine.assemble import load_stage1, new_world
from hwm.engine.checkpoint import CheckpointStore
from hwm.engine.logged import TIMINGS, read_metrics
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import StopFlag, start
from hwm.errors import ConfigError, DataError, RunError
from hwm.evaluation.skill_by_take import read_errors
from hwm.losses import layer_normed
from hwm.models.predictor import GazePredictor
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
from hwm.pipelines import pretrain
from hwm.pipelines.pretrain_data import find_parts, open_data, target_seer, training_crops
from hwm.pipelines.validation import Validation, validate
from hwm.tokens.source import LiveSource
from hwm.weights.files import hash_file
from hwm.weights.load import save_model
from hwm.weights.pretrained import HumanWorldModel

CPU = torch.device("cpu")


class InterruptedRunError(Exception):
    """Stands for a machine that goes away."""


def test_a_run_leaves_a_model_that_loads_and_a_record(
    stage1_settings: dict[str, Any], toy_world: Path, tmp_path: Path
) -> None:
    result = pretrain.run(PretrainConfig(**stage1_settings))
    record = json.loads((result.folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["coverage"]["train videos"] == {"expected": 6, "used": 6, "excluded": {}, "items": []}
    assert set(record["weights"]) == {"encoder", "gazelle"}
    stage1 = load_stage1(result.folder)
    assert stage1.predictor_sha256 == result.predictor_sha256 == record["predictor_sha256"]
    assert stage1.world.predictor.gate != 0
    assert (result.folder / "checkpoints" / "latest").resolve().name == "step-000008"
    assert {"val/l1", "val/copy_l1", "val/skill", "val/skill_2"} <= set().union(*read_metrics(result.folder))
    by_take = read_errors(result.folder, record["world_scores_sha256"])
    assert by_take is not None
    listed = (toy_world / "lists" / "val_cam01.txt").read_text().split()
    assert set(by_take.takes) == {take_name(Path(line)) for line in listed}
    error_K, copied_K = by_take.sums[""].sum(axis=0)
    assert 1 - error_K[1] / copied_K[1] == pytest.approx(result.validation["skill_2"], abs=1e-9)
    timings = read_metrics(result.folder, TIMINGS)
    assert [line["step"] for line in timings] == [2, 4, 6, 8]
    assert all(0 < line["train/data_wait"] < 1 for line in timings)
    # The whole model, saved and read back, imagines the same.
    stage1.world.save_pretrained(tmp_path / "model")
    again = HumanWorldModel.from_pretrained(tmp_path / "model")
    z, scene = torch.randn(1, 3, 16, 32), torch.randn(1, 3, 16, 16)
    assert torch.equal(again.imagine(z, scene, 2).z_BKND, stage1.world.imagine(z, scene, 2).z_BKND)
    assert load_stage1(tmp_path / "model").predictor_sha256 == result.predictor_sha256


def test_a_run_is_adam_w_on_the_loss_of_its_batches(
    stage1_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: warm-up and cosine, clipping, and decay of matrices alone; validation is of the other videos."""
    stage1_settings["optim"] = {
        "lr": 2e-3, "num_steps": 5, "warmup_steps": 2, "batch_size": 4, "weight_decay": 5.0, "betas": (0.7, 0.9),
        "clip_norm": 0.02, "final_lr_ratio": 0.1,
    }  # fmt: skip
    config = PretrainConfig(**stage1_settings | {"loss": {"gaze_dropout": 0.5}})
    given: list[tuple[torch.Tensor, ...]] = []
    loss_of, validate, forecast = pretrain.predictor_losses, pretrain.validate, pretrain.forecast_gaze
    asked: dict[str, Any] = {}

    def watched(predictor: GazePredictor, *tensors: torch.Tensor, **weights: float) -> Any:
        given.append(tensors)
        return loss_of(predictor, *tensors, **weights)

    def validated(world: Any, source: Any, targets: Any, requests: Any, config: Any) -> Any:
        asked["validated"] = requests
        return validate(world, source, targets, requests, config)

    def forecasted(world: Any, source: Any, truths: Any, train: Any, requests: Any, config: Any) -> Any:
        asked["read out"], asked["forecast"] = train, requests
        return forecast(world, source, truths, train, requests, config)

    for name, function in (("predictor_losses", watched), ("validate", validated), ("forecast_gaze", forecasted)):
        monkeypatch.setattr(pretrain, name, function)
    trained = load_stage1(pretrain.run(config).folder).world.predictor
    listed = {part: find_videos(getattr(config.data, part), "**/*", 1.0).videos for part in ("train", "val")}
    for what, part in (("validated", "val"), ("forecast", "val"), ("read out", "train")):
        assert {clip.video for clip in asked[what]} == set(listed[part]), what

    # Half of the clips keep their gaze; which steps others lose differs from step to step.
    assert len(given) == 5
    known = [tensors[3] for tensors in given]
    assert 0 < sum(int(row.all()) for batch in known for row in batch) < 20
    assert any(not torch.equal(batch, known[0]) for batch in known)

    predictor = new_world(config).world.predictor
    named = dict(predictor.named_parameters())
    is_free = {name: name.endswith(("bias", "norm.weight", "norm1.weight", "norm2.weight")) for name in named}
    is_free |= {"gate_parameter": True, "no_gaze": True}
    groups = [
        {"params": [named[name] for name in named if is_free[name] == free], "weight_decay": 0.0 if free else 5.0}
        for free in (False, True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.7, 0.9))
    for tensors, share in zip(given, (0.5, 1, 1, 0.55, 0.1), strict=True):
        weights = config.loss.model_dump(include={"rollout_steps", "rollout_weight", "scene_weight"})
        optimizer.zero_grad()
        loss_of(predictor, *tensors, **weights).total.backward()
        torch.nn.utils.clip_grad_norm_(predictor.parameters(), 0.02)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * share
        optimizer.step()
    assert predictor.gate != 0
    for name, tensor in trained.named_parameters():
        torch.testing.assert_close(tensor, named[name], atol=2e-5, rtol=1e-3, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("source", ["cached", "live"])
def test_resumed_equals_straight(stage1_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    stage1_settings["tokens"]["source"] = source
    if source == "live":
        stage1_settings["data"]["augment"] = {}
        stage1_settings["optim"] |= {"num_steps": 4, "batch_size": 2}
        stage1_settings |= {"save_every": 2, "validate_every": 4}
    straight = pretrain.run(PretrainConfig(**stage1_settings | {"name": "straight"}))
    config = PretrainConfig(**stage1_settings | {"name": "resumed"})
    stop_after = config.save_every + 1
    add, steps = RunLog.add, iter(range(1, 100))

    def interrupted(self: RunLog, step: int, values: dict[str, float]) -> None:
        if next(steps) == stop_after:
            raise InterruptedRunError
        add(self, step, values)

    monkeypatch.setattr(RunLog, "add", interrupted)
    with pytest.raises(InterruptedRunError):
        pretrain.run(config)
    monkeypatch.setattr(RunLog, "add", add)
    resumed = pretrain.run(config)
    assert json.loads((resumed.folder / "run.json").read_text())["resumed"][0]["step"] == config.save_every
    assert resumed.predictor_sha256 == straight.predictor_sha256
    assert read_metrics(resumed.folder) == read_metrics(straight.folder)


def test_videos_that_do_not_change_have_no_skill_and_stop_nothing(
    stage1_settings: dict[str, Any], tmp_path: Path
) -> None:
    black = tmp_path / "black.mp4"
    write_video(black, np.zeros((24, 64, 64, 3), dtype=np.uint8), 8.0)
    stage1_settings["data"]["val"] = [str(black)]
    result = pretrain.run(PretrainConfig(**stage1_settings))
    assert result.validation["copy_l1"] == 0
    assert not any("skill" in name for name in result.validation)
    assert "val/l1" in set().union(*read_metrics(result.folder))


def test_what_comes_beside_training_shows_how_far_it_is(
    stage1_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many videos, reading clips for the forecast of gaze takes longer than a short training."""
    ended: dict[str, tuple[int, int]] = {}
    leave = Progress.__exit__

    def noted(bar: Progress, *error: Any) -> None:
        ended[bar.label] = (bar.done, bar.total)
        leave(bar, *error)

    monkeypatch.setattr(Progress, "__exit__", noted)
    pretrain.run(PretrainConfig.model_validate(stage1_settings))
    clips = {label: done for label, (done, total) in ended.items() if "clips" in label and done == total > 0}
    assert sorted(clips) == [
        "clips whose gaze is forecast",
        "training clips for the mean of gaze",
        "training clips for the read-out of gaze",
        "validation clips",
    ]


def test_a_validation_that_fails_loses_no_training(
    stage1_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = pretrain.run(PretrainConfig(**stage1_settings | {"name": "straight"}))
    config = PretrainConfig(**stage1_settings | {"name": "resumed"})

    def failing(*_: object) -> None:
        raise InterruptedRunError

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(pretrain, "validate", failing)
            with pytest.raises(InterruptedRunError):
                pretrain.run(config)
        assert CheckpointStore(config.folder / "resumed" / "checkpoints", 3, is_writer=False).steps() == [4]
    resumed = pretrain.run(config)
    assert resumed.validation == straight.validation
    assert read_metrics(resumed.folder) == read_metrics(straight.folder)


def test_a_run_reads_its_own_clips_of_training_videos_and_holds_out_fixed_ones(
    stage1_settings: dict[str, Any], toy_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same clips are planned here by hand, for a run that goes on at step 2, with targets of another encoder."""
    torch.manual_seed(5)
    save_model(VJEPA2Encoder(EncoderSpec(32, 2, 2)), tmp_path / "target")
    stage1_settings["data"]["augment"] = {"ratio": [0.9, 1.1], "scale": [0.3, 0.5]}
    stage1_settings["data"] |= {"fps": 2.0, "step": "tubelet"}
    stage1_settings["tokens"]["views"] = 2
    listed = toy_world / "lists" / "train_cam01.txt"
    stage1_settings["data"]["train"] = [str(listed.parent / line) for line in listed.read_text().splitlines()[:3]]
    stage1_settings["optim"] |= {"num_steps": 4, "batch_size": 2}
    target = {"target_encoder": stage1_settings["encoder"] | {"weights": str(tmp_path / "target")}}
    config = PretrainConfig(**stage1_settings | target | {"seed": 3, "gaze": "none"})
    fabric = start(config.runtime)
    with RunLog.open(config, "pretrain", resume=False) as log, StopFlag() as stop:
        world, weights = new_world(config)
        data = open_data(config, world, weights, fabric, log, stop)
        batches = list(data.train_batches(config, 2, fabric))
        monkeypatch.setattr(Fabric, "global_rank", 1)
        monkeypatch.setattr(Fabric, "world_size", 2)
        second = list(data.train_batches(config, 2, fabric))
    videos = {part: find_videos(getattr(config.data, part), "**/*", 1.0).videos for part in ("train", "val")}
    assert set(data.train) == set(videos["train"])
    assert {clip.video for clip in data.fixed} == set(videos["val"])
    plan = ClipPlan(data.train, 2.0, 5, config.data.augment, 3, 2)
    assert data.fixed == ClipPlan(tuple(dict.fromkeys(c.video for c in data.fixed)), 2.0, 5, None, 0).validation()
    planned = StepBatches(plan, 2, 2, 4)
    assert len(batches) == len(planned) == 2
    seer = target_seer(config)
    assert seer is not None
    assert seer.weights == {"encoder": hash_file(tmp_path / "target" / "model.safetensors").sha256}
    assert (seer.grid.fps, seer.grid.step) == (2.0, "tubelet")
    own = LiveSource(world.observer, world.grid, CPU, num_workers=0)
    theirs = LiveSource(seer.observer, seer.grid, CPU, num_workers=0)
    read = zip(batches, own.batches(list(planned)), theirs.batches(list(planned)), strict=True)
    for (batch, predicted), expected, other in read:
        torch.testing.assert_close(batch.z_BTND, expected.z_BTND, atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(predicted, other.z_BTND, atol=2e-2, rtol=2e-2)
        assert (expected.z_BTND - other.z_BTND).abs().mean() > 0.1, "the other encoder says something else"
    for (whole, _), (share, _) in zip(batches, second, strict=True):
        torch.testing.assert_close(share.z_BTND, whole.z_BTND[1:], msg="the second process has the second clip")


def test_vjepa_2_1_is_a_backbone(stage1_settings: dict[str, Any]) -> None:
    """A distilled 2.1 file in the released layout: targets are the encoder's own tokens, not its teacher's."""
    released = Path(__file__).parent / "golden" / "vjepa2_1_distilled.pt"
    stage1_settings["encoder"] = {"weights": str(released), "num_heads": 2, "resolution": 64}
    stage1_settings["optim"]["num_steps"] = 2
    result = pretrain.run(PretrainConfig(**stage1_settings))
    stage1 = load_stage1(result.folder)
    encoder = stage1.world.observer.encoder
    assert encoder.version == "2.1"
    assert stage1.world.predictor.spec.latent_width == encoder.spec.width == 28
    frames = torch.randn(2, 1, 3, 64, 64)
    assert torch.equal(stage1.world.observer(frames, None).z_SND, layer_normed(encoder(frames[:, 0].unsqueeze(2))))


def test_two_encoders_of_one_file_do_not_share_tokens(stage1_settings: dict[str, Any], tmp_path: Path) -> None:
    content = torch.load(Path(__file__).parent / "golden" / "vjepa2_checkpoint.pt", weights_only=True)
    content["encoder"] = {name: 1.5 * tensor for name, tensor in content["encoder"].items()}
    released = tmp_path / "two.pt"
    torch.save(content, released)
    stage1_settings |= {"gaze": "none", "optim": {"lr": 1e-3, "num_steps": 1, "warmup_steps": 1, "batch_size": 4}}

    def copied(key: str, source: str) -> float:
        encoder = {"weights": str(released), "num_heads": 4, "resolution": 64, "key": key}
        tokens = {"source": source, "folder": tmp_path / "tokens", "dtype": "float16"}
        settings = stage1_settings | {"name": f"{key}-{source}", "encoder": encoder, "tokens": tokens}
        return pretrain.run(PretrainConfig(**settings)).validation["copy_l1"]

    first, second = copied("target_encoder", "cached"), copied("encoder", "cached")
    assert second == pytest.approx(copied("encoder", "live"), rel=1e-3)
    assert second != pytest.approx(first, rel=1e-2)


def test_same_seed_same_numbers_and_another_seed_others(stage1_settings: dict[str, Any]) -> None:
    stage1_settings["optim"]["num_steps"] = 3
    runs = [
        pretrain.run(PretrainConfig(**stage1_settings | {"name": name, "seed": seed}))
        for name, seed in (("one", 0), ("two", 0), ("three", 1))
    ]
    assert runs[0].predictor_sha256 == runs[1].predictor_sha256 != runs[2].predictor_sha256


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    stage1_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher_forced, calls = GazePredictor.teacher_forced, iter(range(100))

    def poisoned(self: GazePredictor, z: torch.Tensor, *rest: object) -> object:
        is_poisoned = torch.is_grad_enabled() and next(calls) == 6  # monitors look on without gradients
        return teacher_forced(self, z * float("nan") if is_poisoned else z, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(GazePredictor, "teacher_forced", poisoned)
    config = PretrainConfig(**stage1_settings | {"validate_every": 100})
    with pytest.raises(RunError, match="step 6: the loss is not finite"):
        pretrain.run(config)
    monkeypatch.setattr(GazePredictor, "teacher_forced", teacher_forced)
    world = load_stage1(config.folder / config.name).world
    assert all(torch.isfinite(tensor).all() for tensor in world.predictor.state_dict().values())


def test_without_gaze_the_same_run_needs_no_gazelle(stage1_settings: dict[str, Any]) -> None:
    stage1_settings["gazelle"] = {"weights": "nowhere"}
    result = pretrain.run(PretrainConfig(**stage1_settings | {"gaze": "none"}))
    assert not load_stage1(result.folder).world.has_gaze


def test_a_validation_that_knows_no_gaze_says_so(
    stage1_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_gaze(*given: Any) -> Validation:
        found = validate(*given)
        scores = {name: value for name, value in found.scores.items() if not name.startswith(("near/", "elsewhere/"))}
        return found._replace(scores=scores)

    def warned() -> list[str]:
        folder = pretrain.run(PretrainConfig(**stage1_settings), resume=False).folder
        return [
            said for said in json.loads((folder / "run.json").read_text()).get("warnings", []) if "near gaze" in said
        ]

    assert warned() == []
    monkeypatch.setattr(pretrain, "validate", without_gaze)
    (said,) = warned()
    assert "gaze is known at no imagined step" in said
    stage1_settings["gaze"] = "none"
    assert warned() == [], "nobody asked"


def test_a_video_on_both_sides_is_an_error(stage1_settings: dict[str, Any]) -> None:
    stage1_settings["data"]["val"] = stage1_settings["data"]["train"]
    with pytest.raises(DataError, match="share 6 videos"):
        pretrain.run(PretrainConfig(**stage1_settings))


def test_a_link_to_a_video_of_the_other_side_is_that_video(
    stage1_settings: dict[str, Any], toy_world: Path, tmp_path: Path
) -> None:
    listed = toy_world / "lists" / "train_cam01.txt"
    (tmp_path / "link.mp4").symlink_to((listed.parent / listed.read_text().splitlines()[0]).resolve())
    stage1_settings["data"]["val"].append(str(tmp_path / "link.mp4"))
    with RunLog.open(PretrainConfig(**stage1_settings), "pretrain", resume=False) as log:
        with pytest.raises(DataError, match="share 1 video"):
            find_parts(PretrainConfig(**stage1_settings).data, log, StopFlag())


def test_a_folder_gives_the_videos_that_the_pattern_names(
    stage1_settings: dict[str, Any], toy_world: Path, tmp_path: Path
) -> None:
    listed = toy_world / "lists" / "train_cam01.txt"
    for line in listed.read_text().splitlines()[:2]:
        video = (listed.parent / line).resolve()
        (tmp_path / f"{take_name(video)}{video.suffix}").symlink_to(video)
    first, _ = sorted(path.name for path in tmp_path.iterdir())
    stage1_settings["data"] |= {"train": [str(tmp_path)], "glob": first}
    config = PretrainConfig(**stage1_settings)
    with RunLog.open(config, "pretrain", resume=False) as log:
        found = find_parts(config.data, log, StopFlag())
    assert [video.path.name for video in found["train"].videos] == [first]


def test_a_video_is_as_long_as_a_clip_where_it_has_a_frame_for_each_step(
    stage1_settings: dict[str, Any], toy_world: Path
) -> None:
    videos = find_videos([toy_world / "lists" / "val_cam01.txt"], "**/*", 1.0).videos
    shortest = min(video.duration_sec for video in videos)
    for num_steps, used in ((math.ceil(4 * shortest), 2), (math.ceil(4 * shortest) + 1, 1)):  # four a second
        stage1_settings["data"] |= {"num_steps": num_steps}
        config = PretrainConfig(**stage1_settings)
        assert config.data.fps == 4
        with RunLog.open(config, "pretrain", resume=False) as log:
            found = find_parts(config.data, log, StopFlag())["val"]
        assert (len(found.videos), found.expected) == (used, 2)


def test_a_cache_holds_the_views_that_training_and_its_gaze_read(
    stage1_settings: dict[str, Any], toy_world: Path
) -> None:
    video = find_videos([toy_world / "lists" / "train_cam01.txt"], "**/*", 1.0).videos[0]
    plain = training_crops(PretrainConfig(**stage1_settings))(video)
    stage1_settings["data"]["augment"] = {"ratio": [0.9, 1.1], "scale": [0.3, 0.5]}
    stage1_settings["tokens"]["views"] = 2
    both = training_crops(PretrainConfig(**stage1_settings))(video)
    alone = training_crops(PretrainConfig(**stage1_settings | {"gaze": "none"}))(video)
    assert both == (*plain, *alone), "means and read-outs of gaze are of the centre square"
    assert len(set(both)) == 3
    live = stage1_settings | {"tokens": {"source": "live"}, "gaze": "none"}
    assert training_crops(PretrainConfig(**live))(video) == plain


def test_targets_of_another_encoder_have_its_own_view(stage1_settings: dict[str, Any]) -> None:
    assert target_seer(PretrainConfig(**stage1_settings)) is None
    same = stage1_settings | {"target_encoder": dict(stage1_settings["encoder"])}
    assert target_seer(PretrainConfig(**same)) is None, "it is its own target"
    larger = stage1_settings | {"target_encoder": stage1_settings["encoder"] | {"num_heads": None, "resolution": 32}}
    larger["encoder"] = stage1_settings["encoder"] | {"resolution": 64}
    seer = target_seer(PretrainConfig(**larger))
    assert seer is not None
    assert (seer.grid.encoder_resolution, seer.grid.gazelle_resolution) == (32, None)


def test_unusable_videos_are_counted_with_their_reason(stage1_settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    stage1_settings["data"]["train"] += [str(tmp_path / "text.mp4"), stage1_settings["data"]["train"][0]]
    stage1_settings["optim"]["num_steps"] = 1
    result = pretrain.run(PretrainConfig(**stage1_settings))
    coverage = json.loads((result.folder / "run.json").read_text())["coverage"]["train videos"]
    assert (coverage["expected"], coverage["used"]) == (13, 6)
    assert coverage["excluded"]["named more than once"] == 6
    assert any("text.mp4" in item["item"] for item in coverage["items"])


def test_weights_that_changed_since_stage_1_are_refused(
    stage1_settings: dict[str, Any], tiny_weights: Path, tmp_path: Path
) -> None:
    import shutil

    from hwm.models.vjepa2 import VJEPA2Encoder
    from hwm.weights.load import load_encoder, save_model

    moved = tmp_path / "encoder"
    shutil.copytree(tiny_weights / "encoder", moved)
    stage1_settings["encoder"]["weights"] = str(moved)
    stage1_settings["optim"]["num_steps"] = 1
    result = pretrain.run(PretrainConfig(**stage1_settings))
    torch.manual_seed(9)
    other = VJEPA2Encoder(load_encoder(moved).spec)
    save_model(other, moved)
    with pytest.raises(RunError, match="have changed since stage 1: encoder"):
        load_stage1(result.folder)


def test_a_run_that_is_named_from_another_folder_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=f"looked for below {re.escape(str(tmp_path))}"):
        load_stage1(Path("runs/toyworld"))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no stage-1 run"):
        load_stage1(tmp_path / "nothing")


def test_a_torn_checkpoint_is_passed_over_and_none_at_all_is_an_error(stage1_settings: dict[str, Any]) -> None:
    result = pretrain.run(PretrainConfig(**stage1_settings))
    store = CheckpointStore(result.folder / "checkpoints", 3, is_writer=False)
    assert store.steps() == [4, 8]
    (result.folder / "checkpoints" / "step-000008" / "predictor.safetensors").write_bytes(b"torn")
    assert load_stage1(result.folder).source.name == "step-000004"
    with pytest.raises(RunError, match="sha256 or size differs"):
        load_stage1(result.folder / "checkpoints" / "step-000008")


def test_batches_share_out_every_sample_once(toy_world: Path) -> None:
    videos = find_videos([toy_world / "lists" / "train_cam01.txt"], "**/*", 1.0).videos
    plan = ClipPlan(videos, 4.0, 5, None, seed=3)
    whole = StepBatches(plan, 4, 0, 6)
    parts = [StepBatches(plan, 4, 0, 6, rank, 2) for rank in range(2)]
    for step in range(6):
        assert sorted(whole[step], key=str) == sorted(parts[0][step] + parts[1][step], key=str)
    assert StepBatches(plan, 4, 2, 6)[0] == whole[2]
    drawn = [(number // 6, int(plan.order(number // 6)[number % 6])) for number in range(24)]
    assert [clip for step in range(6) for clip in whole[step]] == [plan.request(*place) for place in drawn]
    drawn = [request.video.path for step in range(6) for request in whole[step]]
    assert all(drawn.count(video.path) == 4 for video in videos)  # 24 samples are 4 epochs of 6 videos
    with pytest.raises(ConfigError, match="does not divide"):
        StepBatches(plan, 3, 0, 6, 0, 2)
