"""Controls of gaze: what each puts in the place of a clip's own gaze, and that only the oracle sees the future."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hwm.config import AnticipateConfig, GazeControl, GazeFilesConfig, GazePointControl, PretrainConfig, ProbeConfig
from hwm.data.annotations import read_annotations
from hwm.data.clips import ClipRequest, find_videos
from hwm.data.gaze_files import GazeFiles
from hwm.data.transforms import centre_square
from hwm.data.video import VideoInfo, num_grid_steps
from hwm.engine.assemble import load_stage1, new_world
from hwm.engine.mean_scene import MEAN_SCENE
from hwm.engine.runtime import start
from hwm.errors import DataError, RunError
from hwm.losses import layer_normed
from hwm.models.world_model import WorldModel
from hwm.pipelines import anticipate, pretrain
from hwm.pipelines.pretrain_data import _token_source
from hwm.tokens.cache import TokenCache
from hwm.tokens.controls import ControlledSource, fixed_clips, mean_gaze
from hwm.tokens.features import compute_features
from hwm.tokens.lending import GazeLender
from hwm.tokens.measured import MeasuredSource
from hwm.tokens.source import LiveSource, TokenBatch, TokenSource
from hwm.tokens.world_foresight import open_world_foresight
from hwm.weights.card import model_card
from hwm.weights.pretrained import HumanWorldModel

CPU = torch.device("cpu")
FPS = 4.0
HORIZON_SEC = 1.0
CONTROLS: tuple[GazeControl, ...] = get_args(GazeControl)
NoisyCopy = Callable[[Path, Path, float, int | None], None]


def world_under(control: str, settings: dict[str, Any]) -> WorldModel:
    """An untrained world model whose gate and heads are open, so that everything it is given matters."""
    world = new_world(PretrainConfig(**settings | {"gaze_control": control})).world
    torch.manual_seed(3)
    with torch.no_grad():
        world.predictor.gate_parameter.fill_(0.1)
        world.predictor.stack.predictor_proj.weight.normal_(std=0.3)
        if control == "mean":
            world.mean_scene_NG.normal_()
    return world


def videos_of(world: Path, part: str = "train", view: str = "cam01") -> tuple[VideoInfo, ...]:
    return find_videos([world / "lists" / f"{part}_{view}.txt"], "**/*", 1.0).videos


def live(world: WorldModel) -> LiveSource:
    return LiveSource(world.observer, world.grid, CPU, num_workers=0)


def controlled(world: WorldModel, videos: tuple[VideoInfo, ...], point: GazePointControl = "none") -> ControlledSource:
    source = ControlledSource(live(world), world, point, seed=5)
    source.prepare(videos, lambda done: None)
    return source


def clip_of(video: VideoInfo, first_step: int, num_steps: int = 5) -> ClipRequest:
    return ClipRequest(video, first_step, num_steps, centre_square(video))


def only(source: TokenSource, *clips: ClipRequest) -> TokenBatch:
    return next(iter(source.batches([list(clips)])))


def scene_of(batch: TokenBatch) -> torch.Tensor:
    assert batch.scene_BTNG is not None
    return batch.scene_BTNG


def test_shuffled_gaze_is_never_of_the_own_video(toy_world: Path, tmp_path: Path) -> None:
    videos = videos_of(toy_world)
    link = tmp_path / "again.mp4"
    link.symlink_to(videos[0].path.resolve())  # the own video under another name
    short = videos[1]._replace(path=tmp_path / "short.mp4", duration_sec=0.5)
    lender = GazeLender(FPS, seed=1)
    lender.add([videos[0], videos[0]._replace(path=link), short, *videos[1:3]])
    lent = [lender.lend("shuffled", clip_of(videos[0], first)).clip for first in range(60)]
    assert {clip.video.path for clip in lent} == {videos[1].path, videos[2].path}
    assert len({clip.first_step for clip in lent}) > 10
    for clip in lent:
        assert 0 <= clip.first_step
        assert clip.first_step + clip.num_steps <= num_grid_steps(clip.video.duration_sec, FPS)
    again = GazeLender(FPS, seed=1)
    again.add([videos[0], videos[0]._replace(path=link), short, *videos[1:3]])
    assert [again.lend("shuffled", clip_of(videos[0], first)).clip for first in range(60)] == lent
    other = GazeLender(FPS, seed=2)
    other.add([videos[0], videos[0]._replace(path=link), short, *videos[1:3]])
    assert [other.lend("shuffled", clip_of(videos[0], first)).clip for first in range(60)] != lent
    alone = GazeLender(FPS, seed=1)
    alone.add([videos[0], videos[0]._replace(path=link), short])
    with pytest.raises(DataError, match="no other video"):
        alone.lend("shuffled", clip_of(videos[0], 0))


@pytest.mark.parametrize("first_step", [-2, 0, 3])
def test_time_shuffled_gaze_keeps_the_multiset_and_no_step_keeps_its_own(
    toy_world: Path, stage1_settings: dict[str, Any], first_step: int
) -> None:
    world, videos = world_under("time-shuffled", stage1_settings), videos_of(toy_world)
    clip = clip_of(videos[0], first_step)
    own, shuffled = only(live(world), clip), only(controlled(world, videos), clip)
    steps = own.valid_BT[0].nonzero()[:, 0]
    mine, theirs = scene_of(own)[0, steps], scene_of(shuffled)[0, steps]
    distance = (mine[:, None] - theirs[None]).abs().amax(dim=(2, 3))
    matches = distance < 1e-4
    assert torch.equal(matches.sum(0), torch.ones(len(steps), dtype=torch.int64))
    assert torch.equal(matches.sum(1), torch.ones(len(steps), dtype=torch.int64))
    assert not matches.diagonal().any()
    assert torch.equal(own.z_BTND, shuffled.z_BTND)
    assert torch.equal(own.valid_BT, shuffled.scene_known_BT)
    assert not scene_of(shuffled)[0, ~own.valid_BT[0]].any()


def test_a_step_alone_in_its_clip_has_no_other_gaze_to_get(toy_world: Path, stage1_settings: dict[str, Any]) -> None:
    world, videos = world_under("time-shuffled", stage1_settings), videos_of(toy_world)
    batch = only(controlled(world, videos), clip_of(videos[0], -4))
    assert batch.valid_BT[0].tolist() == [False] * 4 + [True]
    assert not batch.scene_known_BT.any()
    assert not scene_of(batch).any()


def test_future_gaze_is_the_next_steps_and_ends_with_the_video(
    toy_world: Path, stage1_settings: dict[str, Any]
) -> None:
    world, videos = world_under("future", stage1_settings), videos_of(toy_world)
    total = num_grid_steps(videos[0].duration_sec, FPS)
    source = controlled(world, videos)
    for first_step in (-2, 0, total - 6, total - 5):
        own = only(live(world), clip_of(videos[0], max(0, first_step), min(6, total - max(0, first_step))))
        batch = only(source, clip_of(videos[0], first_step))
        padded, ends = max(0, -first_step), first_step == total - 5
        known = [step >= padded and not (ends and step == 4) for step in range(5)]
        assert batch.scene_known_BT[0].tolist() == known
        shown = scene_of(batch)[0, torch.tensor(known)]
        torch.testing.assert_close(shown, scene_of(own)[0, 1 : 1 + len(shown)], atol=1e-4, rtol=1e-4)
        assert not scene_of(batch)[0, ~torch.tensor(known)].any()


def test_controls_of_scene_tokens_and_of_the_gaze_point_are_two_settings(
    toy_world: Path, stage1_settings: dict[str, Any]
) -> None:
    """In one batch: shuffled scene tokens, gaze weights of the next step; the rest is untouched."""
    world, videos = world_under("shuffled", stage1_settings), videos_of(toy_world)
    clips = [clip_of(videos[0], 2), clip_of(videos[1], 4)]
    own, later = only(live(world), *clips), only(live(world), *(c._replace(first_step=c.first_step + 1) for c in clips))
    source = controlled(world, videos, "future")
    batch = only(source, *clips)
    assert torch.equal(batch.z_BTND, own.z_BTND)
    assert batch.gaze_BTN is not None
    assert later.gaze_BTN is not None
    torch.testing.assert_close(batch.gaze_BTN, later.gaze_BTN, atol=1e-4, rtol=1e-3)
    lender = GazeLender(FPS, seed=5)
    lender.add(videos)
    lent = only(live(world), *(lender.lend("shuffled", clip).clip for clip in clips))
    torch.testing.assert_close(scene_of(batch), scene_of(lent), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(scene_of(batch), scene_of(own), atol=1e-2)


@pytest.mark.parametrize("control", CONTROLS)
def test_only_the_oracle_sees_pixels_after_the_anchor(
    control: GazeControl, stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], toy_world: Path,
    noisy_copy: NoisyCopy, tmp_path: Path,
) -> None:  # fmt: skip
    """The same for the scene tokens and for the gaze point; `dinov2` has none of its own."""
    world = world_under(control, stage1_settings)
    config = AnticipateConfig(**stage2_settings)
    table = read_annotations(config.annotations.val, config.annotations, None)
    samples, _ = anticipate.validation_samples(table, config, world.grid.fps)
    point: GazePointControl = "none" if control == "dinov2" else control
    changed = 0
    for number, sample in enumerate(samples[:4]):
        features = []
        for seed in (None, number):
            path = tmp_path / "copy.mkv"
            noisy_copy(sample.segment.video.path, path, sample.segment.start_sec - HORIZON_SEC, seed)
            video = sample.segment.video._replace(path=path)
            source = controlled(world, (video, *videos_of(toy_world)), point)
            source._mean_gaze_N = torch.full((16,), 1 / 16)
            moved = sample._replace(segment=sample.segment._replace(video=video))
            request = anticipate.feature_request(moved, config.protocol.id)
            made = compute_features(
                world, source, [request], "context+future", True, 12, tmp_path / "f.npy", 1, lambda done: None
            )
            features.append(np.array(made.tokens_STND))
        changed += not np.array_equal(*features)
    assert changed == (4 if control == "future" else 0)


def test_the_mean_is_the_training_videos_and_is_held_to_its_hash(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], toy_world: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings, trained, validate = stage1_settings | {"gaze_control": "mean"}, list[WorldModel](), pretrain.validate

    def validated(world: WorldModel, *rest: Any) -> Any:
        trained.append(world)
        return validate(world, *rest)

    monkeypatch.setattr(pretrain, "validate", validated)
    straight = pretrain.run(PretrainConfig(**settings | {"name": "straight"}))
    record = json.loads((straight.folder / "run.json").read_text())
    assert (record["gaze_control"], record["oracle"]) == ("mean", False)
    world = load_stage1(straight.folder).world
    assert world.grid.gaze_control == "mean"
    assert torch.equal(trained[0].mean_scene_NG, world.mean_scene_NG), "what is kept is what was trained on"
    # The mean of the training videos' own tokens, and of no others.
    plain = new_world(PretrainConfig(**stage1_settings)).world
    for part, same in (("train", True), ("val", False)):
        clips = fixed_clips(videos_of(toy_world, part), FPS)
        steps = torch.cat([scene_of(only(live(plain), clip)).flatten(0, 1) for clip in clips])
        assert torch.allclose(layer_normed(steps.mean(0)), world.mean_scene_NG, atol=5e-3) == same
    batch = only(controlled(world, videos_of(toy_world)), clip_of(videos_of(toy_world)[0], -1))
    assert torch.equal(scene_of(batch)[0, 1:], world.mean_scene_NG.expand(4, -1, -1))
    assert not scene_of(batch)[0, 0].any()
    # Stage 2 and a saved model have the same mean.
    result = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=straight.folder))
    assert json.loads((result.folder / "run.json").read_text())["gaze_control"] == "mean"
    world.save_pretrained(tmp_path / "model")
    again = load_stage1(tmp_path / "model").world
    assert torch.equal(again.mean_scene_NG, world.mean_scene_NG)
    assert "A control, not a model of gaze: in the place of scene tokens it was given `mean`" in model_card(
        again, "a/b"
    )
    # Another mean is refused.
    other = pretrain.run(PretrainConfig(**settings | {"name": "other", "data": settings["data"] | {
        "train": settings["data"]["val"], "val": settings["data"]["train"]}}))  # fmt: skip
    for name in (MEAN_SCENE, MEAN_SCENE.replace(".safetensors", ".json")):
        (straight.folder / name).write_bytes((other.folder / name).read_bytes())
    with pytest.raises(RunError, match="is not the mean scene token"):
        load_stage1(straight.folder)
    with pytest.raises(RunError, match="is not the mean scene token"):  # nor does the run go on with one taken anew
        pretrain.run(PretrainConfig(**settings | {"name": "straight"}))


@pytest.mark.parametrize("control", [control for control in CONTROLS if control != "none"])
def test_both_stages_run_say_so_and_give_the_same_twice(
    control: GazeControl, stage1_settings: dict[str, Any], stage2_settings: dict[str, Any]
) -> None:
    stage1_settings["optim"]["num_steps"] = 2
    runs = [
        pretrain.run(PretrainConfig(**stage1_settings | {"name": name, "gaze_control": control}))
        for name in ("one", "two")
    ]
    plain = pretrain.run(PretrainConfig(**stage1_settings | {"name": "plain"}))
    assert runs[0].predictor_sha256 == runs[1].predictor_sha256 != plain.predictor_sha256
    point = "none" if control == "dinov2" else control
    stage2_settings["probe"] |= {"gaze_point": "estimated", "gaze_point_control": point}
    config = AnticipateConfig(**stage2_settings, checkpoint=runs[0].folder)
    source = open_world_foresight(config.model_copy(update={"seed": 7}), CPU)._source
    assert isinstance(source, ControlledSource) == (control != "dinov2")
    if isinstance(source, ControlledSource):
        assert (source._point, source._lender._seed) == (point, 7)
    results = [anticipate.run(config.model_copy(update={"name": name})) for name in ("three", "four")]
    assert torch.equal(results[0].logits_SC, results[1].logits_SC)
    for folder, point_control in ((runs[0].folder, "none"), (results[0].folder, point)):
        record = json.loads((folder / "run.json").read_text())
        found = (record["gaze_control"], record["gaze_point_control"], record["oracle"])
        assert found == (control, point_control, control == "future")


def test_gaze_is_lent_in_stage_1_by_the_runs_seed(stage1_settings: dict[str, Any]) -> None:
    config = PretrainConfig(**stage1_settings | {"gaze_control": "shuffled", "seed": 7})
    world, weights = new_world(config)
    source = _token_source(config, world, weights, start(config.runtime))
    assert isinstance(source, ControlledSource)
    assert source._lender._seed == 7


def test_an_oracle_in_the_probe_alone_is_named_too(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any]
) -> None:
    stage1_settings["optim"]["num_steps"] = 1
    run = pretrain.run(PretrainConfig(**stage1_settings))
    stage2_settings["probe"] |= {"gaze_point": "estimated", "gaze_point_control": "future"}
    result = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=run.folder))
    record = json.loads((result.folder / "run.json").read_text())
    assert (record["gaze_control"], record["gaze_point_control"], record["oracle"]) == ("none", "future", True)


def test_dinov2_features_are_of_the_backbone_and_cached_apart(
    stage1_settings: dict[str, Any], toy_world: Path, tmp_path: Path
) -> None:
    world, plain = (world_under(control, stage1_settings) for control in ("dinov2", "none"))
    assert world.observer.gazelle is not None
    width = world.observer.gazelle.backbone.spec.width
    assert world.predictor.spec.scene_width == width
    clip = clip_of(videos_of(toy_world)[0], 0)
    own, features = only(live(plain), clip), only(live(world), clip)
    assert scene_of(features).shape[-1] == width
    assert torch.equal(own.z_BTND, features.z_BTND)
    assert own.gaze_BTN is not None
    assert features.gaze_BTN is not None
    assert torch.equal(own.gaze_BTN, features.gaze_BTN)  # the gaze point is still Gazelle's
    world.save_pretrained(tmp_path / "model")
    assert torch.equal(
        scene_of(only(live(HumanWorldModel.from_pretrained(tmp_path / "model")), clip)), scene_of(features)
    )
    torch.manual_seed(0)
    with torch.no_grad():  # nothing after the backbone reaches them
        world.observer.gazelle.transformer[0].mlp.fc2.weight.normal_()
    assert torch.equal(scene_of(only(live(world), clip)), scene_of(features))
    with torch.no_grad():  # and the backbone does
        world.observer.gazelle.backbone.blocks[0].get_submodule("mlp.fc2").get_parameter("weight").normal_()
    assert not torch.allclose(scene_of(only(live(world), clip)), scene_of(features), atol=0.1)
    weights = {"encoder": "e", "gazelle": "g"}
    folders = [TokenCache(tmp_path / "tokens", w.grid, weights)._folders for w in (world, plain)]
    assert folders[0]["z"] == folders[1]["z"]
    assert folders[0]["scene"] != folders[1]["scene"]


def test_measured_gaze_has_the_same_controls(stage1_settings: dict[str, Any], toy_world: Path) -> None:
    settings = stage1_settings | {"gaze": "measured", "gaze_files": {"folder": toy_world}}
    world, videos = world_under("shuffled", settings), videos_of(toy_world, view="ego")
    files = GazeFiles(toy_world, GazeFilesConfig())
    measured = MeasuredSource(live(world), files, world, scene=True, point=True)
    source = ControlledSource(measured, world, "mean", seed=5)
    source.prepare(videos, lambda done: None)
    source._mean_gaze_N = mean_gaze(measured, fixed_clips(videos, FPS)).gaze_N
    assert source._mean_gaze_N is not None
    assert source._mean_gaze_N.sum() == pytest.approx(1, abs=1e-4)
    clip = clip_of(videos[0], 3)
    lender = GazeLender(FPS, seed=5)
    lender.add(videos)
    lent = lender.lend("shuffled", clip).clip
    batch, other, own = only(source, clip), only(measured, lent), only(measured, clip)
    assert torch.equal(scene_of(batch), scene_of(other))
    assert torch.equal(batch.scene_known_BT, other.scene_known_BT)
    assert torch.equal(batch.gaze_known_BT, own.gaze_known_BT)
    assert batch.gaze_BTN is not None
    assert torch.equal(batch.gaze_BTN[0][own.gaze_known_BT[0]][0], source._mean_gaze_N)


def test_a_control_needs_gaze_to_replace(stage1_settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="gaze=none has none"):
        PretrainConfig(**stage1_settings | {"gaze": "none", "gaze_control": "shuffled"})
    measured = {"gaze": "measured", "gaze_files": {"folder": "."}, "gaze_control": "dinov2"}
    with pytest.raises(ValidationError, match="needs gaze=estimated"):
        PretrainConfig(**stage1_settings | measured)
    with pytest.raises(ValidationError, match="needs a gaze_point"):
        ProbeConfig(gaze_point_control="mean")
