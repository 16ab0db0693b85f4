"""Which key of a released file is which parameter of ours: one table a format, and one pure function that applies it.

A state dict with the publisher's names → the same tensors under our names, and what was dropped by name and why.
Nothing is guessed from a key: what a table does not name stays as it is and the strict load refuses it if unknown.
"""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

_OUTSIDE = "(without "


class Layout(NamedTuple):
    """How a publisher names one model.

    Attributes:
        prefixes: what may stand before every key of a file (one of them, the same for all keys), longest first.
        dropped: keys that are not parameters of ours → why. They may be there or not.
        required: those of them that every released file has; a file without is damaged.
        renamed: the publisher's name → ours, where they differ.
    """

    prefixes: tuple[str, ...]
    dropped: Mapping[str, str]
    required: tuple[str, ...] = ()
    renamed: Mapping[str, str] = MappingProxyType({})


class Remapped(NamedTuple):
    """A state dict under our names.

    Attributes:
        prefix: what stood before every key in the file.
        tensors: our name → tensor.
        dropped: the file's name without prefix → why it is not used.
        dropped_tensors: the tensors of `dropped`.
    """

    prefix: str
    tensors: dict[str, Tensor]
    dropped: dict[str, str]
    dropped_tensors: dict[str, Tensor]
    layout: Layout

    def in_file(self, name: str) -> str:
        """What a parameter of ours, or a key that is none, is called in the file, for messages."""
        if name.startswith(_OUTSIDE):
            return name
        theirs = next((theirs for theirs, ours in self.layout.renamed.items() if ours == name), name)
        return self.prefix + theirs


# DistributedDataParallel adds `module.`, V-JEPA 2's wrapper for several clips adds `backbone.`.
_VJEPA2_PREFIXES = ("module.backbone.", "module.", "backbone.", "")

VJEPA2_ENCODER = Layout(_VJEPA2_PREFIXES, {"pos_embed": "sine positions; the model turns by RoPE"})
VJEPA2_PREDICTOR = Layout(_VJEPA2_PREFIXES, {"predictor_pos_embed": "sine positions; the model turns by RoPE"})
CAUSAL_STACK = Layout(
    ("module.", ""),
    {"scene_proj.weight": "projection of the condition; the stack takes it projected", "scene_proj.bias": "the same"},
    ("scene_proj.weight", "scene_proj.bias"),
)
_AC_INPUTS = ("action", "state", "extrinsics")
_NO_ACTIONS = "the stack is conditioned on gaze and takes no actions"
AC_PREDICTOR = Layout(
    _VJEPA2_PREFIXES,
    dropped={f"{name}_encoder.{part}": _NO_ACTIONS for name in _AC_INPUTS for part in ("weight", "bias")},
    required=tuple(f"{name}_encoder.{part}" for name in _AC_INPUTS for part in ("weight", "bias")),
)
PROBE_LABEL = "label"
"""The one task of upstream's classification probes, whose head is called `linear`."""
PROBE = Layout(
    ("module.", ""), {}, renamed={f"linear.{part}": f"{PROBE_LABEL}_classifier.{part}" for part in ("weight", "bias")}
)
DINOV2 = Layout(("",), {"mask_token": "stands in for hidden patches in pre-training alone"}, ("mask_token",))
GAZELLE_DECODER = Layout(("",), {})
OURS = Layout(("",), {})

# The top level of a V-JEPA 2 checkpoint: encoders, the one that upstream evaluates first; what else can be read; what
# is known and not needed.
VJEPA2_ENCODERS = ("ema_encoder", "target_encoder", "encoder")
VJEPA2_MODELS = (*VJEPA2_ENCODERS, "predictor")
VJEPA2_BESIDE = ("opt", "scaler", "epoch", "loss", "batch_size", "world_size", "lr")
PROBE_BESIDE = ("opt", "scaler", "epoch", "batch_size", "world_size")

# Attention heads cannot be read off a tensor; these are the published models' (width → heads).
VJEPA2_HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
DINOV2_HEADS = {384: 6, 768: 12, 1024: 16, 1536: 24}
MASKED_PREDICTOR_HEADS = {384: 12}
CAUSAL_STACK_HEADS = {1024: 16}
MASK_TOKENS = {"2": 10, "2.1": 8}
GAZELLE_HEADS = 8
PROBE_HEADS = 16
# Query i feeds task i: the order is upstream's, and a file does not keep it.
PROBE_TASKS = ("verb", "noun", "action")


def remap(state: Mapping[str, Tensor], layout: Layout) -> Remapped:
    """Strip the file's prefix and take out what is dropped by name. Keys without the prefix keep their full name."""
    prefix = common_prefix(state, layout.prefixes)
    tensors: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    dropped_tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        # A key outside of the prefix gets no new name, so that it cannot pass for a parameter.
        name = key.removeprefix(prefix) if key.startswith(prefix) else f"{_OUTSIDE}{prefix}) {key}"
        reason = layout.dropped.get(name)
        if reason is None:
            tensors[layout.renamed.get(name, name)] = tensor
        else:
            dropped[name] = reason
            dropped_tensors[name] = tensor
    return Remapped(prefix, tensors, dropped, dropped_tensors, layout)


def common_prefix(keys: Mapping[str, object], prefixes: tuple[str, ...]) -> str:
    """The prefix most keys have; each key counts for the longest one that fits it."""
    counts = Counter(next((p for p in prefixes if key.startswith(p)), "") for key in keys)
    return counts.most_common(1)[0][0] if counts else ""
