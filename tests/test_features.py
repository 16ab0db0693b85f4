"""Features of stage 2 by hand: each sample's own, at its own place, and nothing that is padding or unknown."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwm.config import PretrainConfig
from hwm.tokens.features import FeatureRequest, compute_features
from kept_tokens import KeptSource, clip_of, open_world

NUM_PATCHES, MAX_FUTURE = 16, 4
NUM_FUTURE = (3, 1, 2, 3, 1, 4)
FIRST_STEPS = (-2, 0, 3, 5, -1, 0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_each_row_holds_its_own_sample(stage1_settings: dict[str, Any], tmp_path: Path, batch_size: int) -> None:
    world = open_world(PretrainConfig(**stage1_settings))
    source = KeptSource(world, NUM_PATCHES)
    requests = [
        FeatureRequest(clip_of(f"v{row}", first_step, 4), num_future, 1.0)
        for row, (first_step, num_future) in enumerate(zip(FIRST_STEPS, NUM_FUTURE, strict=True))
    ]
    features = compute_features(
        world, source, requests, "context+future", True, MAX_FUTURE, tmp_path / "f.npy", batch_size, lambda done: None
    )
    for row, (clip, num_future, _) in enumerate(requests):
        z, scene, gaze, valid, scene_known, gaze_known = source.of(clip)
        assert scene is not None
        assert gaze is not None
        with torch.no_grad():
            imagined = world.predictor.rollout(z, scene, num_future, scene_known, valid).z_BKND
        missing = MAX_FUTURE - num_future
        latents = torch.cat([z, torch.zeros(1, missing, *z.shape[2:]), imagined], dim=1)
        looked = torch.cat([gaze, torch.zeros(1, missing, NUM_PATCHES), gaze[:, -1:].expand(-1, num_future, -1)], dim=1)
        expected = torch.cat([latents, looked[:, :, None] @ latents], dim=2)[0].numpy()
        np.testing.assert_allclose(features.tokens_STND[row], expected, atol=5e-3)
        imagined_steps = np.arange(MAX_FUTURE) >= missing
        assert features.valid_ST[row].tolist() == [*valid[0].tolist(), *imagined_steps.tolist()]
        known = imagined_steps & bool(gaze_known[0, -1])
        assert features.gaze_known_ST[row].tolist() == [*gaze_known[0].tolist(), *known.tolist()]
    assert 0 < features.gaze_known_ST.sum() < features.valid_ST.sum()


def test_what_lies_before_the_video_is_not_imagined_from(stage1_settings: dict[str, Any]) -> None:
    world = open_world(PretrainConfig(**stage1_settings))
    z, scene, _, valid, known, _ = KeptSource(world, NUM_PATCHES).of(clip_of("v", -2, 5))
    noise = torch.where(valid[:, :, None, None], z, 9.0)
    assert torch.equal(*(world.imagine(each, scene, 2, known, valid).z_BKND for each in (z, noise)))
