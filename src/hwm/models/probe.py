"""The attentive probe: learned queries read a set of tokens, one linear head a task reads the queries.

Tokens [B, L, D] (+ which of them count, [B, L]) → logits [B, C] for each named task.
Source: `AttentivePooler` and `AttentiveClassifier` of facebookresearch/vjepa2: depth − 1 self-attention blocks, then
one cross-attention block that has no output projection; layer norms with PyTorch's default epsilon of 1e-5, no
positions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hwm.models.layers import (
    INIT_STD,
    MLP,
    Block,
    check_sizes,
    hidden_width,
    init_linear_and_norm,
    rescale_residuals,
)
from hwm.models.pooling import may_pool_by_block, pooled_by_block

EPS = 1e-5
MLP_RATIO = 4.0


@dataclass(frozen=True)
class ProbeSpec:
    """Sizes of a probe; see `AttentiveProbe` for each of them."""

    width: int
    num_heads: int
    depth: int
    num_queries: int
    num_classes: dict[str, int]

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        sizes = {f"num_classes.{task}": count for task, count in self.num_classes.items()}
        check_sizes("probe", self.width, self.num_heads, depth=self.depth, num_queries=self.num_queries, **sizes)


class CrossAttention(nn.Module):
    """Queries, the same for all samples, read keys and values of tokens; heads are joined and not projected again."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)

    def forward(
        self,
        queries_QD: Float[Tensor, "q d"],
        x_BLD: Float[Tensor, "b l d"],
        norm: nn.LayerNorm,
        added_LD: Float[Tensor, "l d"] | None = None,
        attn_mask: Bool[Tensor, "b 1 1 l"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """What each query reads from `norm(x_BLD + added_LD)`.

        Keys and values of all tokens are never made: a query's score of a token is (W_kᵀ q) · x, and the mean of the
        values is W_v times the mean of the tokens. The bias of the keys adds the same to all scores of a query, which
        a softmax does not see. With few queries this costs M·Q/D of what projecting every token would.
        """
        query_QMA = rearrange(self.q(queries_QD), "q (m a) -> q m a", m=self.num_heads)
        key_MAD, value_MAD = rearrange(self.kv.weight, "(two m a) d -> two m a d", two=2, m=self.num_heads)
        asked_QMD = torch.einsum("qma,mad->qmd", query_QMA, key_MAD) * query_QMA.shape[-1] ** -0.5
        read_BJD = _read(asked_QMD.flatten(0, 1), x_BLD, norm, added_LD, attn_mask)
        values_BQD = torch.einsum("bqmd,mad->bqma", read_BJD.unflatten(1, asked_QMD.shape[:2]), value_MAD).flatten(2)
        return values_BQD + self.kv.bias[self.kv.bias.shape[0] // 2 :]


def _read(
    asked_JD: Tensor, x_BLD: Tensor, norm: nn.LayerNorm, added_LD: Tensor | None, attn_mask: Tensor | None
) -> Tensor:
    """The mean of the normed tokens under each query's attention, [B, J, D].

    The norm's weight and bias may be applied to queries and means, since a bias adds the same to all scores of a query.
    """
    if may_pool_by_block(x_BLD):
        unread_BL = None if attn_mask is None else ~attn_mask[:, 0, 0]
        return pooled_by_block(x_BLD, added_LD, asked_JD * norm.weight, unread_BL, norm.eps) * norm.weight + norm.bias
    x_BLD = norm(x_BLD if added_LD is None else x_BLD + added_LD)
    scores = asked_JD @ x_BLD.transpose(1, 2)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask[:, 0], -torch.inf)
    return scores.softmax(dim=-1) @ x_BLD


class CrossAttentionBlock(nn.Module):
    """queries + xattn(queries, norm1(tokens)), then + mlp(norm2(queries))."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.xattn = CrossAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, hidden_width(width, MLP_RATIO))

    def forward(
        self,
        queries_QD: Float[Tensor, "q d"],
        x_BLD: Float[Tensor, "b l d"],
        added_LD: Float[Tensor, "l d"] | None = None,
        attn_mask: Bool[Tensor, "b 1 1 l"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """The queries after reading; they themselves are not normed before the cross-attention."""
        queries_BQD = queries_QD + self.xattn(queries_QD, x_BLD, self.norm1, added_LD, attn_mask)
        return self.mlp(self.norm2(queries_BQD), onto=queries_BQD)


class AttentivePooler(nn.Module):
    """Tokens → pooled queries.

    Args:
        width: token width D.
        num_heads: attention heads.
        depth: blocks, the cross-attention block included.
        num_queries: learned queries Q.
    """

    def __init__(self, width: int, num_heads: int, depth: int, num_queries: int) -> None:
        super().__init__()
        hidden = hidden_width(width, MLP_RATIO)
        self.query_tokens = nn.Parameter(torch.zeros(1, num_queries, width))
        self.cross_attention_block = CrossAttentionBlock(width, num_heads)
        self.blocks = nn.ModuleList(Block(width, num_heads, hidden, eps=EPS) for _ in range(depth - 1))
        self.apply(init_linear_and_norm)
        nn.init.trunc_normal_(self.query_tokens, std=INIT_STD)
        rescale_residuals(self.blocks)
        with torch.no_grad():
            self.cross_attention_block.mlp.fc2.weight.div_(math.sqrt(2.0 * depth))

    def forward(
        self,
        tokens_BLD: Float[Tensor, "b l d"],
        valid_BL: Bool[Tensor, "b l"] | None = None,
        added_LD: Float[Tensor, "l d"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Pool the tokens; only those with `valid_BL` true are read (where none is, all are, to stay finite).

        `added_LD` is added to the tokens of every sample first.
        """
        mask = None
        if valid_BL is not None:
            mask = (valid_BL | ~valid_BL.any(dim=1, keepdim=True))[:, None, None]
        if added_LD is not None and len(self.blocks):
            tokens_BLD, added_LD = tokens_BLD + added_LD, None
        for block in self.blocks:
            tokens_BLD = block(tokens_BLD, attn_mask=mask)
        return self.cross_attention_block(self.query_tokens[0], tokens_BLD, added_LD, mask)


class AttentiveProbe(nn.Module):
    """Attentive pooler and one linear classifier a task.

    Args:
        width: token width D.
        num_heads: attention heads.
        depth: pooler blocks, the cross-attention block included.
        num_queries: learned queries Q. With as many queries as tasks, query i feeds task i (upstream: verb, noun,
            action); otherwise every task reads the mean of the queries.
        num_classes: task name → number of classes C, in the order of the queries.
    """

    def __init__(
        self, width: int, num_heads: int, depth: int, num_queries: int, num_classes: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.spec = ProbeSpec(width, num_heads, depth, num_queries, dict(num_classes))
        self.tasks = tuple(num_classes)
        self.pooler = AttentivePooler(width, num_heads, depth, num_queries)
        for task, count in num_classes.items():
            head = nn.Linear(width, count)
            init_linear_and_norm(head)
            self.add_module(f"{task}_classifier", head)

    @classmethod
    def from_spec(cls, spec: ProbeSpec) -> "AttentiveProbe":
        """A new probe of these sizes."""
        return cls(spec.width, spec.num_heads, spec.depth, spec.num_queries, spec.num_classes)

    def forward(
        self,
        tokens_BLD: Float[Tensor, "b l d"],
        valid_BL: Bool[Tensor, "b l"] | None = None,
        added_LD: Float[Tensor, "l d"] | None = None,
    ) -> dict[str, Float[Tensor, "b _"]]:
        """Logits [B, C] of each task.

        Args:
            tokens_BLD: features that the probe reads.
            valid_BL: false for tokens that must not be read (padding); None reads all.
            added_LD: added to the features of every sample, e.g. learned positions.
        """
        pooled_BQD = self.pooler(tokens_BLD, valid_BL, added_LD)
        if pooled_BQD.shape[1] != len(self.tasks):
            pooled_BQD = pooled_BQD.mean(dim=1, keepdim=True).expand(-1, len(self.tasks), -1)
        return {
            task: self.get_submodule(f"{task}_classifier")(pooled_BQD[:, index])
            for index, task in enumerate(self.tasks)
        }
