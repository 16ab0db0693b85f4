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


def test_adam_opens_the_gate_sixteen_times_as_fast_as_it_moves_a_weight() -> None:
    """Or it would take a thousand updates to open, while the matrices beside it are of use after a few dozen."""
    torch.manual_seed(0)
    model = GazePredictor(PredictorSpec(D, G, width=24, depth=1, num_heads=2))
    torch.nn.init.normal_(model.stack.predictor_proj.weight, std=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    z, scene = tokens()
    model.teacher_forced(z, scene)[0].z_BTND[..., 0].sum().backward()
    optimizer.step()
    assert abs(model.gate.item()) == pytest.approx(16e-3, rel=1e-2)


def test_the_loss_is_differentiated_through_all_that_is_imagined(predictor: GazePredictor) -> None:
    """Latents and scene tokens, teacher-forced and fed back: the gradient is the slope of the loss."""
    predictor.double()
    z, scene = (part.double() for part in tokens())
    known = torch.ones(B, T, dtype=torch.bool)
    known[0, 2:] = False
    valid = torch.ones(B, T, dtype=torch.bool)

    def loss() -> torch.Tensor:
        return predictor_losses(
            predictor, z, z, scene, known, valid, rollout_steps=3, rollout_weight=2.0, scene_weight=1.0
        ).total

    parameters = list(predictor.parameters())
    way = [torch.randn_like(parameter) for parameter in parameters]
    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum((gradient * step).sum() for gradient, step in zip(gradients, way, strict=True))
    either_side = []
    with torch.no_grad():
        for moved in (1e-6, -2e-6):
            for parameter, step in zip(parameters, way, strict=True):
                parameter += moved * step
            either_side.append(loss())
    torch.testing.assert_close((either_side[0] - either_side[1]) / 2e-6, slope, rtol=1e-4, atol=0)


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


@pytest.mark.parametrize("known_steps", ["all", "first", "last"])
def test_cached_rollout_equals_reading_the_past_again(predictor: GazePredictor, known_steps: str) -> None:
    """Its gaze is imagined on where that of the last step is known, and else the learned vector stands for it."""
    z, scene = tokens()
    known = torch.full((B, T), known_steps == "all")
    known[:, {"all": 0, "first": 0, "last": -1}[known_steps]] = True
    rolled = predictor.rollout(z, scene, 4, known)
    for k in range(4):
        prediction, _ = predictor.teacher_forced(z, scene, known)
        torch.testing.assert_close(prediction.z_BTND[:, -1], rolled.z_BKND[:, k], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(prediction.scene_BTNG[:, -1], rolled.scene_BKNG[:, k], atol=1e-5, rtol=1e-4)
        z = torch.cat([z, prediction.z_BTND[:, -1:]], dim=1)
        scene = torch.cat([scene, prediction.scene_BTNG[:, -1:]], dim=1)
        known = torch.cat([known, known[:, -1:]], dim=1)


def test_what_is_imagined_is_layer_normed_as_what_is_seen(predictor: GazePredictor) -> None:
    z, scene = tokens()
    prediction, _ = predictor.teacher_forced(z, scene)
    for said in (*prediction, *predictor.rollout(z, scene, 3)):
        torch.testing.assert_close(said, layer_normed(said), atol=1e-3, rtol=0)


def test_unknown_gaze_is_the_learned_vector_whatever_the_tokens_say(predictor: GazePredictor) -> None:
    z, scene = tokens()
    known = torch.ones(B, T, dtype=torch.bool)
    known[:, 3:] = False
    noisy = scene.clone()
    noisy[:, 3:] = 100.0
    one = predictor.rollout(z, scene, 3, known)
    two = predictor.rollout(z, noisy, 3, known)
    assert torch.equal(one.z_BKND, two.z_BKND)
    assert torch.equal(one.scene_BKNG, two.scene_BKNG)
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


@pytest.mark.parametrize("padded", [0, 2])
def test_rollout_loss_reads_only_what_came_before_the_imagined_steps(predictor: GazePredictor, padded: int) -> None:
    z, scene = tokens()
    valid = torch.arange(T).expand(B, -1) >= padded
    settings = {"rollout_steps": 3, "rollout_weight": 1.0, "scene_weight": 0.0}
    losses = predictor_losses(predictor, z, z, scene, valid, valid, **settings)
    past = (z[:, : T - 3], scene[:, : T - 3])
    imagined = predictor.rollout(*past, 3, valid[:, : T - 3], valid[:, : T - 3])
    expected = (imagined.z_BKND - z[:, T - 3 :]).abs().mean()
    torch.testing.assert_close(losses.rollout, expected, atol=2e-6, rtol=0)


def test_the_loss_is_the_mean_error_of_what_can_be_known(predictor: GazePredictor) -> None:
    """Step t + 1 from step t where both are in the video, and scene tokens where the gaze of both is known."""
    z, scene = tokens()
    target = tokens(seed=2)[0]  # of another encoder
    valid, known = torch.ones(B, T, dtype=torch.bool), torch.ones(B, T, dtype=torch.bool)
    valid[0, :4] = False  # the first clip is padded up to the steps that are rolled out
    known[1, 2] = known[1, 5] = False
    known &= valid
    losses = predictor_losses(
        predictor, z, target, scene, known, valid, rollout_steps=2, rollout_weight=3.0, scene_weight=0.5
    )
    forced, _ = predictor.teacher_forced(z, scene, known, valid)
    rolled = predictor.rollout(z[:, :4], scene[:, :4], 2, known[:, :4], valid[:, :4])

    def mean(errors: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([error.abs().mean() for error in errors]).mean()

    counted = [(0, 4), *((1, step) for step in range(5))]  # the step before is in the video too
    expected = mean([forced.z_BTND[clip, step] - target[clip, step + 1] for clip, step in counted])
    torch.testing.assert_close(losses.teacher_forced, expected)
    expected = mean([rolled.z_BKND[1, k] - target[1, 4 + k] for k in range(2)])
    torch.testing.assert_close(losses.rollout, expected, atol=2e-6, rtol=1e-5)
    counted = [(0, 4), (1, 0), (1, 3)]
    expected = mean([forced.scene_BTNG[clip, step] - scene[clip, step + 1] for clip, step in counted])
    expected = expected + (rolled.scene_BKNG[1, 0] - scene[1, 4]).abs().mean()
    torch.testing.assert_close(losses.scene, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(losses.total, losses.teacher_forced + 3 * losses.rollout + 0.5 * losses.scene)


def test_gaze_dropout_keeps_a_prefix_and_never_padding() -> None:
    valid = torch.ones(400, T, dtype=torch.bool)
    valid[:, 0] = False
    kept = drop_gaze(valid, 0.5, np.random.default_rng(0))
    assert not kept[:, 0].any()
    lengths = kept.sum(1)
    assert 0.2 < (lengths == 0).float().mean() < 0.45  # whole clips, and suffixes that leave only the padded step
    assert 0.35 < (lengths == T - 1).float().mean() < 0.65
    assert all(row[1 : 1 + count].all() for row, count in zip(kept, lengths, strict=True))


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_gaze_dropout_hits_the_asked_share_of_clips(probability: float) -> None:
    kept = drop_gaze(torch.ones(2000, T, dtype=torch.bool), probability, np.random.default_rng(0))
    lengths = kept.sum(1)
    assert (lengths < T).float().mean().item() == pytest.approx(probability, abs=0.03)
    assert (lengths == 0).float().mean().item() == pytest.approx(probability / 2, abs=0.04)  # half lose a suffix alone
    if probability:
        assert set(lengths.tolist()) == {*range(T), T} - ({T} if probability == 1 else set())


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
