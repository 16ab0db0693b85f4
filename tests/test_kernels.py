"""The fast kernels compute the plain formula; training never meets them; the future never leaks through them."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hwm.models import kernels
from hwm.models.causal_stack import CausalStack, CausalStackSpec
from hwm.models.layers import products_in_bfloat16
from hwm.models.rope import (
    INTERLEAVED,
    TILED,
    RopeForm,
    RopeTable,
    _neighbours,
    _signed,
    axis_positions,
    rope_table,
    rotate,
)
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder

WIDTH = 192


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces and blocks so small that every loop runs several times, the last time with less."""
    monkeypatch.setattr(kernels, "TOKENS_PER_PIECE", 5)
    monkeypatch.setattr(kernels, "COLUMNS_PER_PIECE", 100)
    monkeypatch.setattr(kernels, "ROWS_FOR_MKL", 8)
    monkeypatch.setattr(kernels, "ROWS_PER_PIECE", 7)
    monkeypatch.setattr(kernels, "SCORES_PER_BLOCK", 40)
    monkeypatch.setattr("hwm.models.rope.ROWS_AT_ONCE", 30)


def layers() -> tuple[torch.nn.Linear, torch.nn.Linear]:
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.Linear(2 * WIDTH, WIDTH)


@pytest.mark.parametrize("mkl", [False, True])
def test_products_equal_the_plain_formula(mkl: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "mkl_is_fast", lambda: mkl)
    first, second = layers()
    x = torch.randn(2, 9, WIDTH)
    with torch.inference_mode():
        assert kernels.takes_fast_path(x)
        torch.testing.assert_close(kernels.project(x, first), F.linear(x, first.weight, first.bias))
        expected = F.linear(F.gelu(F.linear(x, first.weight, first.bias)), second.weight, second.bias)
        torch.testing.assert_close(kernels.mlp(x, first, second), expected, atol=2e-6, rtol=1e-5)
        onto, wide = torch.randn(2, 9, WIDTH), torch.randn(2, 9, 2 * WIDTH)
        before = onto.clone(), wide.clone()
        torch.testing.assert_close(kernels.mlp(x, first, second, onto), onto + expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(kernels.project(x, first, wide), wide + F.linear(x, first.weight, first.bias))
        assert torch.equal(onto, before[0])
        assert torch.equal(wide, before[1])
        strided = x.transpose(0, 1)
        torch.testing.assert_close(kernels.mlp(strided, first, second), expected.transpose(0, 1), atol=2e-6, rtol=1e-5)


def test_mkl_multiplies_many_rows_of_float32_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = layers()
    onednn = kernels._onednn_linear
    heights = []

    def told(x: Tensor, *others: Any) -> Tensor:
        heights.append(x.shape[:-1].numel())
        return onednn(x, *others)

    monkeypatch.setattr(kernels, "_onednn_linear", told)
    for mkl, rows, expected in ((True, 8, []), (True, 7, [7, 5, 5, 2, 2]), (False, 8, [8, 5, 5, 3, 3])):
        monkeypatch.setattr(kernels, "mkl_is_fast", lambda mkl=mkl: mkl)
        heights.clear()
        with torch.inference_mode():
            x = torch.randn(1, rows, WIDTH)
            kernels.mlp(kernels.project(x, first)[..., :WIDTH], first, second)
        assert heights == expected
    heights.clear()
    monkeypatch.setattr(kernels, "mkl_is_fast", lambda: True)
    monkeypatch.setattr(kernels, "bfloat16_is_slow", lambda: False)
    with torch.inference_mode():
        kernels.project(torch.randn(1, 8, WIDTH), first.bfloat16())
    assert heights == [8]


def test_with_gradients_the_plain_formula_runs() -> None:
    first, second = layers()
    x = torch.randn(2, 9, WIDTH, requires_grad=True)
    assert not kernels.takes_fast_path(x)
    kernels.mlp(kernels.project(x, first)[..., :WIDTH], first, second).sum().backward()
    assert all(p.grad is not None for p in (x, *first.parameters(), *second.parameters()))


def test_autocast_picks_the_type_itself() -> None:
    first, second = layers()
    x = torch.randn(1, 4, WIDTH)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert kernels.mlp(x, first, second).dtype == torch.bfloat16


@pytest.mark.parametrize("mkl", [False, True])
def test_where_bfloat16_is_slow_its_weights_are_multiplied_in_float32(
    mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "mkl_is_fast", lambda: mkl)
    first, second = (layer.bfloat16() for layer in layers())
    first_32, second_32 = (layer.float() for layer in deepcopy((first, second)))
    x = torch.randn(2, 9, WIDTH)
    with torch.inference_mode():
        for slow, dtype in ((True, torch.float32), (False, torch.bfloat16)):
            monkeypatch.setattr(kernels, "bfloat16_is_slow", lambda slow=slow: slow)
            assert kernels.project(x, first).dtype == kernels.mlp(x, first, second).dtype == dtype
        monkeypatch.setattr(kernels, "bfloat16_is_slow", lambda: True)
        torch.testing.assert_close(kernels.project(x, first), kernels.project(x, first_32), rtol=0, atol=0)
        torch.testing.assert_close(kernels.mlp(x, first, second), kernels.mlp(x, first_32, second_32), rtol=0, atol=0)
    assert {part.dtype for part in (*first.parameters(), *second.parameters())} == {torch.bfloat16}
    with torch.enable_grad():
        assert kernels.project(x, first).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("about", "mkl", "slow"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, True, True),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True, False),
        ({"cpu_name": "AMD EPYC 9R14", "avx512_bf16": True, "amx_bf16": False}, False, False),
        ({"architecture": "aarch64"}, False, False),
    ],
)
def test_mkl_is_fast_on_intel_and_bfloat16_slow_without_matrix_units(
    about: dict[str, object], mkl: bool, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> tuple[bool, bool]:
        kernels.bfloat16_is_slow.cache_clear()
        kernels.mkl_is_fast.cache_clear()
        return kernels.mkl_is_fast(), kernels.bfloat16_is_slow()

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: about, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    try:
        assert asked() == (mkl, slow)
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
        assert asked() == (False, slow)
        monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older versions of PyTorch
        assert asked() == (False, False)
    finally:
        monkeypatch.undo()
        asked()


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 4, 5, 11)], ids=["square", "more keys"])
def test_blocked_attention_equals_pytorchs(shape: tuple[int, int, int, int]) -> None:
    clips, heads, length, keys = shape
    torch.manual_seed(0)
    query, key, value = (torch.randn(clips, heads, n, 32).bfloat16() for n in (length, keys, keys))
    with torch.inference_mode():
        blocked = kernels.attention(query, key, value)
    exact = F.scaled_dot_product_attention(*(x.double() for x in (query, key, value)))
    torch.testing.assert_close(blocked.double(), exact, atol=2e-2, rtol=2e-2)
    assert (blocked.double() - exact).abs().mean() < 3e-3


@pytest.mark.parametrize("form", [TILED, INTERLEAVED], ids=["V-JEPA 2", "V-JEPA 2.1"])
@pytest.mark.parametrize("per_clip", [False, True])
def test_rotation_a_few_heads_at_a_time_equals_the_whole(form: RopeForm, per_clip: bool) -> None:
    table = rope_table(axis_positions(3, 2, 2).double(), 32, form)
    if per_clip:
        table = RopeTable(torch.stack((table.cos, table.cos.flip(0))), torch.stack((table.sin, table.sin.flip(0))))
    fused = torch.randn(2, 12, 3, 5, 32, dtype=torch.float64, requires_grad=True)
    x = fused[:, :, 1].transpose(1, 2)  # as queries lie in a fused projection
    before = fused.detach().clone()
    whole = torch.addcmul(x * table.cos.unsqueeze(-3), _neighbours(x), _signed(table.sin).unsqueeze(-3))
    with torch.no_grad():
        torch.testing.assert_close(rotate(x, table), whole)
    turned, weights = rotate(x, table), torch.randn(x.shape, dtype=torch.float64)
    torch.testing.assert_close(turned, whole)
    gradients = [torch.autograd.grad((result * weights).sum(), fused)[0] for result in (turned, whole)]
    torch.testing.assert_close(*gradients)
    assert torch.equal(fused, before)


@pytest.mark.parametrize("mkl", [False, True])
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_step_ignores_later_steps_bit_for_bit_on_the_fast_path(
    bfloat16: bool, slow: bool, mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "bfloat16_is_slow", lambda: slow)
    monkeypatch.setattr(kernels, "mkl_is_fast", lambda: mkl)
    torch.manual_seed(0)
    stack = CausalStack(CausalStackSpec(in_width=WIDTH, width=WIDTH, depth=2, num_heads=4))
    if bfloat16:
        products_in_bfloat16(stack)
    tokens = torch.randn(2, 4, 9, WIDTH)
    changed = tokens.clone()
    changed[:, 2:] = 100.0
    with torch.inference_mode():
        assert torch.equal(stack(changed)[:, :2], stack(tokens)[:, :2])
        assert not torch.equal(stack(changed)[:, 2], stack(tokens)[:, 2])


def encoded(encoder: VJEPA2Encoder, video: Tensor) -> Tensor:
    with torch.inference_mode():
        return encoder(video)


@pytest.mark.parametrize("mkl", [False, True])
def test_encoder_is_equal_with_and_without_gradients_and_close_in_bfloat16(
    mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "mkl_is_fast", lambda: mkl)
    torch.manual_seed(0)
    encoder = VJEPA2Encoder(EncoderSpec(WIDTH, 3, 3))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    video = torch.randn(2, 3, 4, 32, 48)
    plain = encoder(video).detach()
    fast = encoded(encoder, video)
    assert (fast - plain).abs().max() <= 1e-5 * plain.abs().max()
    products_in_bfloat16(encoder)
    errors = []
    for slow in (False, True):
        monkeypatch.setattr(kernels, "bfloat16_is_slow", lambda slow=slow: slow)
        low = encoded(encoder, video)
        assert low.dtype == torch.float32
        errors.append(float((low - plain).abs().max() / plain.abs().max()))
    assert 1e-5 < errors[1] < errors[0] <= 2e-2  # products of rounded weights in float32 round nothing else
