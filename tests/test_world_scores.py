"""Scores of the world model: skill where it matters, drift, retrieval, collapse and the forecast of gaze."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hwm.config import PretrainConfig
from hwm.data.clips import ClipPlan, ClipRequest
from hwm.engine.assemble import load_stage1, new_world
from hwm.engine.logged import read_metrics
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import StopFlag
from hwm.errors import DataError
from hwm.evaluation.collapse import MIN_DEVIATION_RATIO, MIN_RANK_RATIO, collapse_monitors
from hwm.evaluation.gaze_forecast import ForecastScores, fit_readout, peak_of
from hwm.evaluation.world_scores import NEAR_GAZE, ClipId, WorldScores, near_gaze, retrieval_ranks
from hwm.losses import effective_rank, layer_normed
from hwm.models.predictor import GazePredictor
from hwm.models.world_model import WorldModel
from hwm.pipelines import pretrain
from hwm.pipelines.pretrain_data import find_parts
from hwm.pipelines.validation import forecast_gaze, grid_of, imagine, num_observed, validate
from hwm.pipelines.validation_gaze import JudgedSource
from hwm.tokens.extraction import Extractor, Wanted
from hwm.tokens.source import open_source
from kept_tokens import KeptSource, clip_of, open_world

GRID = (4, 8)
NUM_PATCHES = 32
B, T, K, D = 4, 6, 3, 16
IDS = [ClipId("a", 0, "A"), ClipId("a", 20, "A"), ClipId("b", 0, "B"), ClipId("b", 40, "B")]


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def latents(rng: torch.Generator) -> Tensor:
    return layer_normed(torch.randn(B, T, NUM_PATCHES, D, generator=rng))


def scored(
    imagined: Tensor, target: Tensor, gaze: Tensor | None = None, known: Tensor | None = None
) -> dict[str, float]:
    scores = WorldScores(GRID)
    known = torch.ones(target.shape[:2], dtype=torch.bool) if known is None else known
    for row in range(0, B, 2):  # in two batches
        part = slice(row, row + 2)
        scores.add(IDS[part], imagined[part], target[part], None if gaze is None else gaze[part], known[part])
    return scores.result()


def test_copying_has_no_skill_anywhere_and_the_truth_has_all(rng: torch.Generator) -> None:
    target, gaze = latents(rng), torch.rand(B, T, NUM_PATCHES, generator=rng)
    copied = target[:, T - K - 1 : T - K].expand(-1, K, -1, -1)
    groups = ("", "near/", "elsewhere/", "moving/", "static/")
    for imagined, skill, top1 in ((copied, 0.0, 0.0), (target[:, -K:], 1.0, 1.0)):
        if skill == 1:
            imagined = imagined + 1e-5
        found = scored(imagined, target, gaze)
        for group in groups:
            assert [found[f"{group}skill_{k}"] for k in (1, 2, 3)] == pytest.approx([skill] * 3, abs=1e-4)
        assert [found[f"retrieval/top1_{k}"] for k in (1, 2, 3)] == [top1] * 3
        assert [found[f"drift/error_{k}"] for k in (1, 2, 3)] == pytest.approx([1] * 3, abs=0.2)
    assert "near/skill_1" not in scored(copied, target)


def test_the_errors_of_takes_add_up_to_the_skill_that_is_told(rng: torch.Generator) -> None:
    target, gaze = latents(rng), torch.rand(B, T, NUM_PATCHES, generator=rng)
    imagined = target[:, -K:] + torch.randn(B, K, NUM_PATCHES, D, generator=rng) * torch.tensor(
        [0.1, 0.2, 0.3, 0.4]
    ).view(B, 1, 1, 1)
    scores = WorldScores(GRID)
    scores.add(IDS, imagined, target, gaze, torch.ones(B, T, dtype=torch.bool))
    told, errors = scores.result(), scores.errors()
    assert errors.takes == ("A", "B")
    for place in ("", "near/", "elsewhere/", "moving/", "static/"):
        error_K, copied_K = errors.sums[place].sum(axis=0)
        assert [told[f"{place}skill_{k}"] for k in (1, 2, 3)] == pytest.approx(1 - error_K / copied_K, abs=1e-12)
    # Of one take alone: the mean over its two clips.
    wrong_BK = (imagined - target[:, -K:]).abs().mean(dim=(2, 3))
    assert errors.sums[""][0, 0] == pytest.approx(wrong_BK[:2].sum(0).numpy(), abs=1e-6)


def test_near_the_gaze_and_elsewhere_are_told_apart(rng: torch.Generator) -> None:
    """Right where people will look, wrong elsewhere; and where gaze is not known nothing counts."""
    target = latents(rng)
    gaze = torch.zeros(B, T, NUM_PATCHES)
    peak = torch.randint(0, NUM_PATCHES, (B, T), generator=rng)
    gaze.scatter_(2, peak[..., None], 1.0)
    near = near_gaze(gaze, GRID)
    assert near.gather(2, peak[..., None]).all()
    row, col = peak[0, 0] // 8, peak[0, 0] % 8
    for patch in range(NUM_PATCHES):
        away = ((patch // 8 - row) / 4) ** 2 + ((patch % 8 - col) / 8) ** 2
        assert bool(near[0, 0, patch]) == bool(away**0.5 <= NEAR_GAZE)
    copied = target[:, T - K - 1 : T - K].expand(-1, K, -1, -1)
    imagined = torch.where(near[:, -K:, :, None], target[:, -K:], copied)
    known = torch.ones(B, T, dtype=torch.bool)
    known[0, -1] = False
    imagined[0, -1] = 100.0  # would drown everything
    found = scored(imagined, target, gaze, known)
    for k in (1, 2, 3):
        assert found[f"near/skill_{k}"] == pytest.approx(1, abs=1e-5)
        assert found[f"elsewhere/skill_{k}"] == pytest.approx(0, abs=1e-5)
    unknown = scored(imagined, target, gaze, torch.zeros_like(known))
    assert not any(name.startswith("near/") for name in unknown)


def test_moving_and_static_clips_are_split_by_how_much_latents_change(rng: torch.Generator) -> None:
    still = latents(rng)[:, :1].expand(-1, T, -1, -1)
    noise = torch.randn(B, T, NUM_PATCHES, D, generator=rng) * torch.tensor([0.1, 1.0, 0.1, 1.0])[:, None, None, None]
    target = layer_normed(still + noise)
    copied = target[:, T - K - 1 : T - K].expand(-1, K, -1, -1)
    foreseen = torch.tensor([False, True, False, True])[:, None, None, None]
    found = scored(torch.where(foreseen, target[:, -K:], copied), target)
    assert found["moving/skill_2"] == pytest.approx(1)
    assert found["static/skill_2"] == pytest.approx(0)
    assert 0.8 < found["skill_2"] < 1


def test_half_of_the_clips_are_moving_however_much_one_of_them_moves(rng: torch.Generator) -> None:
    changes = torch.tensor([0.1, 0.2, 0.3, 9.0])[:, None, None, None]
    target = latents(rng)[:, :1] + changes * torch.arange(T)[None, :, None, None]
    copied = target[:, T - K - 1 : T - K].expand(-1, K, -1, -1)
    foreseen = torch.tensor([False, False, True, True])[:, None, None, None]
    found = scored(torch.where(foreseen, target[:, -K:], copied), target)
    assert (found["moving/skill_1"], found["static/skill_1"]) == (pytest.approx(1), pytest.approx(0))


def test_the_rank_of_features_does_not_count_their_mean(rng: torch.Generator) -> None:
    features = torch.randn(50, 8, generator=rng)
    assert effective_rank(features + 100) == pytest.approx(effective_rank(features), rel=1e-3)
    assert effective_rank(features[:, :1].expand(-1, 8) + 1) == pytest.approx(1, abs=1e-3)


def test_drift_tells_a_roll_out_that_blurs(rng: torch.Generator) -> None:
    """The norm of a token is fixed by the layer norm, so only what differs between patches can tell."""
    target = latents(rng)
    mean = target[:, -K:].mean(dim=2, keepdim=True)
    keep = torch.tensor([1.0, 0.6, 0.2])[None, :, None, None]
    blurred = layer_normed(keep * target[:, -K:] + (1 - keep) * layer_normed(mean))
    assert torch.allclose(blurred.norm(dim=3), target[:, -K:].norm(dim=3), rtol=1e-3)
    found = scored(blurred, target)
    assert found["drift/norm_1"] == pytest.approx(1, abs=1e-4)
    assert found["drift/norm_1"] > found["drift/norm_2"] + 0.05 > found["drift/norm_3"] + 0.1
    worse = target[:, -K:] + torch.tensor([0.1, 0.2, 0.4])[None, :, None, None]
    assert [scored(worse, target)[f"drift/error_{k}"] for k in (1, 2, 3)] == pytest.approx([1, 2, 4], rel=1e-4)


def test_retrieval_counts_closer_steps_of_the_same_video_alone() -> None:
    candidates = torch.tensor([[0.0], [1.0], [2.0], [5.0]])
    ranks = retrieval_ranks(torch.tensor([[0.1], [1.6], [9.0], [1.5]]), candidates, torch.tensor([0, 1, 0, 1]))
    assert ranks.tolist() == [0, 1, 3, 0.5]
    # Each step is the number of its clip and time; every roll-out foretells step 5 of its clip.
    target = torch.arange(T)[None, :, None, None] + 10.0 * torch.arange(B)[:, None, None, None]
    target = target.expand(B, T, NUM_PATCHES, D)
    found = scored(target[:, -1:].expand(-1, K, -1, -1), target)
    assert [found[f"retrieval/top1_{k}"] for k in (1, 2, 3)] == [0, 0, 1]
    assert [found[f"retrieval/rank_{k}"] for k in (1, 2, 3)] == pytest.approx([2 / 11, 1 / 11, 0])


def test_a_collapsing_predictor_is_alarmed_of(rng: torch.Generator) -> None:
    target = torch.randn(300, D, generator=rng)
    assert not collapse_monitors(target + 0.1 * torch.randn(300, D, generator=rng), target).alarms()
    shrunk = collapse_monitors(target * (MIN_DEVIATION_RATIO - 0.05), target)
    assert set(shrunk.alarms()) == {"deviation_ratio"}
    assert shrunk.rank_ratio == pytest.approx(1)
    flat = collapse_monitors(target[:, :1] * torch.ones(D), target)
    assert set(flat.alarms()) == {"rank_ratio"}
    assert flat.rank_ratio < MIN_RANK_RATIO
    assert set(collapse_monitors(torch.ones(300, D), target).alarms()) == {"deviation_ratio", "rank_ratio"}
    assert not collapse_monitors(torch.ones(300, D), torch.ones(300, D)).alarms()  # the truth does not vary either
    # Of many tokens some are looked at, from the first to the last.
    many = torch.randn(2000, D, generator=rng)
    assert set(collapse_monitors(many * (torch.arange(2000) < 300)[:, None], many).alarms()) == {"deviation_ratio"}


def test_the_readout_finds_where_the_tokens_say_people_look(rng: torch.Generator) -> None:
    """Tokens that carry the logarithm of the weight in some direction; the same tokens give the same read-out."""
    direction = torch.randn(8, generator=rng)

    def made(steps: int) -> tuple[Tensor, Tensor]:
        log_weight = torch.randn(steps, NUM_PATCHES, generator=rng)
        other = torch.randn(steps, NUM_PATCHES, 8, generator=rng)
        other -= (other @ direction)[..., None] * direction / direction.dot(direction)
        scene = other + log_weight[..., None] * direction / direction.dot(direction)
        return scene, (2 * log_weight).softmax(dim=1)

    train, test = [made(40) for _ in range(3)], made(20)
    readout = fit_readout(train)
    said = readout(test[0][None])[0]
    torch.testing.assert_close(said.sum(1), torch.ones(20))
    assert (said.argmax(1) == test[1].argmax(1)).float().mean() > 0.9
    assert torch.equal(fit_readout(train).slope_G, readout.slope_G)
    with pytest.raises(DataError, match="no known gaze"):
        fit_readout([])


def test_forecasts_are_scored_at_known_steps_alone(rng: torch.Generator) -> None:
    truth = torch.rand(B, K, NUM_PATCHES, generator=rng)
    points = peak_of(truth, GRID)
    index = int(truth[0, 0].argmax())
    assert points[0, 0].tolist() == pytest.approx([(index % 8 + 0.5) / 8, (index // 8 + 0.5) / 4])
    known = torch.ones(B, K, dtype=torch.bool)
    known[0], known[:, 2] = False, False
    wrong = truth.clone()
    wrong[0] = -truth[0] + 1  # wrong where nobody knows
    scores = ForecastScores(GRID)
    for part in (slice(0, 2), slice(2, 4)):
        maps = {"imagined": wrong[part], "flat": torch.ones(2, K, NUM_PATCHES)}
        scores.add(maps, points[part], known[part])
    found = scores.result()
    assert [found["imagined"][f"{name}_1"] for name in ("auc", "l2")] == pytest.approx([1, 0], abs=1e-6)
    assert found["flat"]["auc_2"] == 0.5
    assert found["imagined"]["num_steps_1"] == 3
    assert "auc_3" not in found["imagined"]


def judged(stage1_settings: dict[str, Any]) -> tuple[PretrainConfig, WorldModel, KeptSource, list[ClipRequest]]:
    """A world model that is given gaze, and nine clips of five steps: two batches of four and one of one."""
    config = PretrainConfig(**stage1_settings)
    world = open_world(config)
    return config, world, KeptSource(world, 16), [clip_of(f"val{n}", n, 5) for n in range(9)]


def test_validation_is_of_what_the_model_says_given_gaze(stage1_settings: dict[str, Any]) -> None:
    """By hand: one step ahead from the true past, and two steps rolled out from three; both beside the copy."""
    config, world, source, clips = judged(stage1_settings)
    found = validate(world, source, None, clips, config).scores
    forced, copied, errors, copies = [], [], [], []
    for clip in clips:
        z, scene, _, valid, known, _ = source.of(clip)
        assert scene is not None
        with torch.no_grad():
            said, _ = world.predictor.teacher_forced(z, scene, known, valid)
            rolled = world.predictor.rollout(z[:, :3], scene[:, :3], 2, known[:, :3], valid[:, :3])
        forced.append((said.z_BTND[:, :4] - z[:, 1:]).abs().mean())
        copied.append((z[:, :4] - z[:, 1:]).abs().mean())
        errors.append((rolled.z_BKND - z[:, 3:]).abs().mean(dim=(0, 2, 3)))
        copies.append((z[:, 2:3] - z[:, 3:]).abs().mean(dim=(0, 2, 3)))
    l1, copy_l1 = torch.stack(forced).mean().item(), torch.stack(copied).mean().item()
    assert (found["l1"], found["copy_l1"]) == (pytest.approx(l1, rel=1e-5), pytest.approx(copy_l1, rel=1e-5))
    assert found["skill"] == pytest.approx(1 - l1 / copy_l1, abs=1e-5)
    skill = 1 - torch.stack(errors).sum(0) / torch.stack(copies).sum(0)
    assert [found["skill_1"], found["skill_2"]] == pytest.approx(skill.tolist(), abs=1e-5)


def test_a_forecast_stands_beside_the_last_gaze_that_was_seen_and_the_mean_of_training(
    stage1_settings: dict[str, Any],
) -> None:
    config, world, source, clips = judged(stage1_settings)
    train = [clip_of(f"train{n}", 0, 5) for n in range(6)]
    found = forecast_gaze(world, source, {"estimated": source}, train, clips, config)["estimated"]
    grid = grid_of(world)
    prior = torch.cat([source.of(clip).gaze_BTN[source.of(clip).gaze_known_BT] for clip in train]).mean(0)
    missed: dict[str, list[list[float]]] = {"persistence": [[], []], "centre prior": [[], []]}
    for clip in clips:
        gaze, known = source.of(clip).gaze_BTN, source.of(clip).gaze_known_BT[0]
        for k in range(2):
            if known[2] and known[3 + k]:
                true = peak_of(gaze[:, 3 + k : 4 + k], grid)[0, 0]
                for name, said in (("persistence", gaze[:, 2:3]), ("centre prior", prior[None, None])):
                    missed[name][k].append((peak_of(said, grid)[0, 0] - true).norm().item())
    for name, of_step in missed.items():
        for k, distances in enumerate(of_step, start=1):
            assert found[name][f"num_steps_{k}"] == len(distances) > 0
            assert found[name][f"l2_{k}"] == pytest.approx(sum(distances) / len(distances), abs=1e-5)


def test_a_run_records_its_scores_and_its_forecast(stage1_settings: dict[str, Any], toy_world: Path) -> None:
    stage1_settings["data"] |= {part: [str(toy_world / "lists" / f"{part}_ego.txt")] for part in ("train", "val")}
    stage1_settings["gaze_files"] = {"folder": toy_world}
    runs = [pretrain.run(PretrainConfig(**stage1_settings | {"name": name})) for name in ("one", "two")]
    records = [json.loads((run.folder / "run.json").read_text()) for run in runs]
    validation, forecast = records[0]["validation"], records[0]["gaze_forecast"]
    assert validation == records[1]["validation"]
    assert forecast == records[1]["gaze_forecast"]
    assert {"near/skill_2", "elsewhere/skill_1", "moving/skill_1", "static/skill_2"} <= set(validation)
    assert {"drift/norm_2", "retrieval/top1_1", "retrieval/rank_2"} <= set(validation)
    assert set(forecast) == {"estimated", "measured"}
    for truth in forecast.values():
        assert set(truth) == {"imagined", "true tokens", "persistence", "centre prior"}
        for scores in truth.values():
            assert {f"{metric}_{k}" for metric in ("auc", "nss", "kl", "l2") for k in (1, 2)} <= set(scores)
            assert 0 <= scores["auc_1"] <= 1
    assert forecast["estimated"]["true tokens"] != forecast["measured"]["true tokens"]
    metrics = read_metrics(runs[0].folder)
    assert {"train/deviation_ratio", "train/rank_ratio", "val/near/skill_1"} <= set().union(*metrics)
    assert records[0]["warnings"] == []


def test_a_control_changes_what_is_imagined_and_not_the_truth(stage1_settings: dict[str, Any]) -> None:
    own, shuffled = (
        pretrain.run(PretrainConfig(**stage1_settings | {"name": control, "gaze_control": control}))
        for control in ("none", "shuffled")
    )
    told = [json.loads((run.folder / "run.json").read_text())["gaze_forecast"]["estimated"] for run in (own, shuffled)]
    for forecast in ("true tokens", "persistence", "centre prior"):
        assert told[0][forecast] == pytest.approx(told[1][forecast], abs=1e-6)
    assert told[0]["imagined"]["kl_1"] != pytest.approx(told[1]["imagined"]["kl_1"], abs=1e-4)


def test_a_model_without_gaze_is_judged_by_a_gaze_that_it_is_never_shown(stage1_settings: dict[str, Any]) -> None:
    blind, judged = (
        pretrain.run(
            PretrainConfig.model_validate(stage1_settings | {"name": name, "gaze": "none", "validation_gaze": gaze})
        )
        for name, gaze in (("blind", None), ("judged", "estimated"))
    )
    assert judged.predictor_sha256 == blind.predictor_sha256
    places = {name: value for name, value in judged.validation.items() if name.startswith(("near/", "elsewhere/"))}
    assert set(places) == {f"{place}/skill_{k}" for place in ("near", "elsewhere") for k in (1, 2)}
    assert {name: value for name, value in judged.validation.items() if name not in places} == blind.validation
    # The same numbers by hand: the trained model, its own tokens, and the gaze of a source that has Gazelle.
    config = PretrainConfig.model_validate(stage1_settings | {"name": "by-hand"})
    seeing, weights = new_world(config)
    source = open_source(config.tokens, seeing.observer, seeing.grid, weights, torch.device("cpu"), 0)
    with RunLog.open(config, "pretrain", resume=False) as log:
        videos = find_parts(config.data, log, StopFlag())["val"].videos
    source.prepare(videos, lambda done: None)
    clips = ClipPlan(videos, config.data.fps, config.data.num_steps, None, config.seed).validation()
    world = load_stage1(judged.folder).world
    told = json.loads((judged.folder / "run.json").read_text())
    assert told["validation_weights"] == {"gazelle": weights["gazelle"]}, "the files of the judge alone"
    scores = WorldScores(grid_of(world))
    observed = num_observed(config)
    for clip in clips:
        (batch,) = source.batches([[clip]])
        blinded = batch._replace(scene_BTNG=None)
        imagined = imagine(world, blinded, observed, config.data.num_steps - observed)[0]
        ids = [ClipId(str(clip.video.path), clip.first_step, "take")]
        scores.add(ids, imagined, batch.z_BTND, batch.gaze_BTN, batch.gaze_known_BT)
    by_hand = scores.result()
    assert {name: by_hand[name] for name in places} == pytest.approx(places, abs=1e-5)
    assert places["near/skill_2"] != pytest.approx(places["elsewhere/skill_2"], abs=1e-6)


def test_a_judge_says_where_and_when_people_look_and_nothing_else(stage1_settings: dict[str, Any]) -> None:
    world = open_world(PretrainConfig(**stage1_settings))
    source, judge = (KeptSource(world, NUM_PATCHES, seed) for seed in (0, 1))
    plan = [[clip_of("a", 0, T), clip_of("b", 3, T)]]
    (own,), (other,), (judged,) = (list(of.batches(plan)) for of in (source, judge, JudgedSource(source, judge)))
    assert not torch.equal(own.gaze_known_BT, other.gaze_known_BT)
    for name, found in judged._asdict().items():
        assert torch.equal(found, getattr(other if name in ("gaze_BTN", "gaze_known_BT") else own, name)), name


def test_a_video_that_the_judge_cannot_see_is_left_out_and_counted(
    stage1_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage1_settings["optim"]["num_steps"] = 1
    settings = stage1_settings | {"gaze": "none", "validation_gaze": "estimated"}
    with RunLog.open(PretrainConfig.model_validate(settings), "pretrain", resume=False) as log:
        broken = find_parts(PretrainConfig.model_validate(settings).data, log, StopFlag())["val"].videos[0].path
    make = Extractor._make

    def torn(self: Extractor, item: Wanted, on_steps: Callable[[int], None]) -> None:
        if item.video.path == broken and self._observer.gazelle is not None:
            raise DataError("a frame is missing")
        make(self, item, on_steps)

    monkeypatch.setattr(Extractor, "_make", torn)
    run = pretrain.run(PretrainConfig.model_validate(settings))
    told = json.loads((run.folder / "run.json").read_text())["coverage"]["val videos"]
    assert (told["expected"], told["used"]) == (2, 1)
    assert told["items"] == [{"item": str(broken), "reason": "cannot be decoded whole: a frame is missing"}]
    assert "near/skill_1" in run.validation


def test_without_gaze_nothing_is_forecast_and_measured_gaze_is_read_as_it_stands(
    stage1_settings: dict[str, Any], toy_world: Path
) -> None:
    stage1_settings["optim"]["num_steps"] = 2
    run = pretrain.run(PretrainConfig(**stage1_settings | {"gaze": "none"}))
    record = json.loads((run.folder / "run.json").read_text())
    assert record["gaze_forecast"] == {}
    assert not any(name.startswith("near/") for name in record["validation"])
    stage1_settings["data"] |= {part: [str(toy_world / "lists" / f"{part}_ego.txt")] for part in ("train", "val")}
    measured = {"name": "measured", "gaze": "measured", "gaze_files": {"folder": toy_world}}
    run = pretrain.run(PretrainConfig(**stage1_settings | measured))
    forecast = json.loads((run.folder / "run.json").read_text())["gaze_forecast"]
    assert set(forecast) == {"measured"}
    assert forecast["measured"]["true tokens"]["auc_1"] == 1
    assert forecast["measured"]["true tokens"]["l2_1"] == 0
    # An untrained predictor copies: it forecasts what persistence does.
    assert forecast["measured"]["imagined"]["l2_1"] == pytest.approx(
        forecast["measured"]["persistence"]["l2_1"], abs=0.02
    )


def test_an_alarm_is_told_once_and_stands_in_the_record(
    stage1_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher_forced = GazePredictor.teacher_forced

    def collapsed(self: GazePredictor, *given: Any) -> Any:
        said, past = teacher_forced(self, *given)
        return said._replace(z_BTND=said.z_BTND * 0.1), past

    monkeypatch.setattr(GazePredictor, "teacher_forced", collapsed)
    run = pretrain.run(PretrainConfig(**stage1_settings))
    (warning,) = json.loads((run.folder / "run.json").read_text())["warnings"]
    assert warning.startswith("step 2: features of the predictions vary 0.1")
    assert capsys.readouterr().out.count("warning: stage1: step 2: features of the predictions") == 1
