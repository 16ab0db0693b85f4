"""The gaze point: latents pooled where people look, as one more token a step."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hwm.config import AnticipateConfig, PretrainConfig, ProbeConfig
from hwm.engine.assemble import load_stage1, probe_seer
from hwm.errors import ConfigError
from hwm.models.observer import gaze_weights
from hwm.models.step_probe import Pooler, StepProbe, StepProbeSpec
from hwm.pipelines import anticipate, pretrain
from hwm.tokens.features import compute_features, tokens_read
from hwm.tokens.source import LiveSource


def test_weights_lie_where_the_map_is_hot_and_sum_to_one() -> None:
    heat = torch.full((2, 64, 64), 0.01)
    heat[0, 8:16, 40:48] = 0.9
    weights = gaze_weights(heat, (8, 8))
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert weights[0].argmax() == 1 * 8 + 5
    assert weights[0].max() > 0.99
    torch.testing.assert_close(weights[1], torch.full((64,), 1 / 64))
    assert not gaze_weights(torch.zeros(1, 64, 64), (8, 8)).any(), "a map of nothing is no nan"


def test_the_token_is_the_latent_of_the_attended_patch() -> None:
    z = torch.randn(2, 3, 4, 5)
    gaze = torch.zeros(2, 3, 4)
    gaze[..., 2] = 1.0
    pooled = tokens_read(z, gaze)
    assert pooled.shape == (2, 3, 5, 5)
    assert torch.equal(pooled[:, :, :4], z)
    assert torch.equal(pooled[:, :, 4], z[:, :, 2])
    assert torch.equal(tokens_read(z, gaze[:, -1:]), pooled)  # imagined steps: the last observed gaze
    assert tokens_read(z, None) is z


def test_a_new_probe_tokens_read_starts_as_the_attentive_probe_and_then_reads_it() -> None:
    torch.manual_seed(0)
    probe = StepProbe(StepProbeSpec(8, 3, 5, {"step": (1, 4)}, num_heads=2, gaze_point=True))
    features, valid = torch.randn(6, 3, 5, 8), torch.ones(6, 3, dtype=torch.bool)
    probe(features, valid)["step"].square().sum().backward()
    assert probe.gaze_head.weight.grad is not None
    assert probe.gaze_head.weight.grad.abs().sum() > 0
    assert not probe.gaze_head.weight.any()
    with torch.no_grad():
        probe.gaze_head.weight.normal_()
        valid[:, 0] = False
        before = probe(features, valid)["step"]
        features[:, 0] = 100.0
        torch.testing.assert_close(probe(features, valid)["step"], before)  # a padded step is not read
        features[:, 1, -1] = torch.randn(6, 8)
        assert not torch.allclose(probe(features, valid)["step"], before)


def test_without_the_pooler_only_gaze_tells_which_patch_counts() -> None:
    torch.manual_seed(0)
    probe = StepProbe(StepProbeSpec(8, 3, 5, {"verb": (2, 4), "noun": (1, 3)}, 16, gaze_point=True, pooler="mean"))
    features, valid = torch.randn(6, 3, 5, 8), torch.ones(6, 3, dtype=torch.bool)
    with torch.no_grad():
        probe.probe.head.weight.normal_()
        said = probe(features, valid)
        assert {task: tuple(logits.shape) for task, logits in said.items()} == {"verb": (6, 2, 4), "noun": (6, 1, 3)}
        patches, point = features[:, :, :4], features[:, :, 4:]
        reordered = torch.cat([patches[:, :, [2, 0, 3, 1]], point], dim=2)
        torch.testing.assert_close(probe(reordered, valid)["verb"], said["verb"])
        elsewhere = torch.cat([patches, torch.randn_like(point)], dim=2)
        torch.testing.assert_close(probe(elsewhere, valid)["verb"], said["verb"])
        probe.gaze_head.weight.normal_()
        looking = probe(features, valid)["verb"]
        assert not torch.allclose(looking, said["verb"])
        unknown = torch.zeros(6, 3, dtype=torch.bool)
        torch.testing.assert_close(probe(features, valid, unknown)["verb"], said["verb"])
        valid[:, 0] = False
        before = probe(features, valid)["noun"]
        features[:, 0] = 100.0
        torch.testing.assert_close(probe(features, valid)["noun"], before)


def test_a_probe_knows_the_step_and_the_patch_of_each_token() -> None:
    """The vector of a step is added to all of its tokens, that of a patch to this patch of all steps."""
    torch.manual_seed(0)
    spec = StepProbeSpec(8, 3, 4, {"step": (1, 5)}, num_heads=2)
    probe, bare = StepProbe(spec), StepProbe(replace(spec, positions=False))
    bare.load_state_dict(probe.state_dict(), strict=False)
    features, valid = torch.randn(6, 3, 4, 8), torch.ones(6, 3, dtype=torch.bool)
    with torch.no_grad():
        placed = features + probe.step_embed + probe.token_embed
        torch.testing.assert_close(probe(features, valid)["step"], bare(placed, valid)["step"])
        said = probe(features, valid)["step"]
        assert (probe(features.flip(1), valid)["step"] - said).abs().max() > 1e-4
        assert (probe(features.flip(2), valid)["step"] - said).abs().max() > 1e-4
        torch.testing.assert_close(bare(features.flip(1, 2), valid)["step"], bare(features, valid)["step"])


@pytest.mark.parametrize("pooler", ["mean", "mlp"])
def test_probes_without_attention_read_layer_normed_means(pooler: Pooler) -> None:
    """The encoder's own scale, which differs between latents seen and imagined by V-JEPA 2's pair, does not count."""
    torch.manual_seed(0)
    probe = StepProbe(StepProbeSpec(8, 3, 5, {"step": (1, 4)}, 16, gaze_point=True, pooler=pooler)).eval()
    for parameter in probe.parameters():
        torch.nn.init.normal_(parameter)
    features, valid = torch.randn(6, 3, 5, 8), torch.ones(6, 3, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(
            probe(features * 3 + 1, valid)["step"], probe(features, valid)["step"], atol=1e-2, rtol=1e-3
        )


def test_mlp_probe_reads_what_it_is_told_to_and_nothing_else() -> None:
    torch.manual_seed(0)
    probe = StepProbe(
        StepProbeSpec(8, 3, 5, {"verb": (2, 4), "noun": (1, 3)}, 16, gaze_point=True, pooler="mlp")
    ).eval()
    features, valid = torch.randn(6, 3, 5, 8), torch.ones(6, 3, dtype=torch.bool)
    known = valid.clone()
    known[:, 1] = False
    with torch.no_grad():
        said = probe(features, valid, known)
        assert {task: tuple(logits.shape) for task, logits in said.items()} == {"verb": (6, 2, 4), "noun": (6, 1, 3)}
        for step, token, is_read in [(0, 4, True), (1, 4, False), (1, 2, True), (2, 4, True)]:
            other = features.clone()
            other[:, step, token] = torch.randn(6, 8)
            assert torch.allclose(probe(other, valid, known)["verb"], said["verb"]) != is_read, (step, token)
        valid[:, 0] = False
        before = probe(features, valid)["noun"]
        features[:, 0] = 100.0
        torch.testing.assert_close(probe(features, valid)["noun"], before)  # a padded step is not read


def test_mlp_probe_learns_what_no_sum_over_steps_can_say() -> None:
    # The answer is whether two steps show the same thing.
    rng = torch.Generator().manual_seed(0)
    things = torch.randn(2, 8, generator=rng)
    seen = torch.randint(0, 2, (256, 2), generator=rng)
    features, valid = things[seen][:, :, None].expand(-1, -1, 3, -1), torch.ones(256, 2, dtype=torch.bool)
    same = (seen[:, 0] == seen[:, 1]).long()
    right = {}
    for pooler in ("mean", "mlp"):
        torch.manual_seed(0)
        probe = StepProbe(StepProbeSpec(8, 2, 3, {"step": (1, 2)}, 16, pooler=pooler))
        optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2)
        for _ in range(100):
            loss = torch.nn.functional.cross_entropy(probe(features, valid)["step"][:, 0], same)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        probe.eval()
        right[pooler] = (probe(features, valid)["step"][:, 0].argmax(1) == same).float().mean().item()
    assert right["mlp"] == 1.0
    assert right["mean"] < 0.8


def test_settings_of_the_attentive_pooler_are_refused_without_it() -> None:
    assert ProbeConfig(pooler="mean").pooler == "mean"
    for name, value in {"positions": False, "num_queries": 2, "depth": 4, "num_heads": 4}.items():
        with pytest.raises(ValueError, match=f"{name} is a setting of pooler=attentive"):
            ProbeConfig.model_validate({"pooler": "mean", name: value})


def test_stage_2_tokens_read_runs_and_needs_a_model_with_gaze(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any]
) -> None:
    stage1_settings["optim"]["num_steps"] = 1
    seeing = pretrain.run(PretrainConfig(**stage1_settings)).folder
    blind = pretrain.run(PretrainConfig(**stage1_settings | {"name": "blind", "gaze": "none"})).folder
    stage2_settings["probe"]["gaze_point"] = "estimated"
    result = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=seeing))
    assert Path(result.folder / "probe.safetensors").is_file()
    assert json.loads((result.folder / "run.json").read_text())["status"] == "finished"
    with pytest.raises(ConfigError, match="needs a Gazelle"):
        anticipate.run(AnticipateConfig(**stage2_settings | {"name": "other"}, checkpoint=blind))
    with pytest.raises(ConfigError, match="has a Gazelle of its own"):
        anticipate.run(AnticipateConfig(**stage2_settings, gazelle=stage1_settings["gazelle"], checkpoint=seeing))


def test_gaze_for_the_probe_alone_leaves_the_world_model_blind(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], tmp_path: Path
) -> None:
    """Same imagined future as without gaze, plus the token pooled where the Gazelle of the probe says."""
    stage1_settings["optim"]["num_steps"] = 3
    blind = pretrain.run(PretrainConfig(**stage1_settings | {"gaze": "none"})).folder
    stage2_settings["probe"]["gaze_point"] = "estimated"
    config = AnticipateConfig(**stage2_settings, gazelle=stage1_settings["gazelle"], checkpoint=blind)
    result = anticipate.run(config)
    record = json.loads((result.folder / "run.json").read_text())
    assert set(record["weights"]) == {"encoder", "gazelle"}
    stage1 = load_stage1(blind)
    assert not stage1.world.has_gaze
    requests = [anticipate.feature_request(sample, config.protocol.id) for sample in result.samples[:3]]
    read = []
    for gaze_point, patches in ((True, "all"), (False, "all"), (True, "mean"), (False, "mean")):
        seer = probe_seer(stage1, "estimated" if gaze_point else "none", config.gazelle)
        source = LiveSource(seer.observer, seer.grid, torch.device("cpu"), num_workers=0)
        path = tmp_path / f"{gaze_point}-{patches}.npy"
        features = compute_features(
            stage1.world, source, requests, "context+future", gaze_point, 8, path, 4, lambda _: None, patches=patches
        )
        read.append(torch.from_numpy(features.tokens_STND.copy()))
    assert torch.equal(read[0][:, :, :-1], read[1])
    assert not torch.allclose(read[0][:, 0, -1], read[1][:, 0].mean(1), atol=1e-2)
    # Probes that read the mean of the patches get it as one token, and say the same as from all patches.
    assert [tuple(tokens.shape[2:]) for tokens in read[2:]] == [(2, read[0].shape[3]), (1, read[0].shape[3])]
    for pooler in ("mean", "mlp"):
        for every, mean, gaze_point in ((read[0], read[2], True), (read[1], read[3], False)):
            torch.manual_seed(0)
            probe = StepProbe(
                StepProbeSpec(
                    every.shape[3], every.shape[1], 1, {"step": (1, 5)}, 1, gaze_point=gaze_point, pooler=pooler
                )
            )
            probe.eval()
            torch.nn.init.normal_(probe.probe.head.weight if pooler == "mean" else probe.probe.direct.weight)
            valid = torch.ones(every.shape[:2], dtype=torch.bool)
            said = [probe(tokens.float(), valid)["step"] for tokens in (every, mean)]
            torch.testing.assert_close(said[0], said[1], rtol=0.02, atol=0.05 * said[0].std().item())


def test_a_gazelle_that_nothing_reads_is_refused(stage2_settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"only used by probe\.gaze_point"):
        AnticipateConfig(**stage2_settings, gazelle={"weights": "mini"})
