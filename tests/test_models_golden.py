"""Parity with upstream modules on tiny random weights; see `tests/golden`. Architecture and key names in one go."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hwm.models.causal_stack import CausalStack, CausalStackSpec
from hwm.models.masked_predictor import MaskedPredictor, MaskedPredictorSpec, anticipate
from hwm.models.probe import AttentiveProbe
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-5


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Largest difference at most 1e-5 of the expected output's largest value."""
    assert found.shape == expected.shape
    worst = (found - expected).abs().max() / expected.abs().max()
    assert worst <= TOLERANCE, f"relative difference {worst:.2e}"


@pytest.fixture(scope="module")
def sizes() -> dict[str, float]:
    return json.loads((GOLDEN / "vjepa2.json").read_text())["config"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "vjepa2.safetensors")


def released(name: str) -> dict[str, Tensor]:
    state = torch.load(GOLDEN / "vjepa2_checkpoint.pt", weights_only=True)[name]
    return {key.removeprefix("module.backbone."): value for key, value in state.items()}


@pytest.fixture(scope="module")
def encoder(sizes: dict[str, float]) -> VJEPA2Encoder:
    module = VJEPA2Encoder(EncoderSpec(int(sizes["dim"]), int(sizes["depth"]), int(sizes["heads"]), sizes["mlp"]))
    module.load_state_dict(released("encoder"), strict=True)
    return module.eval().requires_grad_(False)


def test_encoder_equals_upstream(encoder: VJEPA2Encoder, golden: dict[str, Tensor]) -> None:
    assert_close(encoder(golden["encoder.video"]), golden["encoder.tokens"])
    assert_close(encoder(golden["encoder.video_nonsquare"]), golden["encoder.tokens_nonsquare"])


def test_encoder_with_dropped_tokens_equals_upstream(encoder: VJEPA2Encoder, golden: dict[str, Tensor]) -> None:
    assert_close(encoder(golden["encoder.video"], golden["encoder.keep"]), golden["encoder.tokens_kept"])


def test_single_frame_equals_upstream_and_the_doubled_frame(encoder: VJEPA2Encoder, golden: dict[str, Tensor]) -> None:
    frames = golden["encoder.video"][:, :, 0]
    assert_close(encoder.encode_frames(frames), golden["encoder.frame_tokens"])
    assert_close(encoder.encode_frames(frames), encoder(frames.unsqueeze(2).repeat(1, 1, 2, 1, 1)))


def causal_stack(sizes: dict[str, float]) -> tuple[CausalStack, dict[str, Tensor]]:
    weights = load_file(GOLDEN / "causal_predictor_weights.safetensors")
    scene = {key: weights.pop(f"scene_proj.{key}") for key in ("weight", "bias")}
    spec = CausalStackSpec(int(sizes["dim"]), int(sizes["pdim"]), int(sizes["pdepth"]), int(sizes["pheads"]))
    stack = CausalStack(spec)
    stack.load_state_dict(weights, strict=True)
    return stack.eval().requires_grad_(False), scene


def test_causal_stack_equals_upstream(sizes: dict[str, float], golden: dict[str, Tensor]) -> None:
    stack, scene = causal_stack(sizes)
    num_steps = int(sizes["steps"])
    tokens = golden["causal.tokens_in"].unflatten(1, (num_steps, -1))
    condition = torch.nn.functional.linear(golden["causal.scene_in"], **scene).unflatten(1, (num_steps, -1))
    assert_close(stack(tokens, condition).flatten(1, 2), golden["causal.out"])
    assert_close(stack(tokens).flatten(1, 2), golden["causal.out_without_scene"])


@pytest.fixture(scope="module")
def predictor(sizes: dict[str, float]) -> MaskedPredictor:
    spec = MaskedPredictorSpec(int(sizes["dim"]), int(sizes["pdim"]), int(sizes["pdepth"]), int(sizes["pheads"]))
    module = MaskedPredictor(spec)
    module.load_state_dict(released("predictor"), strict=True)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("mask_index", [0, 1, 7])
def test_masked_predictor_equals_upstream(
    predictor: MaskedPredictor, golden: dict[str, Tensor], mask_index: int
) -> None:
    context = golden["encoder.tokens"]
    positions = torch.arange(context.shape[1]).expand(context.shape[0], -1)
    found = predictor(context, positions, golden["predictor.target_positions"], (4, 4), mask_index)
    assert_close(found, golden[f"predictor.tokens_mask{mask_index}"])


def test_in_painting_equals_upstream_in_any_order(predictor: MaskedPredictor, golden: dict[str, Tensor]) -> None:
    keep, rest = golden["encoder.keep"], golden["predictor.rest"]
    context, expected = golden["encoder.tokens_kept"], golden["predictor.tokens_inpaint"]
    mask_index = min(range(10), key=lambda i: (predictor(context, keep, rest, (4, 4), i) - expected).abs().max())
    assert mask_index == 1  # upstream's default
    assert_close(predictor(context, keep, rest, (4, 4), 1), expected)
    found = predictor(context.flip(1), keep.flip(1), rest.flip(1), (4, 4), 1)
    assert_close(found.flip(1), expected)


@pytest.mark.parametrize(("num_rounds", "num_frames"), [(1, 2), (1, 4), (2, 2)])
def test_anticipation_tokens_equal_upstream(
    predictor: MaskedPredictor, golden: dict[str, Tensor], num_rounds: int, num_frames: int
) -> None:
    seconds = golden["wrapper.anticipation_seconds"].tolist()
    found = anticipate(
        predictor, golden["encoder.tokens"], seconds, 4.0, (4, 4), num_output_frames=num_frames, num_rounds=num_rounds
    )
    assert_close(found, golden[f"wrapper.tokens_steps{num_rounds}_out{num_frames}"])


@pytest.mark.parametrize(
    ("file", "num_queries", "depth", "tasks"),
    [("probe", 1, 3, {"action": 11}), ("probe3", 3, 1, {"verb": 5, "noun": 7, "action": 11})],
)
def test_probe_equals_upstream(
    golden: dict[str, Tensor], sizes: dict[str, float], file: str, num_queries: int, depth: int, tasks: dict[str, int]
) -> None:
    probe = AttentiveProbe(int(sizes["dim"]), int(sizes["heads"]), depth, num_queries, tasks)
    probe.load_state_dict(load_file(GOLDEN / f"{file}_weights.safetensors"), strict=True)
    logits = probe.eval()(golden["encoder.tokens"])
    assert list(logits) == list(tasks)
    for task, found in logits.items():
        assert_close(found, golden[f"{file}.{task}" if file == "probe3" else "probe.logits"])
