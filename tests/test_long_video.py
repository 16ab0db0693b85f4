"""Long videos: window by window, any length and aspect, without gradients, in memory that does not grow."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hwm.errors import ConfigError
from hwm.models.long_video import encode_long
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
from hwm.models.vjepa21 import build_encoder


@pytest.fixture(scope="module")
def encoder() -> VJEPA2Encoder:
    torch.manual_seed(0)
    return VJEPA2Encoder(EncoderSpec(24, 2, 2)).eval()


@pytest.mark.parametrize("num_frames", [1, 2, 7, 8, 19])
def test_each_window_is_encoded_as_a_clip(encoder: VJEPA2Encoder, num_frames: int) -> None:
    video = torch.randn(2, 3, num_frames, 32, 48)
    found = encode_long(encoder, video, frames_per_window=8)
    assert found.shape == (2, -(-num_frames // 2), 6, 24)
    filled = torch.cat((video, video[:, :, -1:]), dim=2)[:, :, : 2 * found.shape[1]]
    for first in range(0, filled.shape[2], 8):
        expected = encoder(filled[:, :, first : first + 8]).unflatten(1, (-1, 6))
        torch.testing.assert_close(found[:, first // 2 : first // 2 + expected.shape[1]], expected)


def test_no_gradients_even_where_they_are_on(encoder: VJEPA2Encoder) -> None:
    assert any(p.requires_grad for p in encoder.parameters())
    assert not encode_long(encoder, torch.randn(1, 3, 4, 16, 16)).requires_grad


def test_version_2_1_too() -> None:
    encoder = build_encoder(EncoderSpec(24, 2, 2, version="2.1")).eval()
    video = torch.randn(1, 3, 3, 32, 16)
    # One frame left for the last window is a repeated frame of the video, not a picture.
    found = encode_long(encoder, video, frames_per_window=2)
    torch.testing.assert_close(found[:, 1], encoder(video[:, :, [2, 2]]))


def test_what_cannot_be_encoded(encoder: VJEPA2Encoder) -> None:
    with pytest.raises(ConfigError, match="no frames"):
        encode_long(encoder, torch.randn(1, 3, 0, 16, 16))
    with pytest.raises(ConfigError, match="multiple of 2"):
        encode_long(encoder, torch.randn(1, 3, 4, 16, 16), frames_per_window=3)
    with pytest.raises(ConfigError, match="multiples of 16"):
        encode_long(encoder, torch.randn(1, 3, 4, 20, 16))


FULL_SIZE = """
import resource, sys, torch
from hwm.models.vjepa2 import EncoderSpec
from hwm.models.vjepa21 import build_encoder
from hwm.models.long_video import encode_long
path, frames = sys.argv[1], int(sys.argv[2])
if frames == 0:
    # A checkpoint of the released layout and size: two encoders, predictor and optimiser beside them.
    torch.manual_seed(0)
    state = build_encoder(EncoderSpec(1024, 24, 16)).state_dict()
    named = {"module.backbone." + key: value for key, value in state.items()}
    moments = {"state": {0: {"exp_avg": torch.zeros(76_000_000)}}, "param_groups": []}
    models = {"encoder": named, "target_encoder": {k: v.clone() for k, v in named.items()}, "predictor": {}}
    beside = {"scaler": None, "epoch": 1, "loss": 0.5, "batch_size": 24, "world_size": 1, "lr": 1e-4}
    torch.save(models | {"opt": moments} | beside, path)
else:
    from hwm.weights.load import load_encoder
    encoder = load_encoder(path)
    z = encode_long(encoder, torch.randn(1, 3, frames, 256, 256), frames_per_window=16)
    assert z.shape == (1, frames // 2, 256, 1024) and bool(z.isfinite().all())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_a_full_size_vit_large_checkpoint_encodes_in_four_gib(tmp_path: Path) -> None:
    """A ViT-L file in the released layout, made here, read strictly and run on a 16-frame clip of 256 pixels."""
    path = tmp_path / "vitl.pt"
    for frames in (0, 16):
        run = [sys.executable, "-c", FULL_SIZE, str(path), str(frames)]
        done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=280)
    assert path.stat().st_size > 2.5e9
    assert float(done.stdout) <= 4.0, f"peak {done.stdout.strip()} GiB"
