"""Encoders and gaze models are made: nothing hidden is seen, the target only follows, resumed equals straight."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwm.config import AdaptConfig, AdaptGazeConfig, MaskConfig
from hwm.data.masks import draw_masks
from hwm.data.toyworld import load_truth, read_split
from hwm.engine.logged import read_metrics
from hwm.engine.runlog import RunLog
from hwm.models.masked_objective import MaskedLosses, masked_losses, patch_pixels, update_target
from hwm.models.masked_predictor import MaskedPredictor, MaskedPredictorSpec
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
from hwm.pipelines import adapt, adapt_gaze
from hwm.weights.files import hash_tensors
from hwm.weights.load import load_encoder, load_gazelle

GRID = (4, 4)
NUM_STEPS = 2
SPEC = EncoderSpec(16, 1, 2, patch_size=4)


class InterruptedRunError(Exception):
    """Stands for a machine that goes away."""


@pytest.fixture
def settings_of_adapt(toy_world: Path, tmp_path: Path) -> dict[str, Any]:
    """An encoder run of seconds; change it and hand it to `AdaptConfig`."""
    videos = [str(toy_world / "lists" / "train_cam01.txt")]
    return {
        "name": "encoder",
        "folder": tmp_path / "runs",
        "model": {"width": 32, "depth": 1, "num_heads": 2},
        "predictor": {"width": 24, "depth": 1, "num_heads": 2},
        "resolution": 64,
        "data": {"train": videos, "num_steps": 2},
        "in_memory": True,
        "pixel_weight": 0.5,
        "variance_weight": 0.5,
        "optim": {"lr": 1e-3, "num_steps": 4, "warmup_steps": 1, "batch_size": 4},
        "log_every": 2,
        "save_every": 2,
    }


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets runs die in the given step, after its update and before anything of it is written; 0 lets them live."""
    add = RunLog.add

    def stop(last: int) -> None:
        def dying(self: RunLog, step: int, values: dict[str, float]) -> None:
            if step == last:
                raise InterruptedRunError
            add(self, step, values)

        monkeypatch.setattr(RunLog, "add", dying)

    return stop


# Masks


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(1, 4),
    num_steps=st.integers(1, 4),
    rows=st.integers(1, 7),
    cols=st.integers(2, 7),
    num_blocks=st.integers(1, 6),
    scale=st.sampled_from([(0.1, 0.25), (0.01, 0.02), (0.5, 1.0)]),
    seed=st.integers(0, 2**16),
)
def test_masks_split_the_patches_in_tubes(batch, num_steps, rows, cols, num_blocks, scale, seed) -> None:
    config = MaskConfig(num_blocks=num_blocks, scale=scale)
    keep, hidden = draw_masks(batch, num_steps, (rows, cols), config, np.random.default_rng(seed))
    again = draw_masks(batch, num_steps, (rows, cols), config, np.random.default_rng(seed))
    assert np.array_equal(keep, again.keep_BL)
    assert keep.shape[0] == hidden.shape[0] == batch
    assert keep.shape[1] > 0
    assert hidden.shape[1] > 0
    for kept, lost in zip(keep, hidden, strict=True):
        assert sorted([*kept, *lost]) == list(range(num_steps * rows * cols))
        for ids in (kept, lost):
            steps, places = np.divmod(ids.reshape(num_steps, -1), rows * cols)
            assert np.array_equal(steps, np.broadcast_to(np.arange(num_steps)[:, None], steps.shape))
            assert np.all(places == places[0])


@pytest.mark.parametrize(("aspect", "height", "width"), [(1.0, 4, 4), (4.0, 2, 8), (0.25, 8, 2)])
def test_a_block_of_the_asked_share_and_shape_is_hidden_and_the_rest_kept(aspect: float, height: int, width: int):
    config = MaskConfig(num_blocks=1, scale=(0.25, 0.25), aspect=(aspect, aspect))
    keep, hidden = draw_masks(1, 1, (8, 8), config, np.random.default_rng(0))
    assert keep.shape == (1, 48)
    rows, columns = np.unique(hidden[0] // 8), np.unique(hidden[0] % 8)
    assert (len(rows), len(columns), hidden.shape) == (height, width, (1, 16))
    assert (np.ptp(rows), np.ptp(columns)) == (height - 1, width - 1)


def test_masks_differ_between_clips_and_draws() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_masks(8, 1, (8, 8), MaskConfig(), rng).keep_BL for _ in range(2)]
    assert len({row.tobytes() for row in draws[0]}) > 1
    assert not np.array_equal(*draws)


# Objective


class FixedTarget(VJEPA2Encoder):
    """A target encoder that gives the same tokens whatever it is shown."""

    def forward(self, video_BRFYX: torch.Tensor, keep_BL: torch.Tensor | None = None) -> torch.Tensor:
        tokens = NUM_STEPS * GRID[0] * GRID[1]
        return torch.randn(len(video_BRFYX), tokens, SPEC.width, generator=torch.Generator().manual_seed(5))


def clip_and_mask() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two clips [B, 3, F, Y, X], the visible ids, and where the hidden patches' pixels are [B, 1, F, Y, X]."""
    keep, hidden = draw_masks(2, NUM_STEPS, GRID, MaskConfig(num_blocks=2), np.random.default_rng(0))
    patches = torch.zeros(2, NUM_STEPS * GRID[0] * GRID[1], dtype=torch.bool)
    patches.scatter_(1, torch.from_numpy(hidden), True)
    pixels = patches.reshape(2, 1, NUM_STEPS, *GRID)
    for axis, size in ((2, SPEC.tubelet_size), (3, SPEC.patch_size), (4, SPEC.patch_size)):
        pixels = pixels.repeat_interleave(size, dim=axis)
    video = torch.randn(2, 3, NUM_STEPS * 2, 16, 16, generator=torch.Generator().manual_seed(1))
    return video, torch.from_numpy(keep), pixels


def losses_of(
    video: torch.Tensor, keep: torch.Tensor, encoder: VJEPA2Encoder, target: VJEPA2Encoder, **weights: float
) -> MaskedLosses:
    torch.manual_seed(2)
    predictor = MaskedPredictor(MaskedPredictorSpec(SPEC.width, 16, 1, 2))
    head = torch.nn.Linear(SPEC.width, 3 * SPEC.tubelet_size * SPEC.patch_size**2)
    given = {"context_weight": 0.5, "variance_weight": 0.2, "pixel_weight": 0.3} | weights
    return masked_losses(encoder, target, predictor, head, video, keep, **given)


def encoders(target_kind: type[VJEPA2Encoder] = VJEPA2Encoder) -> tuple[VJEPA2Encoder, VJEPA2Encoder]:
    torch.manual_seed(0)
    return VJEPA2Encoder(SPEC), target_kind(SPEC)


def test_the_online_encoder_never_sees_hidden_patches() -> None:
    video, keep, hidden = clip_and_mask()
    encoder, target = encoders(FixedTarget)
    before = losses_of(video, keep, encoder, target)
    changed = torch.where(hidden, 7 * torch.randn_like(video), video)
    after = losses_of(changed, keep, encoder, target)
    for part in ("hidden", "context", "variance"):
        assert torch.equal(getattr(before, part), getattr(after, part)), part
    assert not torch.equal(before.pixel, after.pixel)
    # The visible ones are seen.
    seen = losses_of(torch.where(hidden, video, 7 * torch.randn_like(video)), keep, encoder, target)
    assert not torch.equal(before.hidden, seen.hidden)


def test_the_target_sees_everything_and_gets_no_gradient() -> None:
    video, keep, hidden = clip_and_mask()
    encoder, target = encoders()
    losses = losses_of(video, keep, encoder, target)
    losses.total.backward()
    assert all(p.requires_grad for p in target.parameters())
    assert all(p.grad is None for p in target.parameters())
    assert not losses.target_BSD.requires_grad
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())
    changed = losses_of(torch.where(hidden, -video, video), keep, encoder, target)
    assert not torch.equal(changed.target_BSD, losses.target_BSD)


def test_the_hidden_part_is_about_hidden_patches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    video, keep, _ = clip_and_mask()
    encoder, target = encoders(FixedTarget)
    before = losses_of(video, keep, encoder, target)
    told = target(video)
    visible = torch.zeros(told.shape[:2], dtype=torch.bool).scatter(1, keep, True)
    other = torch.where(visible[..., None], told, -told)
    monkeypatch.setattr(target, "forward", lambda *_: other)
    after = losses_of(video, keep, encoder, target)
    assert torch.equal(before.context, after.context)
    assert not torch.equal(before.hidden, after.hidden)


def test_the_total_is_the_weighted_sum_and_splits_at_the_mask() -> None:
    video, keep, _ = clip_and_mask()
    losses = losses_of(video, keep, *encoders(), context_weight=2.0, variance_weight=3.0, pixel_weight=5.0)
    expected = losses.hidden + 2 * losses.context + 3 * losses.variance + 5 * losses.pixel
    torch.testing.assert_close(losses.total, expected)
    assert losses.hidden != losses.context
    alone = losses_of(video, keep, *encoders(), context_weight=0.0, variance_weight=0.0, pixel_weight=0.0)
    assert torch.equal(alone.total, alone.hidden)
    tokens = losses.target_BSD
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:2]), atol=1e-5, rtol=0)


def test_the_pixels_of_a_token_are_all_frames_of_its_tubelet_and_keep_their_difference() -> None:
    video, _, _ = clip_and_mask()
    pixels = patch_pixels(video, SPEC.tubelet_size, SPEC.patch_size)
    assert pixels.shape == (2, NUM_STEPS * GRID[0] * GRID[1], 3 * SPEC.tubelet_size * SPEC.patch_size**2)
    torch.testing.assert_close(pixels.mean(-1), torch.zeros(pixels.shape[:2]), atol=1e-5, rtol=0)
    last = pixels.unflatten(-1, (SPEC.tubelet_size, SPEC.patch_size, SPEC.patch_size, 3))[0, -1]
    patch = SPEC.patch_size
    shown = video[0, :, -SPEC.tubelet_size :, -patch:, -patch:].permute(1, 2, 3, 0)
    torch.testing.assert_close((last[1] - last[0]) * (shown.std() + 0.1), shown[1] - shown[0], atol=1e-5, rtol=0)


def test_the_target_follows_by_its_momentum() -> None:
    encoder, target = encoders()
    old = [p.detach().clone() for p in target.parameters()]
    update_target(target, encoder, 0.75)
    for now, was, online in zip(target.parameters(), old, encoder.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * online)


def test_the_monitors_tell_a_collapse() -> None:
    healthy = adapt.monitors(torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(0)))
    assert healthy["collapse/deviation"] == pytest.approx(1.0, abs=0.1)
    assert 14 < healthy["collapse/effective_rank"] <= 16
    constant = adapt.monitors(torch.ones(8, 64, 16))
    assert constant == {"collapse/deviation": 0.0, "collapse/effective_rank": pytest.approx(1.0)}
    line = torch.arange(16.0) * torch.randn(8, 64, 1)
    assert adapt.monitors(line)["collapse/effective_rank"] == pytest.approx(1.0, abs=1e-3)


# Runs


def tensors_hash(folder: Path) -> str:
    """Hash of the tensors alone: the files also hold the run's name."""
    return hash_tensors(load_encoder(folder).state_dict())


def test_a_resumed_encoder_equals_a_straight_one(
    settings_of_adapt: dict[str, Any], stop_at: Callable[[int], None]
) -> None:
    straight = adapt.run(AdaptConfig(**settings_of_adapt | {"name": "straight"}))
    config = AdaptConfig(**settings_of_adapt | {"name": "resumed"})
    stop_at(3)
    with pytest.raises(InterruptedRunError):
        adapt.run(config)
    stop_at(0)
    resumed = adapt.run(config)
    assert json.loads((resumed.folder / "run.json").read_text())["resumed"][0]["step"] == 2
    assert tensors_hash(resumed.encoder) == tensors_hash(straight.encoder)
    assert read_metrics(resumed.folder) == read_metrics(straight.folder)


def test_memory_and_disk_give_the_same_encoder(settings_of_adapt: dict[str, Any]) -> None:
    made = [
        adapt.run(AdaptConfig(**settings_of_adapt | {"name": f"memory-{choice}", "in_memory": choice}))
        for choice in (True, False)
    ]
    assert tensors_hash(made[0].encoder) == tensors_hash(made[1].encoder)
    assert read_metrics(made[0].folder) == read_metrics(made[1].folder)


def test_an_encoder_run_leaves_finite_monitors_and_an_encoder_that_loads(settings_of_adapt: dict[str, Any]) -> None:
    result = adapt.run(AdaptConfig(**settings_of_adapt))
    encoder = load_encoder(result.encoder)
    assert encoder.spec == EncoderSpec(32, 1, 2)
    assert encoder.encode_frames(torch.randn(1, 3, 64, 64)).shape == (1, 16, 32)
    record = json.loads((result.folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["coverage"]["train videos"]["used"] == 6
    lines = read_metrics(result.folder)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    watched = [line for line in lines if "collapse/deviation" in line]
    assert [line["step"] for line in watched] == [2, 4]
    assert all(1 <= line["collapse/effective_rank"] <= 32 for line in watched)


def test_an_encoder_that_is_given_is_adapted(settings_of_adapt: dict[str, Any], tiny_weights: Path) -> None:
    given = {"init": {"weights": str(tiny_weights / "encoder")}, "name": "adapted", "ema": (0.5, 0.5)}
    result = adapt.run(AdaptConfig(**settings_of_adapt | given))
    before, after = load_encoder(tiny_weights / "encoder"), load_encoder(result.encoder)
    assert after.spec == before.spec
    moved = {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])}
    assert moved == set(before.state_dict())
    # It has gone on from the given weights, not started anew.
    torch.testing.assert_close(after.state_dict(), before.state_dict(), atol=0.02, rtol=0.1)
    # What is kept is the target: with a momentum of 1 it stays where it was, whatever the encoder learns.
    still = adapt.run(AdaptConfig(**settings_of_adapt | given | {"name": "still", "ema": (1.0, 1.0)}))
    assert tensors_hash(still.encoder) == tensors_hash(tiny_weights / "encoder")


def test_a_gaze_run_gives_scores_and_a_model_and_can_go_on(
    toy_world: Path, tmp_path: Path, stop_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, decoded = adapt_gaze.read_frames, {}

    def read_once(config: AdaptGazeConfig, takes: list[str], view: str) -> adapt_gaze.GazeFrames:
        if (*takes, view) not in decoded:
            decoded[*takes, view] = read(config, takes, view)
        return decoded[*takes, view]

    monkeypatch.setattr(adapt_gaze, "read_frames", read_once)
    config = AdaptGazeConfig(
        name="straight", folder=tmp_path, world=toy_world, resolution=56, decoder_width=16, log_every=1,
        backbone={"width": 24, "depth": 1, "num_heads": 2},
        optim={"lr": 1e-3, "num_steps": 12, "warmup_steps": 2, "batch_size": 4},
    )  # fmt: skip
    straight = adapt_gaze.run(config)
    assert set(straight.scores) == {"exo", "ego"}
    for scores in straight.scores.values():
        assert set(scores) == {"auc", "l2", "prior_auc", "prior_l2"}
        assert all(0 <= value <= math.sqrt(2) for value in scores.values())
        assert scores["prior_auc"] > 0.6  # people do not look anywhere at random
    model = load_gazelle(straight.gazelle)
    assert model.spec.position_grid == (4, 4)
    assert model(torch.randn(2, 3, 56, 56)).heatmaps.shape == (2, 64, 64)
    assert json.loads((straight.folder / "run.json").read_text())["scores"] == straight.scores

    # It dies in step 11, after the checkpoint of step 10, and goes on.
    other = config.model_copy(update={"name": "resumed"})
    stop_at(11)
    with pytest.raises(InterruptedRunError):
        adapt_gaze.run(other)
    stop_at(0)
    resumed = adapt_gaze.run(other)
    assert resumed.scores == straight.scores
    again = load_gazelle(resumed.gazelle)
    assert hash_tensors(again.state_dict()) == hash_tensors(model.state_dict())


@pytest.mark.parametrize("view", ["exo", "ego"])
def test_gaze_frames_carry_their_own_truth(toy_world: Path, view: str) -> None:
    config = AdaptGazeConfig(name="frames", world=toy_world, resolution=56)
    take = read_split(toy_world)["val"][0]
    frames = adapt_gaze.read_frames(config, [take], view)
    truth = load_truth(toy_world, take)
    gaze = (truth.gaze_exo if view == "exo" else truth.gaze_ego)[::2]  # 8 frames a second, of which 4 are read
    if view == "exo":  # 114 × 64 pixels, of which the square in the middle is read
        gaze = (gaze * (114, 64) - (25, 0)) / 64
    inside = ((gaze >= 0) & (gaze < 1)).all(axis=1)
    np.testing.assert_allclose(frames.points_S2, gaze[inside], atol=1e-9)
    assert frames.pixels_SYXR.shape == (inside.sum(), 56, 56, 3)
    assert (frames.boxes_S4 is None) == (view == "ego")
    if frames.boxes_S4 is not None:
        assert np.all(frames.boxes_S4[:, :2] < frames.boxes_S4[:, 2:])
