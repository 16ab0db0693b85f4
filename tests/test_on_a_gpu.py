"""On CUDA: what the CPU says, what was promised of causality, and the same compiled, with attention by blocks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hwm.config import PretrainConfig, TokenConfig
from hwm.data.clips import ClipPlan, find_videos
from hwm.engine.assemble import new_world
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.gazelle import GazeLLE, GazelleSpec
from hwm.models.layers import products_in_bfloat16
from hwm.models.predictor import GazePredictor, PredictorSpec
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
from hwm.tokens.source import open_source

pytestmark = pytest.mark.gpu

COMPILED = """
import json
import torch
from hwm.engine.compiling import compile_blocks
from hwm.models.predictor import GazePredictor, PredictorSpec
from hwm.models.layers import products_in_bfloat16
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder

said = []

def far(a, b):
    return float((a - b).float().abs().max() / b.float().abs().max())

def predictor(compiled):
    torch.manual_seed(0)
    model = GazePredictor(PredictorSpec(96, 32, 128, 2, 4)).cuda()
    with torch.no_grad():
        model.gate_parameter.fill_(0.1)
        model.stack.predictor_proj.weight.normal_(std=0.05)
    if compiled:
        compile_blocks(model, said.append)
    return model

def train(model, patches, valid):
    torch.manual_seed(1)
    z, scene = torch.randn(3, 4, patches, 96, device="cuda"), torch.randn(3, 4, patches, 32, device="cuda")
    z.requires_grad_()
    known = torch.tensor([[True] * 4, [True, False, True, True], [False] * 4], device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        prediction, past = model.teacher_forced(z, scene, known, valid)
        imagined = model.continue_from(prediction.step(2), past.first(3), 3, known[:, 2:3])
    weight = torch.randn(z.shape, generator=torch.Generator("cuda").manual_seed(2), device="cuda")
    seen = prediction.z_BTND if valid is None else prediction.z_BTND[valid]
    ((seen * (weight if valid is None else weight[valid])).mean() + imagined.z_BKND.square().mean()).backward()
    qkv = model.stack.predictor_blocks[0].attn.qkv.weight.grad.clone()
    model.zero_grad()
    return seen.detach(), imagined.z_BKND.detach(), z.grad, qkv

padded = torch.tensor([[True] * 4, [False, True, True, True], [False, False, True, True]], device="cuda")
plain, compiled = predictor(False), predictor(True)
differences = {}
for patches in (64, 100, 256):
    for name, valid in (("whole", None), ("padded", padded)):
        pairs = zip(train(compiled, patches, valid), train(plain, patches, valid))
        differences[f"{patches} {name}"] = max(far(a, b) for a, b in pairs)

late = {}
for patches in (64, 256):
    z = torch.randn(2, 4, patches, 96, device="cuda")
    changed = z.clone()
    changed[:, 2:] += 1.0
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        a, b = (compiled.teacher_forced(x, None).__getitem__(0).z_BTND for x in (z, changed))
    late[str(patches)] = [torch.equal(a[:, :2], b[:, :2]), torch.equal(a[:, 2:], b[:, 2:])]

torch.manual_seed(0)
encoder = VJEPA2Encoder(EncoderSpec(128, 3, 2)).requires_grad_(False).eval().cuda()
video = torch.randn(2, 3, 4, 64, 64, device="cuda")
with torch.inference_mode():
    exact = encoder(video)
    products_in_bfloat16(encoder)
    compile_blocks(encoder, said.append)
    encoded = far(encoder(video), exact)
print(json.dumps({"differences": differences, "late": late, "encoder": encoded, "said": said}))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """In a process of its own: what the tests put around every function cannot be compiled."""
    run = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False, timeout=280)
    assert not run.returncode, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.float().cpu(), theirs.float().cpu()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_compiled_training_is_training_as_it_is(compiled: dict[str, Any]) -> None:
    """Predictions, roll-outs and gradients; with attention by blocks of 128 and 64, and of 100 patches step by step."""
    assert len(compiled["differences"]) == 6
    assert max(compiled["differences"].values()) < 4e-2, compiled["differences"]
    assert compiled["encoder"] < 2e-2
    assert not compiled["said"]


def test_attention_by_blocks_sees_nothing_later_bit_for_bit(compiled: dict[str, Any]) -> None:
    assert compiled["late"] == {"64": [True, False], "256": [True, False]}


def test_frozen_models_say_what_they_say_on_a_cpu() -> None:
    torch.manual_seed(0)
    encoder = VJEPA2Encoder(EncoderSpec(64, 3, 2)).requires_grad_(False).eval()
    gazelle = GazeLLE(
        DINOv2(DINOv2Spec(48, 2, 2, position_side=4)), GazelleSpec(32, depth=1, num_heads=2, position_grid=(4, 4))
    ).requires_grad_(False).eval()  # fmt: skip
    video, images = torch.randn(2, 3, 4, 64, 64), torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        z, heat = encoder(video), gazelle(images).heatmaps
        assert far(encoder.cuda()(video.cuda()), z) < 1e-4
        assert far(gazelle.cuda()(images.cuda()).heatmaps, heat) < 1e-4
        products_in_bfloat16(encoder)
        assert 1e-5 < far(encoder(video.cuda()), z) < 2e-2


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_predictor_is_causal_bit_for_bit(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    predictor = GazePredictor(PredictorSpec(48, 16, 32, 2, 2)).cuda()
    with torch.no_grad():
        predictor.gate_parameter.fill_(0.1)
        predictor.stack.predictor_proj.weight.normal_()
    z, scene = torch.randn(2, 5, 16, 48, device="cuda"), torch.randn(2, 5, 16, 16, device="cuda")
    late_z, late_scene = z.clone(), scene.clone()
    late_z[:, 3:] += 1
    late_scene[:, 3:] += 1
    with torch.no_grad(), torch.autocast("cuda", precision, enabled=precision != torch.float32):
        said = [predictor.teacher_forced(*given)[0].z_BTND for given in ((z, scene), (late_z, late_scene))]
    assert torch.equal(said[0][:, :3], said[1][:, :3])
    assert not torch.equal(said[0][:, 3:], said[1][:, 3:])


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_cached_tokens_are_those_of_the_cpu(
    dtype: str, stage1_settings: dict[str, Any], tmp_path: Path, toy_world: Path
) -> None:
    """Read by a thread and unpacked on the device; clips that begin before the video among them."""
    config = PretrainConfig(**stage1_settings)
    assembled = new_world(config)
    videos = find_videos([toy_world], "**/cam01.mp4", 4.0).videos[:3]
    plan = ClipPlan(videos, 4.0, 5, None, 0)
    requests = [plan.request(0, index)._replace(first_step=first) for index, first in enumerate((-2, 0, 3))]
    tokens = TokenConfig(source="cached", folder=tmp_path / "tokens", dtype=dtype)  # pyright: ignore[reportArgumentType]
    found = []
    for kind in ("cpu", "cuda"):
        device = torch.device(kind)
        observer = assembled.world.observer.to(device)
        source = open_source(tokens, observer, assembled.world.grid, assembled.weights, device, 0)
        source.prepare(videos, lambda done: None)
        found.append(list(source.batches([requests[:2], requests[2:]])))
    for cpu, cuda in zip(*found, strict=True):
        for name, mine in cpu._asdict().items():
            assert torch.equal(mine, getattr(cuda, name).cpu()), name
