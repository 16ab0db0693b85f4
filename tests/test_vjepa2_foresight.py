"""V-JEPA 2's own predictor as a backbone: upstream's tokens, nothing after the anchor, and a run of every kind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hwm.config import AnticipateConfig, VJEPA2BackboneConfig
from hwm.data.annotations import read_annotations
from hwm.data.transforms import centre_square, normalise
from hwm.data.video import VideoReader
from hwm.engine import sweep as sweeping
from hwm.engine.assemble import load_vjepa2_pair
from hwm.errors import ConfigError, RunError
from hwm.models.masked_predictor import MaskedPredictor, MaskedPredictorSpec
from hwm.models.step_probe import StepProbe, StepProbeSpec
from hwm.pipelines import anticipate
from hwm.tokens import vjepa2_foresight as foreseeing
from hwm.tokens.features import Inputs
from hwm.tokens.vjepa2_foresight import VJEPA2Foresight, clamp_to_first, open_vjepa2_foresight
from hwm.weights.load import save_model

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")
FPS, NUM_FRAMES, RESOLUTION, WIDTH = 8.0, 8, 64, 32
BEYOND_SEC = 0.4
"""How far past the start of the step the features of these tests foresee."""
NoisyCopy = Callable[[Path, Path, float, int | None], None]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "vjepa2.safetensors")


@pytest.fixture(scope="module")
def predictor_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked predictor for the tiny encoder, with weights so large that mask token, place and latents matter."""
    torch.manual_seed(1)
    predictor = MaskedPredictor(MaskedPredictorSpec(WIDTH, 24, 2, 2))
    with torch.no_grad():
        for parameter in predictor.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("predictor")
    save_model(predictor, folder)
    return folder


@pytest.fixture
def settings(stage2_settings: dict[str, Any], tiny_weights: Path, predictor_weights: Path) -> dict[str, Any]:
    """The baseline on the toy world in seconds."""
    return stage2_settings | {
        "backbone": {
            "kind": "vjepa2",
            "encoder": {"weights": str(tiny_weights / "encoder"), "resolution": RESOLUTION},
            "predictor": {"weights": str(predictor_weights)},
            "fps": FPS,
        },
        "tokens": {"source": "live"},
        "protocol": {"num_steps": NUM_FRAMES},
        "probe": stage2_settings["probe"] | {"positions": False, "loss": "focal", "num_epochs": 1},
    }


def opened(config: AnticipateConfig) -> VJEPA2Foresight:
    assert isinstance(config.backbone, VJEPA2BackboneConfig)
    return open_vjepa2_foresight(config, config.backbone, CPU)


def upstreams(inputs: Inputs = "context+future", **changed: Any) -> VJEPA2Foresight:
    """The golden encoder and predictor at the golden wrapper's 4 frames a second."""
    released = str(GOLDEN / "vjepa2_checkpoint.pt")
    config = VJEPA2BackboneConfig.model_validate(
        {
            "kind": "vjepa2",
            "encoder": {"weights": released, "key": "encoder", "num_heads": 4, "resolution": RESOLUTION},
            "predictor": {"num_heads": 3},
            "fps": 4.0,
            "position_frames": 24,
        }
        | changed
    )
    pair = load_vjepa2_pair(config, with_predictor=inputs != "context")
    return VJEPA2Foresight(pair, config, inputs, "all", batch_size=2, device=CPU, num_workers=0)


def test_a_name_of_the_catalogue_brings_both_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWM_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    shutil.copy(GOLDEN / "vjepa2_checkpoint.pt", tmp_path / "weights" / "vitl.pt")
    encoder = {"weights": "vjepa2-vitl-256", "key": "encoder", "num_heads": 4, "resolution": RESOLUTION}
    assert upstreams(encoder=encoder).frozen_sha256() == upstreams().frozen_sha256()


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("num_rounds", "num_frames"), [(1, 2), (1, 4), (2, 2)])
def test_features_are_the_tokens_of_the_released_wrapper(
    golden: dict[str, Tensor], num_rounds: int, num_frames: int
) -> None:
    video, seconds = golden["encoder.video"], golden["wrapper.anticipation_seconds"].tolist()
    expected = golden[f"wrapper.tokens_steps{num_rounds}_out{num_frames}"]
    rounds = {"num_rounds": num_rounds, "num_output_frames": num_frames}
    foresight = upstreams(**rounds)
    assert foresight.fps == 4.0
    both = foresight.read_out(video, seconds)
    assert both.shape[1:3] == (expected.shape[1] // 16, 16)
    assert_close(both.flatten(1, 2), expected)
    num_context = golden["encoder.tokens"].shape[1]
    assert_close(upstreams("context", **rounds).read_out(video, seconds).flatten(1, 2), expected[:, :num_context])
    assert_close(upstreams("future", **rounds).read_out(video, seconds).flatten(1, 2), expected[:, num_context:])


@pytest.mark.parametrize("mask_index", [0, 1, 7])
def test_the_mask_token_is_the_one_that_is_asked_for(golden: dict[str, Tensor], mask_index: int) -> None:
    targets = golden["predictor.target_positions"]
    video = golden["encoder.video"]
    num_tokens = golden["encoder.tokens"].shape[1]
    steps = (targets[:, 0] - num_tokens) // 16
    foresight = upstreams("future", mask_index=mask_index)
    seconds = [(step + 0.5) * 2 / 4.0 for step in steps.tolist()]  # in the middle of the step: no rounding decides
    assert_close(foresight.read_out(video, seconds).flatten(1, 2), golden[f"predictor.tokens_mask{mask_index}"])


def test_a_predictor_is_there_where_its_predictions_are_read_and_nowhere_else() -> None:
    whole, alone = upstreams(), upstreams("context")
    for pair, inputs in ((whole._pair, "context"), (alone._pair, "future"), (alone._pair, "context+future")):
        with pytest.raises(ValueError, match="exactly where its predictions are read"):
            VJEPA2Foresight(pair, whole._config, inputs, "all", batch_size=2, device=CPU, num_workers=0)


def test_both_models_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(foreseeing, "compile_blocks", lambda module, warn: compiled.append(module))
    whole, alone = upstreams(), upstreams("context")
    whole.compile(lambda text: None)
    assert compiled == [whole._pair.encoder, whole._pair.predictor]
    alone.compile(lambda text: None)
    assert compiled[2:] == [alone._pair.encoder]


def test_a_mask_token_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such mask token"):
        upstreams(mask_index=10)


def test_targets_beyond_the_positions_are_refused(golden: dict[str, Tensor], settings: dict[str, Any]) -> None:
    foresight = upstreams()  # 24 frames of positions, 8 of clip, 2 predicted: 14 frames = 3.5 s may be skipped
    foresight.check_positions(8, 3.5)
    foresight.read_out(golden["encoder.video"], [3.5, 0.5])
    for call in (
        lambda: foresight.check_positions(8, 4.0),
        lambda: foresight.read_out(golden["encoder.video"], [0.5, 4.0]),
        lambda: upstreams(num_output_frames=4).check_positions(8, 3.5),
    ):
        with pytest.raises(ConfigError, match="beyond the positions"):
            call()
    settings["backbone"]["position_frames"] = 16
    opened(AnticipateConfig(**settings | {"protocol": {"num_steps": 4, "train_horizon_sec": [0.5, 1.25]}}))
    with pytest.raises(ConfigError, match=r"1\.5 s .*targets up to frame 18"):
        opened(AnticipateConfig(**settings | {"protocol": {"num_steps": 4, "train_horizon_sec": [0.5, 1.5]}}))
    further = {"num_steps": 4, "train_horizon_sec": [0.5, 1.25], "beyond_start_sec": 0.25}
    with pytest.raises(ConfigError, match=r"1\.5 s .*targets up to frame 18"):
        opened(AnticipateConfig(**settings | {"protocol": further}))
    settings["probe"]["inputs"] = "context"  # no predictor, no positions
    opened(AnticipateConfig(**settings | {"protocol": {"num_steps": 32}}))


def samples_of(config: AnticipateConfig) -> list[anticipate.Sample]:
    table = read_annotations(config.annotations.val, config.annotations, None)
    return anticipate.validation_samples(table, config, FPS)[0]


def test_the_file_holds_each_clip_of_frames_by_time_and_early_frames_are_frame_0(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Computed anew from the video: horizons that differ, a batch that is cut, clips that begin before the video."""
    settings["probe"]["batch_size"] = 2
    settings["protocol"]["num_steps"] = 24
    config = AnticipateConfig(**settings)
    samples = sorted(samples_of(config), key=lambda sample: sample.segment.start_sec)[:3]
    assert samples[0].observation.num_padded > 0
    horizons_sec = (0.6, 0.3, 0.9)  # in no order, and the clips end 1 s before the start
    samples = [sample._replace(horizon_sec=tau) for sample, tau in zip(samples, horizons_sec, strict=True)]
    foresight = opened(config)
    requests = [anticipate.feature_request(sample, config.protocol.id, BEYOND_SEC) for sample in samples]
    done: list[int] = []
    sets = {"a": requests, "b": requests[:1]}
    features = foresight.features(sets, tmp_path, done.append)
    assert done == [2, 3, 4]
    for row, sample in enumerate(samples):
        steps = np.arange(24) + sample.observation.first_step
        with VideoReader(sample.segment.video.path) as reader:
            box = centre_square(sample.segment.video)
            times = (np.maximum(steps, 0) / FPS).tolist()
            frames = reader.read(times, [(RESOLUTION, RESOLUTION)], box).views[0]
        video = normalise(torch.from_numpy(frames))[None].transpose(1, 2)
        expected = foresight.read_out(video, [sample.horizon_sec + BEYOND_SEC])[0]
        found = torch.from_numpy(features["a"].tokens_STND[row].astype(np.float32))
        assert found.shape == (24 // 2 + 1, 16, WIDTH)
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=2e-3)
        elsewhere = foresight.read_out(video, [sample.horizon_sec + BEYOND_SEC + 2 / FPS])[0]
        assert (elsewhere[-1] - expected[-1]).abs().max() > 0.05  # the next step would be seen to be another
    assert features["a"].valid_ST.all()
    assert not features["a"].gaze_known_ST.any()
    with pytest.raises(ConfigError, match=r"trained on other steps(.|\n)*expected: 14(.|\n)*found: 13"):
        foresight.features(sets, tmp_path, done.append, num_slots=14)
    foresight.features({"b": requests[:1]}, tmp_path, done.append, num_slots=13)
    np.testing.assert_allclose(features["b"].tokens_STND[0], features["a"].tokens_STND[0], atol=5e-3)
    # Frames come at the encoder's resolution.
    encoder = config.backbone.encoder.model_copy(update={"resolution": RESOLUTION // 2})
    coarse = opened(config.model_copy(update={"backbone": config.backbone.model_copy(update={"encoder": encoder})}))
    coarser = coarse.features({"c": requests[:1]}, tmp_path, done.append)["c"].tokens_STND
    assert coarser.shape == (1, 24 // 2 + 1, 4, WIDTH)
    # A probe that reads the mean of the patches gets that alone.
    pooled = opened(config.model_copy(update={"probe": config.probe.model_copy(update={"pooler": "mean"})}))
    mean = pooled.features({"mean": requests[:2]}, tmp_path, done.append)["mean"].tokens_STND
    np.testing.assert_allclose(mean, features["a"].tokens_STND[:2].astype(np.float32).mean(2, keepdims=True), atol=5e-3)


def test_clamping_repeats_the_first_valid_frame_alone() -> None:
    frames = torch.arange(8, dtype=torch.uint8).reshape(2, 4, 1, 1, 1).expand(2, 4, 2, 2, 3)
    valid = torch.tensor([[False, False, True, True], [True, True, True, True]])
    clamped = clamp_to_first(frames, valid)
    assert clamped[:, :, 0, 0, 0].tolist() == [[2, 2, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("protocol", "sees_the_future"), [("start-minus-tau/v1", False), ("legacy-end-minus-tau", True)]
)
def test_pixels_after_the_anchor_leave_the_logits_bit_identical(
    settings: dict[str, Any], noisy_copy: NoisyCopy, tmp_path: Path, protocol: str, sees_the_future: bool
) -> None:
    config = AnticipateConfig(**settings | {"protocol": {"id": protocol, "num_steps": NUM_FRAMES}})
    foresight = opened(config)
    torch.manual_seed(0)
    probe = StepProbe(StepProbeSpec(WIDTH, 5, 16, {"step": (1, 7)}, num_heads=2, depth=2, positions=False)).eval()
    changed = 0
    for number, sample in enumerate(samples_of(config)[:6]):
        anchor = sample.segment.start_sec - sample.horizon_sec
        logits = []
        for seed in (None, number):
            path = tmp_path / "copy.mkv"
            noisy_copy(sample.segment.video.path, path, anchor, seed)
            video = sample.segment.video._replace(path=path)
            moved = sample._replace(segment=sample.segment._replace(video=video))
            request = anticipate.feature_request(moved, protocol)
            features = foresight.features({"one": [request]}, tmp_path, lambda done: None)["one"]
            tokens = torch.from_numpy(np.array(features.tokens_STND)).float()
            with torch.inference_mode():
                logits.append(probe(tokens, torch.from_numpy(features.valid_ST))["step"])
        changed += not torch.equal(*logits)
    assert changed == (6 if sees_the_future else 0)


@pytest.mark.parametrize(
    ("inputs", "num_steps"), [("context", NUM_FRAMES // 2), ("future", 1), ("context+future", NUM_FRAMES // 2 + 1)]
)
def test_a_run_reads_what_it_was_told_and_says_so(
    settings: dict[str, Any], inputs: str, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[sweeping.ProbeData] = []

    def watched(data: sweeping.ProbeData, *arguments: Any) -> Any:
        read.append(data)
        return sweeping.train_sweep(data, *arguments)

    monkeypatch.setattr(anticipate, "train_sweep", watched)
    settings["probe"] |= {"inputs": inputs, "num_views": 2}
    settings["protocol"]["num_steps"] = NUM_FRAMES
    result = anticipate.run(AnticipateConfig(**settings))
    assert read[0].num_views == 2
    assert read[0].tokens_RTND.shape[1:] == (num_steps, 16, WIDTH)
    record = json.loads((result.folder / "run.json").read_text())
    models = {"encoder"} if inputs == "context" else {"encoder", "masked_predictor"}
    assert set(record["weights"]) == set(record["frozen_sha256"]) == models
    backbone = record["backbone"]
    assert (backbone["kind"], backbone["inputs"], backbone["padding"]) == ("vjepa2", inputs, "clamped to frame 0")
    assert (backbone["mask_index"], backbone["position_frames"], backbone["fps"]) == (1, 64, FPS)
    padded = sum(sample.observation.first_step < 0 for sample in result.samples)
    assert record["padded_clips"]["val"] == padded
    assert record["protocol"] == "start-minus-tau/v1"
    coverage = record["coverage"]["val segments"]
    assert coverage["used"] == result.scores["probe"]["num_segments"]
    assert {path.name for path in result.folder.iterdir()} >= {"probe.safetensors", "outputs.safetensors"}
    assert not any(name.startswith(("probe.step_embed", "step_embed")) for name in load_file(
        result.folder / "probe.safetensors"
    ))  # fmt: skip


def test_clips_that_begin_before_the_video_are_counted(settings: dict[str, Any]) -> None:
    settings["probe"]["inputs"] = "context"
    settings["protocol"]["num_steps"] = 40  # 5 s: longer than what lies before the first steps
    result = anticipate.run(AnticipateConfig(**settings))
    padded = sum(sample.observation.last_time_sec < 39 / FPS for sample in result.samples)
    assert 0 < padded < len(result.samples)
    assert json.loads((result.folder / "run.json").read_text())["padded_clips"]["val"] == padded


@pytest.mark.parametrize("name", ["encoder", "predictor"])
def test_a_backbone_that_changes_while_the_probe_trains_is_found_out(
    settings: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = []
    load = foreseeing.load_vjepa2_pair

    def remembered(*arguments: Any, **options: Any) -> Any:
        pairs.append(load(*arguments, **options))
        return pairs[-1]

    def meddling(*arguments: Any) -> Any:
        with torch.no_grad():
            next(getattr(pairs[-1], name).parameters()).add_(1e-3)
        return sweeping.train_sweep(*arguments)

    monkeypatch.setattr(foreseeing, "load_vjepa2_pair", remembered)
    monkeypatch.setattr(anticipate, "train_sweep", meddling)
    with pytest.raises(RunError, match="the frozen backbone changed"):
        anticipate.run(AnticipateConfig(**settings))


def test_weights_that_do_not_go_together_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["backbone"]["predictor"] = {}
    with pytest.raises(ConfigError, match="hold no masked predictor"):
        opened(AnticipateConfig(**settings))
    save_model(MaskedPredictor(MaskedPredictorSpec(2 * WIDTH, 24, 1, 2)), tmp_path / "other")
    settings["backbone"]["predictor"] = {"weights": str(tmp_path / "other")}
    with pytest.raises(ConfigError, match="belongs to another encoder"):
        opened(AnticipateConfig(**settings))
    settings["probe"]["inputs"] = "context"
    opened(AnticipateConfig(**settings))
    with pytest.raises(ConfigError, match="multiple of 2"):
        opened(AnticipateConfig(**settings | {"protocol": {"num_steps": 7}}))


def test_settings_that_this_backbone_cannot_use_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    for changed, word in (
        ({"checkpoint": tmp_path}, "checkpoint"),
        ({"tokens": {"source": "cached"}}, "cached"),
        ({"probe": settings["probe"] | {"gaze_point": "estimated"}}, "gaze_point"),
    ):
        with pytest.raises(ValueError, match=f"backbone vjepa2 cannot use .*{word}"):
            AnticipateConfig(**settings | changed)


def test_the_probe_without_positions_is_upstreams(golden: dict[str, Tensor]) -> None:
    weights = load_file(GOLDEN / "probe_weights.safetensors")
    num_classes, width = weights["action_classifier.weight"].shape
    probe = StepProbe(
        StepProbeSpec(width, 4, 16, {"step": (1, num_classes)}, num_heads=4, depth=3, positions=False)
    ).eval()
    renamed = {name.replace("action_classifier", "step_classifier"): value for name, value in weights.items()}
    probe.probe.load_state_dict(renamed, strict=True)
    assert set(probe.state_dict()) == {f"probe.{name}" for name in renamed}
    tokens = golden["encoder.tokens"].unflatten(1, (4, 16))
    assert_close(probe(tokens, torch.ones(2, 4, dtype=torch.bool))["step"][:, 0], golden["probe.logits"])


def test_the_focal_loss_is_upstreams_and_trains_the_sweep() -> None:
    from hwm.config import ProbeConfig

    stored = load_file(GOLDEN / "metrics.safetensors")
    total = json.loads((GOLDEN / "metrics.json").read_text())["sigmoid_focal_loss_sum"]
    loss = sweeping.segment_loss("focal", stored["logits"], stored["labels"])
    assert loss.item() * len(stored["labels"]) == pytest.approx(total, rel=1e-6)
    assert sweeping.segment_loss("cross-entropy", stored["logits"], stored["labels"]) == pytest.approx(
        torch.nn.functional.cross_entropy(stored["logits"], stored["labels"]).item()
    )
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 48)
    tokens = rng.normal(size=(48, 2, 4, 16)) * 0.3
    tokens[np.arange(48), :, :, labels] += 3.0
    data = sweeping.ProbeData(
        tokens.astype(np.float16),
        np.ones((48, 2), dtype=bool),
        np.zeros((48, 2), dtype=bool),
        {"step": labels[:, None]},
        tuple(f"t{i % 6}" for i in range(48)),
    )
    config = ProbeConfig(num_heads=2, num_epochs=12, batch_size=8, lrs=(3e-3, 1e-12), loss="focal", positions=False)
    result = sweeping.train_sweep(data, {"step": 3}, config, 0, CPU, lambda epoch, value: None)
    assert result.loss_curve[-1] < 0.5 * result.loss_curve[0]
    at_chance = (0.25 + 2 * 0.75) * 0.5**2 * np.log(2)  # one true class and two others, each answered with 1/2
    assert result.scores[1].train_loss == pytest.approx(at_chance, abs=0.02)  # a probe that hardly moves
    assert result.scores[0].holdout_top1 == 1.0
    held = sweeping.split_by_take(data.takes_S, config.holdout_fraction, sweeping.rng_for(0, "holdout"))
    logits = sweeping.logits_of(result.probe, data, np.flatnonzero(held), 0, CPU)
    focal = sweeping.segment_loss("focal", logits["step"][:, 0], torch.from_numpy(labels[held]))
    assert result.scores[0].holdout_loss == pytest.approx(focal.item())
