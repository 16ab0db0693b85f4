"""Reading a model's sizes off the shapes of its tensors.

Shapes under our names → the spec dataclass. A size that many tensors tell is decided by the majority, so that one wrong
tensor is the one that the strict load names afterwards, and not all others.
"""

import re
from collections import Counter
from collections.abc import Mapping
from math import isqrt
from typing import Literal

from hwm.errors import WeightsError
from hwm.models.causal_stack import CausalStackSpec
from hwm.models.dinov2 import DINOv2Spec
from hwm.models.gazelle import GazelleSpec
from hwm.models.masked_predictor import MaskedPredictorSpec
from hwm.models.probe import ProbeSpec
from hwm.models.vjepa2 import EncoderSpec
from hwm.weights.remap import (
    CAUSAL_STACK_HEADS,
    DINOV2_HEADS,
    MASK_TOKENS,
    MASKED_PREDICTOR_HEADS,
    PROBE_TASKS,
    VJEPA2_HEADS,
)

Shapes = Mapping[str, tuple[int, ...]]


def encoder_spec(shapes: Shapes, num_heads: int | None) -> EncoderSpec:
    """Sizes of a V-JEPA 2 encoder; `num_heads` None takes the published number for its width."""
    norms = r"(blocks\.\d+\.norm[12]|norm|norms_block\.\d+)\.(weight|bias)"
    width, depth, ratio = _trunk(shapes, r"blocks\.(\d+)\.", norms)
    version = _version(shapes, "norms_block.", "patch_embed_img.", "img_mod_embed", "video_mod_embed")
    kernel = _shape(shapes, "patch_embed.proj.weight", 5)
    if kernel[3] != kernel[4]:
        raise _bad_shape("patch_embed.proj.weight", "square patches", kernel)
    heads = _heads(width, num_heads, VJEPA2_HEADS)
    return EncoderSpec(width, depth, heads, ratio, patch_size=kernel[3], tubelet_size=kernel[2], version=version)


def masked_predictor_spec(
    shapes: Shapes, num_heads: int | None, num_mask_tokens: int | None = None
) -> MaskedPredictorSpec:
    """Sizes of a masked predictor of V-JEPA 2 or 2.1; None takes the published number of mask tokens, never a count."""
    width, depth, ratio = _predictor_trunk(shapes)
    heads = _heads(width, num_heads, MASKED_PREDICTOR_HEADS)
    version = _version(shapes, "predictor_proj_context.", "img_mod_embed", "video_mod_embed")
    tokens = num_mask_tokens or MASK_TOKENS[version]
    if version == "2":
        return MaskedPredictorSpec(_in_width(shapes), width, depth, heads, tokens, ratio)
    out_places = {r"predictor_proj(_context)?\.(weight|bias)": 0}
    if not any(key.startswith(("predictor_embed.0.", "predictor_embed.2.")) for key in shapes):
        in_width = _shape(shapes, "predictor_embed.weight", 2)[1]
        out_width = _vote(shapes, "the width of a prediction", out_places)
        return MaskedPredictorSpec(in_width, width, depth, heads, tokens, ratio, version, 1, out_width)
    places = {r"predictor_embed\.0\.(weight|bias)": 0, r"predictor_embed\.2\.weight": 1}
    in_width = _vote(shapes, "the latent width", places)
    joined = _vote(shapes, "the width of all levels", out_places | {r"predictor_embed\.0\.weight": 1})
    return MaskedPredictorSpec(in_width, width, depth, heads, tokens, ratio, version, joined // in_width)


def causal_stack_spec(shapes: Shapes, num_heads: int | None) -> CausalStackSpec:
    """Sizes of a causal stack; `num_heads` None takes V-JEPA 2-AC's number for its width."""
    width, depth, ratio = _predictor_trunk(shapes)
    return CausalStackSpec(_in_width(shapes), width, depth, _heads(width, num_heads, CAUSAL_STACK_HEADS), ratio)


def dinov2_spec(shapes: Shapes, num_heads: int | None) -> DINOv2Spec:
    """Sizes of a DINOv2 encoder; `num_heads` None takes the published number for its width."""
    width, depth, ratio = _trunk(shapes, r"blocks\.(\d+)\.", r"(blocks\.\d+\.norm[12]|norm)\.(weight|bias)")
    kernel, positions = _shape(shapes, "patch_embed.proj.weight", 4), _shape(shapes, "pos_embed", 3)
    side = isqrt(positions[1] - 1) if positions[1] > 0 else 0
    if kernel[2] != kernel[3]:
        raise _bad_shape("patch_embed.proj.weight", "square patches", kernel)
    if 1 + side * side != positions[1] or side == 0:
        raise _bad_shape("pos_embed", "1 + a square number of positions", positions)
    return DINOv2Spec(width, depth, _heads(width, num_heads, DINOV2_HEADS), side, kernel[2], ratio)


def gazelle_spec(shapes: Shapes, num_heads: int) -> GazelleSpec:
    """Sizes of a Gaze-LLE decoder; it is the in/out variant where any key of that variant is there."""
    width, depth, ratio = _trunk(shapes, r"transformer\.(\d+)\.", r"transformer\.\d+\.norm[12]\.(weight|bias)")
    positions = _shape(shapes, "pos_embed", 3)
    if positions[1] != positions[2]:
        raise _bad_shape("pos_embed", "a square grid", positions)
    inout = any(key.startswith("inout_") for key in shapes)
    return GazelleSpec(width, depth, num_heads, ratio, (positions[1], positions[2]), inout=inout)


def probe_spec(shapes: Shapes, num_heads: int) -> ProbeSpec:
    """Sizes of an attentive probe.

    Raises:
        WeightsError: several tasks whose order nothing tells.
    """
    width = _vote(shapes, "the width", {r"pooler\..*norm[12]\.(weight|bias)": 0})
    depth = 1 + _count_blocks(shapes, r"pooler\.blocks\.(\d+)\.")
    found = {match[1] for key in shapes if (match := re.fullmatch(r"(\w+)_classifier\.(weight|bias)", key))}
    tasks = [task for task in PROBE_TASKS if task in found] if len(found) > 1 else sorted(found)
    if not tasks or set(tasks) != found:
        raise WeightsError(
            "the probe's tasks are not known", expected=f"one <task>_classifier, or some of {PROBE_TASKS}",
            found=", ".join(sorted(f"{task}_classifier" for task in found)) or "no classifier",
        )  # fmt: skip
    classes = {task: _vote(shapes, f"classes of {task}", {rf"{task}_classifier\.(weight|bias)": 0}) for task in tasks}
    queries = _shape(shapes, "pooler.query_tokens", 3)[1]
    return ProbeSpec(width, num_heads, depth, queries, classes)


def _trunk(shapes: Shapes, blocks: str, norms: str) -> tuple[int, int, float]:
    """Width, depth and MLP ratio of a transformer."""
    width, depth = _vote(shapes, "the width", {norms: 0}), _count_blocks(shapes, blocks)
    hidden = _vote(
        shapes,
        "the MLP's width",
        {rf"{blocks}mlp\.fc1\.bias": 0, rf"{blocks}mlp\.fc1\.weight": 0, rf"{blocks}mlp\.fc2\.weight": 1},
    )
    if depth == 0 or width == 0:
        raise WeightsError("the file holds no transformer block", expected=f"keys like {blocks}", found="none")
    return width, depth, hidden / width


def _version(shapes: Shapes, *of_version_2_1: str) -> Literal["2", "2.1"]:
    """V-JEPA 2.1 where any of the keys is there that only 2.1 has; a file with some of them alone is then refused."""
    return "2.1" if any(key.startswith(of_version_2_1) for key in shapes) else "2"


def _predictor_trunk(shapes: Shapes) -> tuple[int, int, float]:
    norms = r"predictor_(blocks\.\d+\.norm[12]|norm)\.(weight|bias)"
    return _trunk(shapes, r"predictor_blocks\.(\d+)\.", norms)


def _in_width(shapes: Shapes) -> int:
    places = {r"predictor_embed\.weight": 1, r"predictor_proj\.weight": 0, r"predictor_proj\.bias": 0}
    return _vote(shapes, "the latent width", places)


def _count_blocks(shapes: Shapes, pattern: str) -> int:
    numbers = {int(match[1]): key for key in shapes if (match := re.match(pattern, key))}
    if not numbers:
        return 0
    depth = max(numbers) + 1
    if depth > len(shapes):
        key = numbers[depth - 1]
        raise WeightsError(f"there cannot be a block {depth - 1}", found=f"{key} in a file of {len(shapes)} tensors")
    return depth


def _vote(shapes: Shapes, what: str, places: Mapping[str, int]) -> int:
    """The size that most tensors agree on; `places` maps a pattern of keys to the axis that tells it."""
    votes: dict[int, list[str]] = {}
    for key, shape in shapes.items():
        for pattern, axis in places.items():
            if re.fullmatch(pattern, key) and len(shape) > axis:
                votes.setdefault(shape[axis], []).append(key)
    if not votes:
        raise WeightsError(f"the file does not tell {what}", expected=f"a key like {next(iter(places))}", found="none")
    ranking = Counter({size: len(keys) for size, keys in votes.items()}).most_common()
    if len(ranking) > 1 and ranking[0][1] == ranking[1][1]:
        claims = "; ".join(f"{size} in {', '.join(keys[:3])}" for size, keys in votes.items())
        raise WeightsError(f"the file contradicts itself about {what}", expected="one size", found=claims)
    return ranking[0][0]


def _shape(shapes: Shapes, key: str, num_axes: int) -> tuple[int, ...]:
    shape = shapes.get(key)
    if shape is None:
        raise WeightsError(
            f"the file lacks the key {key}", expected=f"a tensor of {num_axes} axes", found="no such key"
        )
    if len(shape) != num_axes:
        raise _bad_shape(key, f"{num_axes} axes", shape)
    return shape


def _heads(width: int, num_heads: int | None, table: Mapping[int, int]) -> int:
    heads = num_heads if num_heads is not None else table.get(width)
    if heads is None:
        raise WeightsError(
            "the number of attention heads is not known: a file cannot tell it",
            expected=f"a published width ({', '.join(map(str, table))}) or num_heads",
            found=f"width {width}",
            fix="set num_heads",
        )
    return heads


def _bad_shape(key: str, expected: str, shape: tuple[int, ...]) -> WeightsError:
    return WeightsError(f"{key} has the wrong shape", expected=expected, found=str(list(shape)))
