"""RoPE, encoder, masked predictor and probe: what the golden files do not reach."""

import copy

import pytest
import torch

from hwm.errors import ConfigError
from hwm.losses import layer_normed
from hwm.models.layers import Block, hidden_width
from hwm.models.masked_predictor import MaskedPredictor, MaskedPredictorSpec, anticipate
from hwm.models.observer import Observer
from hwm.models.probe import AttentivePooler, AttentiveProbe
from hwm.models.rope import TILED, RopeTables, axis_positions, rope_table, rotate, split_ids
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder

SPEC = EncoderSpec(width=32, depth=2, num_heads=2, patch_size=4)


@pytest.fixture
def encoder() -> VJEPA2Encoder:
    torch.manual_seed(0)
    return VJEPA2Encoder(SPEC)


def test_ids_are_time_then_rows_then_columns() -> None:
    assert axis_positions(2, 2, 3)[[0, 1, 3, 6]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert torch.equal(split_ids(torch.arange(12), (2, 3)), axis_positions(2, 2, 3))
    assert torch.equal(axis_positions(1, 2, 3, first_step=1), axis_positions(2, 2, 3)[6:])


def test_head_is_cut_in_three_even_parts_and_a_rest_that_does_not_turn() -> None:
    table = rope_table(torch.tensor([[5.0, 0, 0], [0, 7, 0], [0, 0, 9]]), 64, TILED)
    turned = table.sin != 0
    assert [row.nonzero().flatten().tolist() for row in turned] == [
        list(range(0, 20)), list(range(20, 40)), list(range(40, 60)),
    ]  # fmt: skip


def test_frequencies_are_tiled_not_repeated() -> None:
    # Channel 0 and 1 are a pair, but turn by frequency 0 and 1: the quirk of the released weights.
    table = rope_table(torch.tensor([[1.0, 0, 0]]), 12, TILED)
    x = torch.zeros(1, 1, 1, 12)
    x[..., 0] = 1.0
    expected = torch.zeros(12)
    expected[0], expected[1] = torch.tensor(1.0).cos(), torch.tensor(0.01).sin()
    torch.testing.assert_close(rotate(x, table)[0, 0, 0], expected)


def test_tables_are_made_once_and_grow() -> None:
    tables, like = RopeTables(12), torch.zeros(())
    first = tables.get(0, 4, (2, 2), like)
    assert tables.get(0, 4, (2, 2), like).cos.data_ptr() == first.cos.data_ptr()
    later = tables.get(5, 2, (2, 2), like)
    assert torch.equal(later.cos, rope_table(axis_positions(2, 2, 2, first_step=5).float(), 12, TILED).cos)
    far = tables.get(40, 1, (2, 2), like)
    assert torch.equal(far.sin, rope_table(axis_positions(1, 2, 2, first_step=40).float(), 12, TILED).sin)


def test_positions_of_half_precision_models_are_not_rounded() -> None:
    """In bfloat16 there is no 257."""
    half, full = (
        RopeTables(12).get(250, 20, (1, 3), torch.zeros((), dtype=t)) for t in (torch.bfloat16, torch.float32)
    )
    assert torch.equal(half.cos.float(), full.cos)
    assert torch.equal(half.sin.float(), full.sin)


def test_tables_are_not_part_of_the_weights(encoder: VJEPA2Encoder) -> None:
    before = set(encoder.state_dict())
    encoder(torch.zeros(1, 3, 2, 8, 8))
    assert set(encoder.state_dict()) == before
    copy.deepcopy(encoder)(torch.zeros(1, 3, 2, 8, 8))


def test_encoder_trains_after_it_ran_in_inference_mode(encoder: VJEPA2Encoder) -> None:
    video = torch.randn(1, 3, 4, 8, 8)
    with torch.inference_mode():
        encoder(video)
    encoder(video).mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_keeping_every_token_changes_nothing(encoder: VJEPA2Encoder) -> None:
    video = torch.randn(2, 3, 4, 12, 8)
    order = torch.stack([torch.randperm(12), torch.randperm(12)])
    expected = torch.take_along_dim(encoder(video), order[..., None], dim=1)
    torch.testing.assert_close(encoder(video, order), expected, atol=1e-5, rtol=0)


def test_single_frames_do_not_see_each_other(encoder: VJEPA2Encoder) -> None:
    frames = torch.randn(3, 3, 8, 12)
    changed = frames.clone()
    changed[1:] = 9.0
    assert torch.equal(encoder.encode_frames(changed)[0], encoder.encode_frames(frames)[0])


def test_a_step_of_two_frames_is_one_tubelet(encoder: VJEPA2Encoder) -> None:
    frames = torch.randn(3, 2, 3, 8, 12)  # steps, frames, colours, rows, columns
    with torch.no_grad():
        expected = layer_normed(encoder(frames.transpose(1, 2)))
        same_twice = frames[:, :1].repeat(1, 2, 1, 1, 1)
        observer = Observer(encoder, None)
        torch.testing.assert_close(observer(frames, None).z_SND, expected)
        alone = observer(frames[:, :1], None).z_SND
        torch.testing.assert_close(observer(same_twice, None).z_SND, alone, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="a step holds 1 or 2 frames, found 4"):
        observer(torch.randn(1, 4, 3, 8, 8), None)
    with pytest.raises(ValueError, match="no Gazelle"):
        observer(frames, torch.randn(3, 3, 8, 8))


@pytest.mark.parametrize("shape", [(1, 3, 3, 8, 8), (1, 3, 0, 8, 8), (1, 3, 2, 10, 8), (1, 3, 2, 8, 0)])
def test_sizes_that_do_not_divide_are_refused(encoder: VJEPA2Encoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="does not"):
        encoder(torch.zeros(shape))


@pytest.mark.parametrize("sizes", [(32, 2, 3), (0, 2, 1), (32, 0, 2), (6, 1, 2)])
def test_impossible_encoders_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError):
        EncoderSpec(*sizes)


def test_released_mlp_widths_come_out_exactly() -> None:
    with torch.device("meta"):
        giant = VJEPA2Encoder(EncoderSpec(1408, 1, 22, 48 / 11))
        gigantic = VJEPA2Encoder(EncoderSpec(1664, 1, 26, 64 / 13))
    assert giant.blocks[0].mlp.fc1.out_features == 6144
    assert gigantic.blocks[0].mlp.fc1.out_features == 8192


def test_the_width_of_an_mlp_is_found_again_from_its_ratio() -> None:
    """Sizes are read off a file's shapes: the ratio that they make must give them back."""
    assert all(hidden_width(width, 48 * width / 11 / width) == 48 * width // 11 for width in range(44, 2000, 44))


def test_new_blocks_add_the_less_the_deeper_they_are() -> None:
    """V-JEPA 2's initial weights: deviations of 0.02, over √(2 · number of the block) in what adds to the stream."""
    torch.manual_seed(0)
    blocks = VJEPA2Encoder(EncoderSpec(width=96, depth=3, num_heads=2, patch_size=4)).blocks
    pooler = AttentivePooler(96, 2, depth=3, num_queries=1)
    for stack in (blocks, pooler.blocks):
        for number, block in enumerate(stack, start=1):
            for layer in (block.attn.proj, block.mlp.fc2):
                assert layer.weight.std().item() == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.04)
            assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.04)
    assert pooler.cross_attention_block.mlp.fc2.weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.04)


def test_released_parameter_counts() -> None:
    with torch.device("meta"):
        large = VJEPA2Encoder(EncoderSpec(1024, 24, 16))
        predictor = MaskedPredictor(MaskedPredictorSpec(1024))
    assert round(sum(p.numel() for p in large.parameters()) / 1e6, 1) == 303.9
    assert round(sum(p.numel() for p in predictor.parameters()) / 1e6, 1) == 22.1


def test_masked_predictor_trains_and_reads_its_mask_token() -> None:
    torch.manual_seed(0)
    predictor = MaskedPredictor(MaskedPredictorSpec(in_width=8, width=16, depth=1, num_heads=2, num_mask_tokens=2))
    context, seen, hidden = torch.randn(2, 5, 8), torch.arange(5).expand(2, -1), torch.arange(5, 9).expand(2, -1)
    everything = predictor.forward_all(context, seen, hidden, (3, 3))
    assert torch.equal(everything[:, 5:], predictor(context, seen, hidden, (3, 3)))
    everything.abs().mean().backward()
    without_grad = {name for name, p in predictor.named_parameters() if p.grad is None}
    assert without_grad == {"mask_tokens.1"}
    with pytest.raises(ConfigError, match="no such mask token"):
        predictor(context, seen, hidden, (3, 3), mask_index=2)


def test_anticipation_wants_a_time_for_each_clip() -> None:
    predictor = MaskedPredictor(MaskedPredictorSpec(in_width=8, width=16, depth=1, num_heads=2))
    with pytest.raises(ConfigError, match="do not match the clips"):
        anticipate(predictor, torch.zeros(2, 8, 8), [1.0], 4.0, (2, 2))


def test_probe_never_reads_masked_tokens() -> None:
    torch.manual_seed(0)
    probe = AttentiveProbe(width=16, num_heads=2, depth=2, num_queries=1, num_classes={"step": 5})
    tokens = torch.randn(3, 6, 16)
    valid = torch.tensor([[True] * 6, [False, False, True, True, True, True], [False] * 6])
    logits = probe(tokens, valid)["step"]
    changed = tokens.clone()
    changed[1, :2] = 30.0
    assert torch.equal(probe(changed, valid)["step"], logits)
    assert not torch.equal(probe(changed)["step"], probe(tokens)["step"])
    torch.testing.assert_close(logits[1], probe(tokens[1:2, 2:])["step"][0], atol=1e-6, rtol=0)
    assert torch.isfinite(logits).all()


def test_one_task_reads_the_mean_of_several_queries() -> None:
    torch.manual_seed(0)
    probe = AttentiveProbe(width=16, num_heads=2, depth=1, num_queries=3, num_classes={"step": 5})
    tokens = torch.randn(2, 6, 16)
    expected = probe.step_classifier(probe.pooler(tokens).mean(1))
    torch.testing.assert_close(probe(tokens)["step"], expected)
    two = AttentiveProbe(width=16, num_heads=2, depth=1, num_queries=1, num_classes={"verb": 4, "noun": 3})
    assert {task: logits.shape[1] for task, logits in two(tokens).items()} == {"verb": 4, "noun": 3}


def test_attention_mask_hides_keys() -> None:
    torch.manual_seed(0)
    block, x = Block(8, 2, 16), torch.randn(1, 4, 8)
    mask = torch.tensor([True, True, False, True])[None, None, None]
    changed = x.clone()
    changed[:, 2] = 5.0
    rows = [0, 1, 3]
    assert torch.equal(block(changed, attn_mask=mask)[:, rows], block(x, attn_mask=mask)[:, rows])
