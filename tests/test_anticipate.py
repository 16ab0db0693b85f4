"""Stage 2 as a run: nothing after the anchor is seen, the world model is stage 1's, every segment is accounted for."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hwm.config import AnticipateConfig, PretrainConfig, ProbeConfig
from hwm.data.annotations import read_annotations
from hwm.data.clips import find_videos
from hwm.data.exclusions import Exclusion
from hwm.data.toyworld import read_split
from hwm.engine import sweep as sweeping
from hwm.engine.assemble import load_stage1
from hwm.engine.runlog import read_facts
from hwm.engine.runtime import rng_for
from hwm.errors import DataError, RunError
from hwm.models.world_model import WorldModel
from hwm.pipelines import anticipate, pretrain
from hwm.tokens import features, world_foresight
from hwm.tokens.features import compute_features
from hwm.tokens.source import LiveSource, Plan, TokenBatch
from hwm.tokens.world_foresight import open_world_foresight
from hwm.weights.files import hash_file
from hwm.weights.load import read_gazelle, save_model

CPU = torch.device("cpu")
HORIZON_SEC = 1.0
NoisyCopy = Callable[[Path, Path, float, int | None], None]


@pytest.fixture
def stage1(stage1_settings: dict[str, Any]) -> Path:
    return pretrain.run(PretrainConfig(**stage1_settings)).folder


def imagined(world: WorldModel, sample: anticipate.Sample, protocol: str, path: Path, tmp_path: Path) -> np.ndarray:
    """What the probe would read of a sample, from a video file at `path`."""
    video = sample.segment.video._replace(path=path)
    request = anticipate.feature_request(sample._replace(segment=sample.segment._replace(video=video)), protocol)
    source = LiveSource(world.observer, world.grid, CPU, num_workers=0)
    features = compute_features(
        world, source, [request], "context+future", False, 12,
        tmp_path / "features.npy", 1, lambda done: None,
    )  # fmt: skip
    return np.array(features.tokens_STND)


@pytest.mark.parametrize(
    ("protocol", "sees_the_future"), [("start-minus-tau/v1", False), ("legacy-end-minus-tau", True)]
)
def test_pixels_after_the_anchor_change_nothing(
    stage1: Path, stage2_settings: dict[str, Any], noisy_copy: NoisyCopy, tmp_path: Path, protocol: str,
    sees_the_future: bool,
) -> None:  # fmt: skip
    world = load_stage1(stage1).world
    with torch.no_grad():  # an open gate and heads, so that everything that is seen matters
        world.predictor.gate_parameter.fill_(0.1)
        world.predictor.stack.predictor_proj.weight.normal_(std=0.3)
    stage2_settings["protocol"] |= {"id": protocol}
    config = AnticipateConfig(**stage2_settings)
    table = read_annotations(config.annotations.val, config.annotations, None)
    samples, _ = anticipate.validation_samples(table, config, world.grid.fps)
    changed = 0
    for number, sample in enumerate(samples[:6]):
        anchor = sample.segment.start_sec - HORIZON_SEC
        features = []
        for seed in (None, number):
            path = tmp_path / "copy.mkv"
            noisy_copy(sample.segment.video.path, path, anchor, seed)
            features.append(imagined(world, sample, protocol, path, tmp_path))
        changed += not np.array_equal(*features)
    assert changed == (6 if sees_the_future else 0)


def test_validation_is_the_same_under_any_number_of_workers_and_batch_size(
    stage1: Path, stage2_settings: dict[str, Any]
) -> None:
    """Each segment once and in order, the last one too; what a trained probe says of it does not depend on how."""
    stage2_settings["tokens"] = {"source": "live"}
    first = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=stage1))
    expected = json.loads((first.folder / "segments.json").read_text())["segments"]
    assert len({row["row"] for row in expected}) == len(expected) == len(first.logits_SC)
    said = []
    for number, (num_workers, batch_size) in enumerate([(0, 1), (0, 7), (2, 7)]):
        settings = stage2_settings | {
            "name": f"again-{number}",
            "saved_probe": first.folder / "probe.safetensors",
            "probe": stage2_settings["probe"] | {"batch_size": batch_size},
            "runtime": {"device": "cpu", "num_workers": num_workers},
        }
        again = anticipate.run(AnticipateConfig(**settings, checkpoint=stage1))
        assert json.loads((again.folder / "segments.json").read_text())["segments"] == expected
        torch.testing.assert_close(again.logits_SC, first.logits_SC, atol=2e-3, rtol=1e-3)  # features are float16
        said.append(again.logits_SC)
    assert torch.equal(said[2], said[1])


def test_a_cpu_reads_few_samples_at_a_time(
    stage1: Path, stage2_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as its caches hold, whatever batch was asked for; they are the same features."""
    world = load_stage1(stage1).world
    config = AnticipateConfig(**stage2_settings)
    table = read_annotations(config.annotations.val, config.annotations, None)
    samples, _ = anticipate.validation_samples(table, config, world.grid.fps)
    requests = [anticipate.feature_request(sample, config.protocol.id) for sample in samples[:7]]
    asked: list[int] = []

    class Counted(LiveSource):
        def batches(self, plan: Plan) -> Iterator[TokenBatch]:
            asked.extend(len(group) for group in plan)
            return super().batches(plan)

    found, largest = [], []
    for samples_held in (7, 3):
        asked.clear()
        spec, side = world.observer.encoder.spec, world.grid.encoder_resolution
        numbers = requests[0].clip.num_steps * math.prod(spec.grid(side, side)) * spec.width
        monkeypatch.setattr(features, "CPU_BATCH_NUMBERS", samples_held * numbers)
        made = compute_features(
            world, Counted(world.observer, world.grid, CPU, num_workers=0), requests, "context", False, 12,
            tmp_path / "features.npy", 256, lambda done: None,
        )  # fmt: skip
        found.append(np.array(made.tokens_STND))
        assert max(asked) <= samples_held
        assert sum(asked) == 7
        largest.append(max(asked))
    assert largest[0] > largest[1] == 3, "the bound was what cut them"
    np.testing.assert_allclose(*found, atol=2e-3)


def test_gaze_reaches_stage_2(stage1: Path, stage2_settings: dict[str, Any], tmp_path: Path) -> None:
    """Other scene tokens at the observed steps give another imagined future: the gaze path is not left out here."""
    world = load_stage1(stage1).world
    config = AnticipateConfig(**stage2_settings)
    table = read_annotations(config.annotations.val, config.annotations, None)
    sample = anticipate.validation_samples(table, config, world.grid.fps)[0][2]
    path = sample.segment.video.path
    before = imagined(world, sample, config.protocol.id, path, tmp_path)
    with torch.no_grad():
        world.observer.gazelle.head_token.weight.add_(0)  # the same Gazelle gives the same future …
        assert np.array_equal(before, imagined(world, sample, config.protocol.id, path, tmp_path))
        world.observer.gazelle.transformer[0].mlp.fc2.weight.mul_(-3)  # … another one does not
    after = imagined(world, sample, config.protocol.id, path, tmp_path)
    context = config.protocol.num_steps
    assert np.array_equal(before[:, :context], after[:, :context])
    assert not np.array_equal(before[:, context:], after[:, context:])


def test_a_gaze_point_is_of_the_gazelle_that_the_recipe_names(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], tiny_weights: Path, tmp_path: Path
) -> None:
    """A world model without gaze of its own, at another rate of steps than the recipes'."""
    gazelle = read_gazelle(tiny_weights / "gazelle").module
    with torch.no_grad():
        gazelle.linear.weight.mul_(2)
    save_model(gazelle, tmp_path / "gazelle")
    stage1_settings["optim"]["num_steps"] = 1
    stage1_settings["data"]["fps"] = 2.0
    checkpoint = pretrain.run(PretrainConfig(**stage1_settings | {"gaze": "none"})).folder
    stage2_settings["probe"]["gaze_point"] = "estimated"
    named = {"gazelle": {"weights": str(tmp_path / "gazelle"), "resolution": 56}}
    foresight = open_world_foresight(AnticipateConfig(**stage2_settings | named, checkpoint=checkpoint), CPU)
    files = {"encoder": tiny_weights / "encoder", "gazelle": tmp_path / "gazelle"}
    assert foresight.facts["weights"] == {
        name: hash_file(folder / "model.safetensors").sha256 for name, folder in files.items()
    }
    assert foresight.facts["stage1"]["source"] == str(load_stage1(checkpoint).source)
    assert foresight.fps == 2.0
    (video, *_) = find_videos([Path(path) for path in stage1_settings["data"]["val"]], "**/*", 1.0).videos
    (lost,) = foresight.prepare([video._replace(path=tmp_path / "gone.mp4")], lambda done: None)
    assert lost.item == str(tmp_path / "gone.mp4")


def test_a_run_scores_every_segment_and_names_stage_1(
    stage1: Path, stage2_settings: dict[str, Any], stage1_settings: dict[str, Any]
) -> None:
    result = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=stage1))
    record = json.loads((result.folder / "run.json").read_text())
    trained = json.loads((stage1 / "run.json").read_text())["predictor_sha256"]
    assert record["stage1"]["predictor_sha256"] == trained
    assert record["protocol"] == "start-minus-tau/v1"
    assert record["samples_that_show_the_action"] == 0
    coverage = record["coverage"]["val segments"]
    assert coverage["expected"] == coverage["used"] + len(coverage["items"]) == result.scores["probe"]["num_segments"]
    assert set(result.scores) == {"probe", "majority", "previous step"}
    stored = load_file(result.folder / "outputs.safetensors")
    assert torch.equal(stored["logits"], result.logits_SC)
    segments = json.loads((result.folder / "segments.json").read_text())
    assert [row["labels"][0] for row in segments["segments"]] == stored["labels"].tolist()
    again = anticipate.run(AnticipateConfig(**stage2_settings | {"name": "again"}, checkpoint=stage1))
    assert torch.equal(again.logits_SC, result.logits_SC)


def test_a_stage_1_that_did_not_come_to_its_end_is_told(
    stage1: Path, stage2_settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_stage1(stage1).warnings == ()
    last = stage1 / "checkpoints" / "step-000008"
    (last / "predictor.safetensors").write_bytes(b"")
    damaged, early = load_stage1(stage1).warnings
    assert damaged.startswith("checkpoint step-000008 of stage 1 was passed over for step-000004: predictor.safe")
    assert early == "stage 1 was trained for 4 of its 8 steps"
    assert load_stage1(stage1 / "checkpoints" / "step-000004").warnings == ()  # asked for by name

    capsys.readouterr()
    facts = read_facts(anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=stage1)).folder)
    assert facts["warnings"][:2] == [damaged, early]
    assert f"warning: stage2: {early}" in capsys.readouterr().out


def test_what_is_no_whole_stage_1_is_refused_in_words(stage1: Path) -> None:
    tensors = stage1 / "checkpoints" / "step-000008" / "predictor.safetensors"
    with pytest.raises(RunError, match=r"is no stage-1 run(?s:.*)a file"):
        load_stage1(tensors)
    for damage in ("{", None):
        (stage1 / "run.json").write_text(damage) if damage else (stage1 / "run.json").unlink()
        with pytest.raises(RunError, match=r"run.json is missing or damaged(?s:.*)--resume"):
            load_stage1(stage1)


def test_a_second_run_in_a_folder_leaves_nothing_of_the_first(stage1: Path, stage2_settings: dict[str, Any]) -> None:
    protocol = stage2_settings["protocol"]
    stage2_settings["protocol"] = protocol | {"curve_sec": [0.5]}
    folder = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=stage1)).folder
    probe = folder / "probe.safetensors"
    assert {"outputs-0.5s.safetensors", "segments-0.5s.json", "outputs-majority.safetensors"} <= names_in(folder)
    weights = load_file(probe)
    scored = stage2_settings | {"protocol": protocol, "saved_probe": probe}
    anticipate.run(AnticipateConfig(**scored, checkpoint=stage1))
    assert not [name for name in names_in(folder) if "-0.5s" in name]
    again = load_file(probe)
    assert all(torch.equal(again.pop(name), tensor) for name, tensor in weights.items()), "it was there to be scored"
    assert not again
    broken = stage2_settings | {"protocol": protocol | {"train_horizon_sec": [500, 501]}}
    with pytest.raises(DataError, match="can be observed"):
        anticipate.run(AnticipateConfig(**broken, checkpoint=stage1))
    assert names_in(folder) == {"config.yaml", "run.json", ".lock"}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_world_model_that_changes_while_the_probe_trains_is_found_out(
    stage1: Path, stage2_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = []
    load = world_foresight.load_stage1

    def remembered(path: Path) -> Any:
        worlds.append(load(path))
        return worlds[-1]

    def meddling(*arguments: Any) -> Any:
        with torch.no_grad():
            worlds[-1].world.predictor.no_gaze.add_(1e-3)
        return sweeping.train_sweep(*arguments)

    monkeypatch.setattr(world_foresight, "load_stage1", remembered)
    monkeypatch.setattr(anticipate, "train_sweep", meddling)
    with pytest.raises(RunError, match="the frozen backbone changed"):
        anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=stage1))


def test_any_folder_of_videos_and_a_hand_written_json_will_do(
    stage1: Path, stage2_settings: dict[str, Any], toy_world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    split = read_split(toy_world)  # the last one is new to stage 1, under whatever name
    for number, take in enumerate([*split["train"][:3], split["val"][0]]):
        (folder / f"kitchen{number}.mp4").symlink_to(toy_world / "takes" / take / "frame_aligned_videos" / "cam01.mp4")
    names = {1: "wash", 2: "cut"}

    def written(numbers: range, extra: list[dict[str, Any]]) -> dict[str, Any]:
        segments = [
            {
                "start_time": 2.0 + 3 * i,
                "end_time": 4.0 + 3 * i,
                "step_unique_id": 1 + i % 2,
                "step_name": names[1 + i % 2],
            }
            for i in range(4)
        ]
        return {
            "annotations": {f"kitchen{n}": {"take_name": f"kitchen{n}", "segments": segments + extra} for n in numbers}
        }

    strange = [
        {"start_time": 5.0, "end_time": 6.0, "step_unique_id": 9, "step_name": "only here"},
        {"start_time": 5.0, "step_unique_id": 1},
        {"start_time": 0.5, "end_time": 1.0, "step_unique_id": 1, "step_name": "wash"},
        {"start_time": 900.0, "end_time": 901.0, "step_unique_id": 1, "step_name": "wash"},
    ]
    for name, content in (("train", written(range(3), [])), ("val", written(range(3, 5), strange))):
        (folder / f"{name}.json").write_text(json.dumps(content))
    stage2_settings["annotations"] = {"train": folder / "train.json", "val": folder / "val.json", "videos": folder}
    result = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=stage1))
    coverage = json.loads((result.folder / "run.json").read_text())["coverage"]["val segments"]
    assert (coverage["expected"], coverage["used"]) == (16, 4)
    reasons = coverage["excluded"]
    assert reasons["class not in training"] == 1
    assert reasons["no end_time"] == 2  # of both takes: a segment is looked at before its video
    assert reasons["starts before the horizon"] == 1
    assert reasons["starts after the end of the video"] == 1
    assert sum(reasons.values()) == 12  # the rest: kitchen4 has no video


def test_a_segment_that_starts_before_the_horizon_is_left_out_of_training_too(
    stage1: Path, stage2_settings: dict[str, Any]
) -> None:
    config = AnticipateConfig(**stage2_settings | {"protocol": {"num_steps": 4, "train_horizon_sec": (2.9, 3.0)}})
    table = read_annotations(config.annotations.train, config.annotations, None)
    views = anticipate.training_views(table, config, 4.0)
    assert views.excluded
    assert len(views.views[0]) + len(views.excluded) == len(table.segments)
    assert all(isinstance(exclusion, Exclusion) for exclusion in views.excluded)


def test_horizons_of_training_are_drawn_for_each_view_and_segment(stage2_settings: dict[str, Any]) -> None:
    """And each view holds the same segments in the same order, which is how its features find their labels."""
    settings = stage2_settings | {"protocol": {"num_steps": 4, "train_horizon_sec": (0.5, 1.5)}}
    settings["probe"] = stage2_settings["probe"] | {"num_views": 3}
    config = AnticipateConfig(**settings)
    table = read_annotations(config.annotations.train, config.annotations, None)
    views = anticipate.training_views(table, config, 4.0).views
    segments = [sample.segment for sample in views[0]]
    assert len(segments) > 10
    drawn = [[sample.horizon_sec for sample in view] for view in views]
    assert all([sample.segment for sample in view] == segments for view in views)
    assert len({horizon for view in drawn for horizon in view}) == 3 * len(segments)
    assert all(0.5 <= horizon <= 1.5 for view in drawn for horizon in view)
    for view in views:
        for segment, observation, horizon_sec in view:
            assert observation.last_time_sec <= segment.start_sec - horizon_sec < observation.last_time_sec + 0.25
    again, other = (
        anticipate.training_views(table, config.model_copy(update={"seed": seed}), 4.0).views for seed in (0, 1)
    )
    assert again == views
    assert not {sample.horizon_sec for sample in other[0]} & set(drawn[0])


def test_features_of_all_views_stand_in_the_order_of_their_labels(
    stage1: Path, stage2_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class EnoughError(Exception):
        pass

    seen: dict[str, Any] = {}
    features_of = anticipate._features

    def watched(foresight: Any, samples: Any, *rest: Any) -> Any:
        seen["samples"] = samples["train"]
        return features_of(foresight, samples, *rest)

    def asked(data: sweeping.ProbeData, *_: Any) -> None:
        seen["data"] = data
        raise EnoughError

    monkeypatch.setattr(anticipate, "_features", watched)
    monkeypatch.setattr(anticipate, "train_sweep", asked)
    settings = stage2_settings | {"probe": stage2_settings["probe"] | {"num_views": 2}}
    with pytest.raises(EnoughError):
        anticipate.run(AnticipateConfig(**settings, checkpoint=stage1))
    data, samples = seen["data"], seen["samples"]
    assert data.num_views == 2
    count = len(data.takes_S)
    for row, sample in enumerate(samples):
        assert data.labels["step"][row % count].tolist() == list(sample.segment.labels)
        assert data.takes_S[row % count] == sample.segment.take
    assert len({take for take in data.takes_S}) == 6


def test_takes_in_both_files_are_an_error(stage1: Path, stage2_settings: dict[str, Any]) -> None:
    stage2_settings["annotations"]["val"] = stage2_settings["annotations"]["train"]
    with pytest.raises(DataError, match="annotation files share"):
        anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=stage1))


def test_the_ego_view_runs_too(stage1: Path, stage2_settings: dict[str, Any]) -> None:
    stage2_settings["annotations"]["view"] = "ego"
    result = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=stage1))
    assert all("_214-1" in sample.segment.video.path.name for sample in result.samples)


def test_holding_out_takes_the_sweep_never_mixes_them() -> None:
    takes = [f"t{i // 3}" for i in range(30)]
    held = sweeping.split_by_take(takes, 0.2, np.random.default_rng(0))
    assert held.sum() == 6
    assert not {t for t, h in zip(takes, held, strict=True) if h} & {
        t for t, h in zip(takes, held, strict=True) if not h
    }
    with pytest.raises(DataError, match="two takes or more"):
        sweeping.split_by_take(["a", "a"], 0.2, np.random.default_rng(0))


@pytest.mark.parametrize("pooler", ["attentive", "mean", "mlp"])
def test_a_sweep_equals_its_probes_trained_one_by_one(pooler: str) -> None:
    rng = np.random.default_rng(0)
    data = sweeping.ProbeData(
        rng.normal(size=(24, 3, 4, 16)).astype(np.float16),
        np.ones((24, 3), dtype=bool),
        np.zeros((24, 3), dtype=bool),
        {"step": rng.integers(0, 3, (24, 1))},
        tuple(f"t{i % 6}" for i in range(24)),
    )
    settings: dict[str, Any] = {"pooler": pooler, "num_epochs": 3, "batch_size": 8}
    if pooler == "attentive":
        settings["num_heads"] = 2
    both = sweeping.train_sweep(
        data, {"step": 3}, ProbeConfig(**settings, lrs=(1e-3, 1e-2)), 0, CPU, lambda e, loss: None
    )
    for index, lr in enumerate((1e-3, 1e-2)):
        one = sweeping.train_sweep(data, {"step": 3}, ProbeConfig(**settings, lrs=(lr,)), 0, CPU, lambda e, loss: None)
        assert one.scores[0] == both.scores[index]
    losses = [score.holdout_loss for score in both.scores]
    assert both.winner == losses.index(min(losses))


def probe_data(seed: int = 0, num_views: int = 1) -> sweeping.ProbeData:
    """Features without meaning, of 24 segments in 6 takes."""
    rng = np.random.default_rng(seed)
    rows = 24 * num_views
    return sweeping.ProbeData(
        rng.normal(size=(rows, 3, 4, 16)).astype(np.float16),
        np.ones((rows, 3), dtype=bool),
        np.zeros((rows, 3), dtype=bool),
        {"step": rng.integers(0, 3, (24, 1))},
        tuple(f"t{i % 6}" for i in range(24)),
    )


def swept(data: sweeping.ProbeData, seed: int = 0, **settings: Any) -> sweeping.SweepResult:
    config = ProbeConfig(**{"pooler": "mean", "num_epochs": 3, "batch_size": 8, "lrs": (1e-2,)} | settings)
    return sweeping.train_sweep(data, {"step": 3}, config, seed, CPU, lambda done, loss: None)


def held_out(data: sweeping.ProbeData) -> np.ndarray:
    return sweeping.split_by_take(data.takes_S, 0.2, rng_for(0, "holdout"))


def test_held_out_takes_choose_the_probe_and_never_train_it() -> None:
    data, other = probe_data(), probe_data(1)
    held = held_out(data)
    assert held.sum() == 4
    mixed = data._replace(
        tokens_RTND=np.where(held[:, None, None, None], other.tokens_RTND, data.tokens_RTND),
        labels={"step": np.where(held[:, None], other.labels["step"], data.labels["step"])},
    )
    one, two = swept(data), swept(mixed)
    assert all(torch.equal(tensor, two.probe.state_dict()[name]) for name, tensor in one.probe.state_dict().items())
    assert one.scores[0].train_loss == two.scores[0].train_loss
    assert one.scores[0].holdout_loss != two.scores[0].holdout_loss


def test_each_view_of_the_training_segments_is_trained_on_in_its_turn() -> None:
    """Epoch e reads view e mod V; the held-out takes are judged in all views."""
    data = probe_data(num_views=2)
    for view, num_epochs, changes in ((0, 1, True), (1, 1, False), (1, 2, True)):
        tokens = data.tokens_RTND.copy()
        tokens[24 * view : 24 * (view + 1)] = probe_data(5).tokens_RTND
        other = data._replace(tokens_RTND=tokens)
        one, two = (swept(each, num_epochs=num_epochs, num_views=2) for each in (data, other))
        assert (one.scores[0].train_loss != two.scores[0].train_loss) == changes
        assert one.scores[0].holdout_loss != two.scores[0].holdout_loss


def test_the_probe_that_comes_back_is_the_one_with_the_lowest_loss_on_the_held_out_takes() -> None:
    data = probe_data(num_views=2)
    result = swept(data, lrs=(1.0, 1e-3, 0.3), num_views=2)
    samples = np.flatnonzero(held_out(data))
    labels = torch.from_numpy(data.labels["step"][samples, 0])
    said = [sweeping.logits_of(result.probe, data, samples, view, CPU)["step"][:, 0] for view in range(2)]
    loss = np.mean([torch.nn.functional.cross_entropy(logits, labels).item() for logits in said])
    assert (result.winner, result.probe.training) == (1, False)
    assert min(score.holdout_loss for score in result.scores) == pytest.approx(loss, rel=1e-5)
    right = torch.cat([logits.argmax(1) == labels for logits in said])
    assert result.scores[1].holdout_top1 == pytest.approx(right.float().mean().item())


def test_a_probe_is_trained_by_adam_w_on_all_segments_of_a_batch() -> None:
    """By hand, with one batch an epoch: a warm-up of two epochs, then half a cosine to 0."""
    data = probe_data()
    found = swept(data, num_epochs=4, batch_size=64, warmup_epochs=2, weight_decays=(0.1,)).probe.probe.head
    train = np.flatnonzero(~held_out(data))
    tokens = torch.from_numpy(data.tokens_RTND[train]).float()
    read = torch.nn.functional.layer_norm(tokens.mean(dim=2), (16,)).flatten(1)
    head = torch.nn.Linear(3 * 16, 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": 0.1}, {"params": [head.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    for lr in (0.5e-2, 1e-2, 1e-2, 0.0):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(read), torch.from_numpy(data.labels["step"][train, 0])).backward()
        optimizer.step()
    torch.testing.assert_close(found.weight, head.weight, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(found.bias, head.bias, atol=1e-5, rtol=1e-3)


def test_every_epoch_has_an_order_of_its_own_in_which_each_segment_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data, drawn, batch = probe_data(), [], sweeping.ProbeData.batch

    def watched(self: sweeping.ProbeData, samples: np.ndarray, view: int, device: torch.device) -> Any:
        drawn.append(samples.tolist())
        return batch(self, samples, view, device)

    monkeypatch.setattr(sweeping.ProbeData, "batch", watched)
    swept(data, num_epochs=3, batch_size=6, lrs=(1e-2, 1e-3))
    held = held_out(data)
    epochs = [[n for samples in drawn[4 * epoch : 4 * epoch + 4] for n in samples] for epoch in range(3)]
    assert all(sorted(order) == np.flatnonzero(~held).tolist() for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3
    assert max(map(len, drawn[:12])) <= 6
    assert drawn[12:] == [np.flatnonzero(held).tolist()] * 2


def test_a_gaze_point_that_is_not_known_trains_no_probe() -> None:
    data, known = probe_data(), np.random.default_rng(3).random((24, 3)) < 0.5
    noisy = data.tokens_RTND.copy()
    noisy[~known, -1] = probe_data(9).tokens_RTND[~known, -1]
    settings = {"gaze_point": "measured", "num_epochs": 2}
    results = [
        swept(data._replace(tokens_RTND=tokens, gaze_known_RT=mask), **settings)
        for tokens, mask in ((data.tokens_RTND, known), (noisy, known), (noisy, np.ones_like(known)))
    ]
    assert results[0].scores == results[1].scores
    assert results[0].scores != results[2].scores


def test_the_seed_decides_the_weights_that_a_probe_starts_from() -> None:
    settings = {"pooler": "attentive", "num_heads": 2, "num_epochs": 1, "lrs": (1e-9,), "weight_decays": (0.0,)}
    one, again, other = (swept(probe_data(), seed, **settings).probe.step_embed for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 0.1


def test_a_probe_of_the_sweep_has_its_own_weight_decay() -> None:
    free, held = (swept(probe_data(), weight_decays=(decay,), num_epochs=20).probe for decay in (0.0, 20.0))
    assert held.probe.head.weight.norm() < 0.5 * free.probe.head.weight.norm()
