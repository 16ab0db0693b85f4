"""Which tensors of a Hugging Face file are which parameters of ours: one table a model, and pure functions over it.

A state dict with the names of `transformers` ↔ the same tensors under our names, exact in both directions: a fused
projection of ours is cut into (or joined from) query, key and value, and a list of mask tokens is stacked.
Source: the files `facebook/vjepa2-*` and `facebook/dinov2-*`, and the modules of `transformers` that read them
(`VJEPA2Model`, `VJEPA2ForVideoClassification`, `Dinov2Model`). Nothing here imports `transformers`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """How one of our modules is named in a file.

    Attributes:
        homes: what the file's keys of this module begin with.
        names: our parameter, or our layer with weight and bias → theirs; several where ours is fused on axis 0.
        blocks: the list of transformer blocks, in our names and in theirs.
        inside: as `names`, inside of a block.
        stacked: a list of ours and the one tensor that holds it, if there is such a list.
    """

    homes: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    blocks: tuple[str, str]
    inside: Mapping[str, tuple[str, ...]]
    stacked: tuple[str, str] | None = None

    def theirs(self, name: str) -> tuple[str, ...]:
        """The file's keys for a parameter of ours; none where the table does not know it."""
        if self.stacked and re.fullmatch(rf"{self.stacked[0]}\.\d+", name):
            return (self.stacked[1],)
        block = re.fullmatch(rf"{re.escape(self.blocks[0])}\.(\d+)\.(.+)", name)
        if block is None:
            return _rename(self.names, name)
        return tuple(f"{self.blocks[1]}.{block[1]}.{key}" for key in _rename(self.inside, block[2]))

    def ours(self, key: str) -> str | None:
        """Our parameter that one key of the file is, alone and as it is; None where there is none such."""
        block = re.fullmatch(rf"{re.escape(self.blocks[1])}\.(\d+)\.(.+)", key)
        found = _rename(_alone(self.names if block is None else self.inside), key if block is None else block[2])
        if not found:
            return None
        return found[0] if block is None else f"{self.blocks[0]}.{block[1]}.{found[0]}"


class Group(NamedTuple):
    """Parameters of ours and tensors of a file that hold the same numbers; one of the two sides is a single tensor."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    is_stacked: bool


_VJEPA2_BLOCK = {
    "norm1": ("norm1",),
    "attn.qkv": ("attention.query", "attention.key", "attention.value"),
    "attn.proj": ("attention.proj",),
    "norm2": ("norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_DINOV2_BLOCK = _VJEPA2_BLOCK | {
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "ls1.gamma": ("layer_scale1.lambda1",),
    "ls2.gamma": ("layer_scale2.lambda1",),
}
_POOLER_BLOCK = {
    "norm1": ("layer_norm1",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
    "norm2": ("layer_norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_CROSS, _THEIR_CROSS = "pooler.cross_attention_block", "pooler.cross_attention_layer"

TASK = "action"
"""The name of the one task of a probe that was read from such a file, which does not name it."""


def encoder_part(prefix: str = "") -> Part:
    """V-JEPA 2's encoder; `prefix` is `vjepa2.` inside of a file for classification."""
    home = f"{prefix}encoder"
    names = {"patch_embed.proj": (f"{home}.embeddings.patch_embeddings.proj",), "norm": (f"{home}.layernorm",)}
    return Part((f"{home}.",), names, ("blocks", f"{home}.layer"), _VJEPA2_BLOCK)


def masked_predictor_part(prefix: str = "") -> Part:
    """V-JEPA 2's masked predictor; `prefix` as for the encoder."""
    home = f"{prefix}predictor"
    names = {
        "predictor_embed": (f"{home}.embeddings.predictor_embeddings",),
        "predictor_norm": (f"{home}.layernorm",),
        "predictor_proj": (f"{home}.proj",),
    }
    mask_tokens = ("mask_tokens", f"{home}.embeddings.mask_tokens")
    return Part((f"{home}.",), names, ("predictor_blocks", f"{home}.layer"), _VJEPA2_BLOCK, mask_tokens)


def probe_part(task: str = TASK) -> Part:
    """The attentive pooler and the classifier of one task."""
    names = {
        "pooler.query_tokens": ("pooler.query_tokens",),
        f"{_CROSS}.norm1": (f"{_THEIR_CROSS}.layer_norm1",),
        f"{_CROSS}.xattn.q": (f"{_THEIR_CROSS}.cross_attn.q_proj",),
        f"{_CROSS}.xattn.kv": (f"{_THEIR_CROSS}.cross_attn.k_proj", f"{_THEIR_CROSS}.cross_attn.v_proj"),
        f"{_CROSS}.norm2": (f"{_THEIR_CROSS}.layer_norm2",),
        f"{_CROSS}.mlp.fc1": (f"{_THEIR_CROSS}.mlp.fc1",),
        f"{_CROSS}.mlp.fc2": (f"{_THEIR_CROSS}.mlp.fc2",),
        f"{task}_classifier": ("classifier",),
    }
    blocks = ("pooler.blocks", "pooler.self_attention_layers")
    return Part(("pooler.", "classifier."), names, blocks, _POOLER_BLOCK)


def backbone_part() -> Part:
    """DINOv2."""
    names = {
        "cls_token": ("embeddings.cls_token",),
        "pos_embed": ("embeddings.position_embeddings",),
        "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
        "norm": ("layernorm",),
    }
    return Part(("embeddings.", "encoder.", "layernorm."), names, ("blocks", "encoder.layer"), _DINOV2_BLOCK)


def groups(part: Part, names: Iterable[str]) -> list[Group]:
    """Which of our parameters, all given by name, go with which keys of the file."""
    found: list[Group] = []
    listed = tuple(name for name in names if part.stacked and name.startswith(f"{part.stacked[0]}."))
    for name in names:
        theirs = part.theirs(name)
        assert theirs, f"the table does not name {name}"
        if name not in listed:
            found.append(Group((name,), theirs, is_stacked=False))
        elif name == listed[0]:
            found.append(Group(listed, theirs, is_stacked=True))
    return found


def their_shapes(part: Part, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes that the file must have, for parameters of ours with these shapes."""
    expected: dict[str, tuple[int, ...]] = {}
    for group in groups(part, shapes):
        shape = shapes[group.ours[0]]
        if group.is_stacked:
            expected[group.theirs[0]] = (len(group.ours), *shape)
        else:
            expected |= dict.fromkeys(group.theirs, (shape[0] // len(group.theirs), *shape[1:]))
    return expected


def to_ours(part: Part, names: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with these names, out of the file's tensors. Values are copied bit for bit."""
    state: dict[str, Tensor] = {}
    for group in groups(part, names):
        if group.is_stacked:
            whole = tensors[group.theirs[0]].unbind()
            state |= {name: tensor.clone() for name, tensor in zip(group.ours, whole, strict=True)}
        elif len(group.theirs) == 1:
            state[group.ours[0]] = tensors[group.theirs[0]]
        else:
            state[group.ours[0]] = torch.cat([tensors[key] for key in group.theirs])
    return state


def to_theirs(part: Part, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors out of our state dict: the exact inverse of `to_ours`. No two share memory."""
    tensors: dict[str, Tensor] = {}
    for group in groups(part, state):
        if group.is_stacked:
            tensors[group.theirs[0]] = torch.stack([state[name] for name in group.ours])
        else:
            pieces = state[group.ours[0]].chunk(len(group.theirs))
            tensors |= {key: piece.clone() for key, piece in zip(group.theirs, pieces, strict=True)}
    return tensors


def _rename(table: Mapping[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    """A name that is in the table itself, or a leaf (weight, bias) of a layer that is."""
    if name in table:
        return table[name]
    layer, _, leaf = name.rpartition(".")
    return tuple(f"{other}.{leaf}" for other in table.get(layer, ()))


def _alone(table: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The other way round, without what is fused in ours."""
    return {theirs[0]: (name,) for name, theirs in table.items() if len(theirs) == 1}
