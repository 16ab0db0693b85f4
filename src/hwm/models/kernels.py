"""Which kernels a transformer's parts run on: PyTorch's own, or without gradients the faster ones it also has.

Inputs and results of each function are those of the plain formula beside it, to rounding (1e-5 relative in float32).
What was measured on a CPU, and is used here:

* Half of the time outside of matrix products goes into memory that the system hands out page by page: a hidden layer
  of 32 MB costs more to come by than its GELU. So the MLP runs over pieces of tokens whose hidden layer fits the cache.
* oneDNN's linear layer adds bias and exact GELU while the product is still in registers, and is the faster of the two
  matrix libraries in PyTorch on CPUs that MKL does not know. Asked for directly, it multiplies float32 as float32
  under PyTorch's default; `torch.set_float32_matmul_precision("medium")`, the usual way to it, is a switch of the
  whole process that also allows bfloat16 products on CPUs that have units for them.
* On Intel's CPUs MKL is the faster one from some 800 tokens on: by 5 to 8 % of a product that has many rows, by none of
  one with 512. So there all tokens pass through the MLP at once, and its hidden layer comes by pieces of its columns,
  each added within MKL's product to what the block started from: 3 to 4 % of a block of ViT-L over 2048 tokens. A bias
  is added in place behind a product: PyTorch would first spread it over fresh memory, which with a hidden layer of its
  own for each piece is another 2 %.
* PyTorch's blocked attention is the fastest for float32. In bfloat16 it converts every block back and forth; plain
  products over blocks of queries, which stay in the cache, are faster there.
* oneDNN brings a weight into its own order at every call, 3 to 5 % of a product over 512 tokens. Bringing it there once
  for all pieces of a call takes four times as long as oneDNN's own way and gains nothing. Kept in that order it is an
  opaque tensor, which cannot be deep-copied, pickled, moved or cast; it is not done.
* Intel's CPUs without matrix units (AMX, which virtual machines may hide) multiply bfloat16 at half the rate of
  float32: 83 against 162 GFLOP/s of one core (Emerald Rapids). There a frozen network with bfloat16 weights multiplies
  in float32, its weights widened for each call, those of the MLP piece by piece in memory that stays in the cache, and
  what comes out is float32. A block of ViT-L takes 1 to 2 % longer than with float32 weights (over 256 tokens some
  10 %), is 1.5 to 1.75 times as fast as with bfloat16 products, and nearer to float32's results.
* Softmax is a third of attention in bfloat16. Exponentials without the row's maximum, summed and divided behind the
  product with the values, save 1 % of a block and need a bound on the scores; they are not used.
* Layer norms, casts and residuals by pieces of tokens, as the MLP, gain nothing: what they save, thinner products cost.

And on CUDA:

* cuBLAS adds bias and GELU while the product is still in registers, in bfloat16 and in GELU's tanh form, which differs
  from the exact one by 5e-4 at most: of ViT-L's output by 2e-4, where bfloat16 itself is off by 6e-3. The hidden layer
  is then written once, and not written, read and written again.

Nothing global is set. Training, autocast, compilation on a CPU and every other device take the plain formula.
"""

from collections.abc import Mapping
from functools import cache
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

TOKENS_PER_PIECE = 512
"""Tokens of an MLP's piece: 8 MB of hidden layer in ViT-L, and enough rows to keep a product at its full rate."""
COLUMNS_PER_PIECE, ROWS_PER_PIECE = 1024, 4096
"""Hidden columns and most tokens of an MLP's piece where MKL adds up what they give: at most 16 MB of hidden layer."""
ROWS_FOR_MKL = 768
"""Tokens from which MKL is the faster library on Intel's CPUs."""
SCORES_PER_BLOCK = 1 << 20
"""Attention scores held at once, 2 MB in bfloat16. Smaller blocks fit a second-level cache, but their products are
thinner: of 2048 keys, 512 queries at once were 9 % faster than 128."""
SMALLEST_WIDTH = 128
"""Below this width oneDNN's set-up costs more than its products save."""
SMALLEST_HEAD = 32
"""Below this width of a head the products of attention are too thin."""


def takes_fast_path(x: Tensor, smallest_width: int = SMALLEST_WIDTH) -> bool:
    """Whether `x` lies on a CPU, needs no gradients and has a type and width that oneDNN multiplies well."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.shape[-1] >= smallest_width
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@cache
def bfloat16_is_slow() -> bool:
    """Whether this CPU multiplies bfloat16 more slowly than float32; false where PyTorch does not say what it is."""
    return _is_from_intel() and not _about_cpu().get("amx_bf16", False)


@cache
def mkl_is_fast() -> bool:
    """Whether MKL is there and knows this CPU; false where PyTorch does not say what it is."""
    return _is_from_intel() and torch.backends.mkl.is_available()


def _is_from_intel() -> bool:
    return str(_about_cpu().get("cpu_name", "")).startswith("Intel")


def _about_cpu() -> Mapping[str, object]:
    return getattr(torch.cpu, "get_capabilities", dict)()


def _fuses_gelu(x: Tensor) -> bool:
    """Whether `x` lies on CUDA in bfloat16 and needs no gradients (they would ask for the product before GELU)."""
    return (
        x.device.type == "cuda"
        and x.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cuda")
    )


def project(
    x_BLD: Float[Tensor, "*batch d"], layer: nn.Linear, onto: Float[Tensor, "*batch e"] | None = None
) -> Float[Tensor, "*batch e"]:
    """`layer(x)`, in the type of the layer's weight, or in float32 where this CPU is slow in bfloat16.

    Where `onto` is given, `onto + layer(x)`.
    """
    x_BLD = _operand(x_BLD, layer)
    if not takes_fast_path(x_BLD):
        return _added(onto, linear(x_BLD, layer.weight, layer.bias))
    weight, bias = _parts(layer, x_BLD.dtype)
    if not _suits_mkl(x_BLD):
        return _added(onto, _onednn_linear(x_BLD, weight, bias))
    if bias is None:
        return _added(onto, linear(x_BLD, weight))
    if onto is None:
        return linear(x_BLD, weight).add_(bias)
    out_LE = (onto + bias).flatten(0, -2)
    return torch.addmm(out_LE, x_BLD.flatten(0, -2), weight.T, out=out_LE).view_as(onto)


def mlp(
    x_BLD: Float[Tensor, "b l d"], first: nn.Linear, second: nn.Linear, onto: Float[Tensor, "b l d"] | None = None
) -> Float[Tensor, "b l d"]:
    """`second(gelu(first(x)))` with the exact GELU, or, where bfloat16 hides the difference, its tanh form.

    In the type that `project` has, and as there added to `onto`.
    """
    x_BLD = _operand(x_BLD, first)
    if _fuses_gelu(x_BLD):
        hidden_LD = torch.ops.aten._addmm_activation(first.bias, x_BLD.flatten(0, -2), first.weight.T, use_gelu=True)
        return _added(onto, linear(hidden_LD, second.weight, second.bias).view_as(x_BLD))
    if not takes_fast_path(x_BLD):
        return _added(onto, linear(gelu(linear(x_BLD, first.weight, first.bias)), second.weight, second.bias))
    x_LD = x_BLD.reshape(-1, x_BLD.shape[-1])
    if not _suits_mkl(x_LD):
        return _added(onto, _mlp_by_tokens(x_LD, first, second).view_as(x_BLD))
    onto_LD = x_LD.new_zeros(()) if onto is None else onto.reshape(x_LD.shape)
    return _mlp_by_columns(onto_LD, x_LD, first, second).view_as(x_BLD)


def _added(onto: Tensor | None, result: Tensor) -> Tensor:
    return result if onto is None else onto + result


def _suits_mkl(x: Tensor) -> bool:
    """Whether MKL is the faster library for the rows of `x` on this CPU."""
    return x.dtype == torch.float32 and x.shape[:-1].numel() >= ROWS_FOR_MKL and mkl_is_fast()


def _mlp_by_tokens(x_LD: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """Some tokens at a time through the whole hidden layer."""
    of_first, of_second = _parts(first, x_LD.dtype), _parts(second, x_LD.dtype)
    out_LD = torch.empty_like(x_LD)
    for piece_LD, out in zip(x_LD.split(TOKENS_PER_PIECE), out_LD.split(TOKENS_PER_PIECE), strict=True):
        hidden_LD = _onednn_linear(piece_LD, *of_first, "gelu")
        out.copy_(_onednn_linear(hidden_LD, *of_second))
    return out_LD


def _mlp_by_columns(onto_LD: Tensor, x_LD: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """All tokens, or thousands, through some columns of the hidden layer at a time, added to what is there."""
    out_LD = (onto_LD + second.bias.to(x_LD.dtype)).expand(x_LD.shape).contiguous()
    rows = _equal_height(len(x_LD), ROWS_PER_PIECE)
    hidden = x_LD.new_empty(rows * min(COLUMNS_PER_PIECE, first.out_features))
    widened = x_LD.new_empty(COLUMNS_PER_PIECE * x_LD.shape[1]) if first.weight.dtype != x_LD.dtype else None
    columns = ((first.weight, 0), (first.bias.to(x_LD.dtype), 0), (second.weight, 1))
    for piece_LD, out in zip(x_LD.split(rows), out_LD.split(rows), strict=True):
        pieces = (part.split(COLUMNS_PER_PIECE, dim) for part, dim in columns)
        for some_first, some_bias, some_second in zip(*pieces, strict=True):
            hidden_LC = hidden[: len(piece_LD) * len(some_bias)].view(len(piece_LD), -1)
            torch.mm(piece_LD, _copied(some_first, widened).T, out=hidden_LC)
            torch.ops.aten.gelu_(hidden_LC.add_(some_bias))
            torch.addmm(out, hidden_LC, _copied(some_second, widened).T, out=out)
    return out_LD


def _copied(weight: Tensor, into: Tensor | None) -> Tensor:
    """`weight` in the type of `into`, whose memory it takes: one that stays in the cache. As it is without."""
    return weight if into is None else into[: weight.numel()].view(weight.shape).copy_(weight)


def _equal_height(rows: int, most: int) -> int:
    """Of blocks with at most so many rows: 1025 are 513 and 512, not 1023 and 2."""
    return ceil(rows / ceil(rows / most))


def attention(
    query_BMLA: Float[Tensor, "b m l a"],
    key_BMSA: Float[Tensor, "b m s a"],
    value_BMSA: Float[Tensor, "b m s a"],
    attn_mask: Tensor | None = None,
) -> Float[Tensor, "b m l a"]:
    """`softmax(q kᵀ / √A) v` where `attn_mask` is true (None: everywhere)."""
    if attn_mask is not None or query_BMLA.dtype != torch.bfloat16 or not takes_fast_path(query_BMLA, SMALLEST_HEAD):
        return scaled_dot_product_attention(query_BMLA, key_BMSA, value_BMSA, attn_mask=attn_mask)
    mixed_BLMA = query_BMLA.new_empty(query_BMLA.transpose(1, 2).shape)
    for clip, mixed_LMA in enumerate(mixed_BLMA):
        _attend_in_blocks(query_BMLA[clip], key_BMSA[clip], value_BMSA[clip], mixed_LMA)
    return mixed_BLMA.transpose(1, 2)


def _attend_in_blocks(query_MLA: Tensor, key_MSA: Tensor, value_MSA: Tensor, mixed_LMA: Tensor) -> None:
    """Attention of one clip into `mixed_LMA`, a block of queries of one or a few heads at a time.

    One block of scores is written again and again, by its softmax too: it stays in the cache.
    """
    num_heads, length, head_width = query_MLA.shape
    num_keys = key_MSA.shape[1]
    rows = _equal_height(length, max(1, SCORES_PER_BLOCK // num_keys))
    heads = min(num_heads, max(1, SCORES_PER_BLOCK // (rows * num_keys)))
    block_MLS, block_MLA = (query_MLA.new_empty(heads, rows, columns) for columns in (num_keys, head_width))
    for head in range(0, num_heads, heads):
        some = slice(head, head + heads)
        scaled_MLA = query_MLA[some] * head_width**-0.5
        key_MAS, value = key_MSA[some].mT, value_MSA[some].contiguous()
        for row in range(0, length, rows):
            queries = scaled_MLA[:, row : row + rows]
            scores, mixed = (block[: len(queries), : queries.shape[1]] for block in (block_MLS, block_MLA))
            torch.bmm(queries, key_MAS, out=scores)
            torch.softmax(scores, dim=-1, out=scores)
            mixed_LMA[row : row + rows, some] = torch.bmm(scores, value, out=mixed).transpose(0, 1)


def _operand(x: Tensor, layer: nn.Linear) -> Tensor:
    """`x` in the type to multiply it in by `layer`; untouched under autocast, which picks the type itself."""
    if torch.is_autocast_enabled(x.device.type):
        return x
    if layer.weight.dtype == torch.bfloat16 and takes_fast_path(x) and bfloat16_is_slow():
        return x.float()
    return x.to(layer.weight.dtype)


def _parts(layer: nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in the type to multiply in."""
    return layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    # The operator that torch.compile itself uses for linear layers on a CPU.
    kind = "none" if then == "gelu" else ""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], kind)
