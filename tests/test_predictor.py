"""Promises of the gaze-conditioned predictor: causal, alive, cached roll-out as recomputed, gate shut at first."""

import numpy as np
import pytest
import torch

from hwm.losses import layer_normed
from hwm.models.objectives import drop_gaze, predictor_losses
from hwm.models.predictor import GazePredictor, PredictorSpec

B, T, N, D, G = 2, 6, 9, 16, 8


@pytest.fixture
def predictor() -> GazePredictor:
    """A predictor whose heads and gate are open, as after training."""
    torch.manual_seed(0)
    model = GazePredictor(PredictorSpec(D, G, width=24, depth=2, num_heads=2)).eval()
    with torch.no_grad():
        model.gate_parameter.fill_(0.05)
        for head in (model.stack.predictor_proj, model.scene_out):
            head.weight.normal_(std=0.2)
        for block in model.stack.predictor_blocks:  # new blocks hardly attend: an error in what is attended would hide
            block.attn.qkv.weight.mul_(10)
            block.attn.proj.weight.mul_(10)
    return model


def tokens(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random layer-normed latents and scene tokens."""
    rng = torch.Generator().manual_seed(seed)
    return tuple(layer_normed(torch.randn(B, T, N, width, generator=rng)) for width in (D, G))  # type: ignore[return-value]


@pytest.mark.parametrize("what", ["latents", "gaze"])
@pytest.mark.parametrize("step", range(T))
def test_no_prediction_depends_on_a_later_step(predictor: GazePredictor, what: str, step: int) -> None:
    z, scene = tokens()
    before, _ = predictor.teacher_forced(z, scene)
    changed = (z if what == "latents" else scene).clone()
    changed[:, step:] = torch.randn_like(changed[:, step:]) * 5
    after, _ = predictor.teacher_forced(*((changed, scene) if what == "latents" else (z, changed)))
    assert torch.equal(before.z_BTND[:, :step], after.z_BTND[:, :step])
    assert torch.equal(before.scene_BTNG[:, :step], after.scene_BTNG[:, :step])
    assert not torch.equal(before.z_BTND[:, step:], after.z_BTND[:, step:])


def test_gaze_changes_the_imagined_future_and_has_a_gradient(predictor: GazePredictor) -> None:
    z, scene = tokens()
    scene.requires_grad_(True)
    with_gaze = predictor.rollout(z, scene, 3).z_BKND
    other = predictor.rollout(z, scene.detach().flip(0), 3).z_BKND
    assert (with_gaze - other).abs().max() > 1e-3
    with_gaze.square()[..., 0].sum().backward()
    assert scene.grad is not None
    assert scene.grad.abs().sum() > 0
    assert predictor.scene_proj.weight.grad.abs().sum() > 0
    assert predictor.gate_parameter.grad.abs() > 0


def test_a_new_model_copies_the_last_step_and_does_not_see_gaze() -> None:
    torch.manual_seed(0)
    model = GazePredictor(PredictorSpec(D, G, width=24, depth=2, num_heads=2))
    z, scene = tokens()
    prediction, _ = model.teacher_forced(z, scene)
    assert model.gate.item() == 0
    torch.testing.assert_close(prediction.z_BTND, z, atol=1e-4, rtol=0)
    assert torch.equal(prediction.z_BTND, model.teacher_forced(z, None)[0].z_BTND)


def test_the_gate_opens_and_the_scene_projection_learns_in_two_steps() -> None:
    torch.manual_seed(0)
    model = GazePredictor(PredictorSpec(D, G, width=24, depth=1, num_heads=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.scene_proj.weight.clone()
    z, scene = tokens()
    valid = torch.ones(B, T, dtype=torch.bool)
    for _ in range(3):
        losses = predictor_losses(
            model, z, z, scene, valid, valid, rollout_steps=2, rollout_weight=1.0, scene_weight=0.1
        )
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert model.gate.item() != 0
    assert not torch.equal(before, model.scene_proj.weight)


def test_a_few_updates_beat_the_copy_where_things_keep_moving() -> None:
    """The change since the last step is given, so drifts are learnt at once, not after attention has found the past."""
    torch.manual_seed(0)
    model = GazePredictor(PredictorSpec(D, None, width=24, depth=1, num_heads=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    start, drift = (torch.randn(32, 1, N, D) for _ in range(2))
    z = layer_normed(start + 0.2 * torch.arange(T)[None, :, None, None] * drift)
    valid = torch.ones(16, T, dtype=torch.bool)
    for _ in range(40):
        losses = predictor_losses(
            model, z[:16], z[:16], None, valid, valid, rollout_steps=2, rollout_weight=1.0, scene_weight=0.0
        )
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    other = z[16:]
    error = (model.teacher_forced(other, None)[0].z_BTND[:, 1:-1] - other[:, 2:]).abs().mean()
    assert error < 0.8 * (other[:, 1:-1] - other[:, 2:]).abs().mean()


def test_models_with_and_without_gaze_start_from_the_same_weights() -> None:
    states = []
    for width in (G, None):
        torch.manual_seed(3)
        states.append(GazePredictor(PredictorSpec(D, width, width=24, depth=2, num_heads=2)).state_dict())
    with_gaze, without = states
    assert set(without) < set(with_gaze)
    assert all(torch.equal(tensor, with_gaze[name]) for name, tensor in without.items())


def test_cached_rollout_equals_reading_the_past_again(predictor: GazePredictor) -> None:
    z, scene = tokens()
    rolled = predictor.rollout(z, scene, 4)
    for k in range(4):
        prediction, _ = predictor.teacher_forced(z, scene)
        torch.testing.assert_close(prediction.z_BTND[:, -1], rolled.z_BKND[:, k], atol=1e-5, rtol=1e-4)
        z = torch.cat([z, prediction.z_BTND[:, -1:]], dim=1)
        scene = torch.cat([scene, prediction.scene_BTNG[:, -1:]], dim=1)


def test_unknown_gaze_is_the_learned_vector_whatever_the_tokens_say(predictor: GazePredictor) -> None:
    z, scene = tokens()
    known = torch.ones(B, T, dtype=torch.bool)
    known[:, 3:] = False
    noisy = scene.clone()
    noisy[:, 3:] = 100.0
    one = predictor.rollout(z, scene, 3, known)
    two = predictor.rollout(z, noisy, 3, known)
    assert torch.equal(one.z_BKND, two.z_BKND)
    nowhere = predictor.rollout(z, scene, 3, torch.zeros_like(known)).z_BKND
    torch.testing.assert_close(nowhere, predictor.rollout(z, None, 3).z_BKND, atol=1e-6, rtol=1e-5)


def test_padding_before_the_start_changes_nothing(predictor: GazePredictor) -> None:
    z, scene = tokens()
    valid = torch.ones(B, T, dtype=torch.bool)
    valid[:, :2] = False
    noisy = z.clone()
    noisy[:, :2] = 50.0
    assert torch.equal(
        predictor.rollout(z, scene, 2, valid, valid).z_BKND, predictor.rollout(noisy, scene, 2, valid, valid).z_BKND
    )


def test_rollout_loss_reads_only_what_came_before_the_imagined_steps(predictor: GazePredictor) -> None:
    z, scene = tokens()
    valid = torch.ones(B, T, dtype=torch.bool)
    settings = {"rollout_steps": 3, "rollout_weight": 1.0, "scene_weight": 0.0}
    losses = predictor_losses(predictor, z, z, scene, valid, valid, **settings)
    imagined = predictor.rollout(z[:, : T - 3], scene[:, : T - 3], 3, valid[:, : T - 3])
    expected = (imagined.z_BKND - z[:, T - 3 :]).abs().mean()
    torch.testing.assert_close(losses.rollout, expected, atol=2e-6, rtol=0)


def test_gaze_dropout_keeps_a_prefix_and_never_padding() -> None:
    valid = torch.ones(400, T, dtype=torch.bool)
    valid[:, 0] = False
    kept = drop_gaze(valid, 0.5, np.random.default_rng(0))
    assert not kept[:, 0].any()
    lengths = kept.sum(1)
    assert 0.2 < (lengths == 0).float().mean() < 0.45  # whole clips, and suffixes that leave only the padded step
    assert 0.35 < (lengths == T - 1).float().mean() < 0.65
    assert all(row[1 : 1 + count].all() for row, count in zip(kept, lengths, strict=True))


@pytest.mark.parametrize("scene_width", [None, 6])
def test_under_autocast_the_stream_is_in_half_precision_with_gaze_and_without(scene_width: int | None) -> None:
    """Arms that are compared must be computed alike."""
    torch.manual_seed(0)
    predictor = GazePredictor(PredictorSpec(8, scene_width, 12, 2, 2))
    seen: list[torch.dtype] = []
    for block in predictor.stack.predictor_blocks:
        block.norm1.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    z, scene = torch.randn(2, 3, 4, 8), None if scene_width is None else torch.randn(2, 3, 4, scene_width)
    known = torch.tensor([[True, False, True], [False] * 3])
    with torch.autocast("cpu", torch.bfloat16):
        predictor.teacher_forced(z, scene, known if scene_width else None)
    assert seen == [torch.bfloat16] * 2
