"""Reading models from Hugging Face's layout: a `.safetensors` file, or a folder as on the Hub, sharded or not.

A path → the module asked for, strict to the key. All models of a file are checked by name and shape, so that a key
that belongs to none of them is found whichever model is read. Heads come from `config.json`, else from the caller or
the table of published widths. Messages name keys as the file does. The tables are in `huggingface`.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from hwm.errors import WeightsError
from hwm.models.dinov2 import DINOv2
from hwm.models.masked_predictor import MaskedPredictor
from hwm.models.probe import AttentiveProbe
from hwm.models.vjepa2 import VJEPA2Encoder
from hwm.weights import huggingface as names
from hwm.weights import huggingface_config as configs
from hwm.weights import sizes
from hwm.weights.files import SAFETENSORS_SUFFIX, WeightFile, hash_file, read_json, read_keys, read_safetensors
from hwm.weights.huggingface import Part
from hwm.weights.huggingface_config import Claim, RatioClaim
from hwm.weights.ours import CONFIG_NAME, MAX_CONFIG_BYTES, TENSORS_NAME
from hwm.weights.remap import DINOV2, MASK_TOKENS, PROBE_HEADS, Layout, Remapped
from hwm.weights.strict import (
    Account,
    build_empty,
    check_names_and_shapes,
    check_state,
    checked_remap,
    fill,
    infer,
    shapes_of,
)

INDEX_NAME = f"{TENSORS_NAME}.index.json"
MAX_INDEX_BYTES = 4 << 20
MASK_TOKEN, _CLASS_TOKEN = "embeddings.mask_token", "embeddings.cls_token"
_OF_VJEPA2 = re.compile(r"(vjepa2\.)?(encoder|predictor)\.(layer|embeddings)\.|pooler\.cross_attention_layer\.")
_OF_DINOV2 = re.compile(r"embeddings\.(patch_embeddings\.|position_embeddings$)")

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class _Source(NamedTuple):
    """All tensors of a file or folder. `config` is empty and `config_path` None where there is no `config.json`."""

    path: Path
    tensors: dict[str, Tensor]
    tensor_paths: tuple[Path, ...]
    config: dict[str, object]
    config_path: Path | None


class _Model(NamedTuple):
    """One model that a file may hold: its table, how to build it from the file's shapes, and what a config may say.

    `build` gets shapes under our names and gives the empty module and the claims.
    """

    what: str
    part: Part
    build: Callable[[dict[str, tuple[int, ...]]], tuple[nn.Module, list[Claim | RatioClaim]]]


def is_huggingface(path: str | Path) -> bool:
    """Whether a path is laid out as Hugging Face's: by the config's `model_type`, or by the names of the tensors."""
    path = Path(path)
    if path.is_dir():
        if (path / INDEX_NAME).is_file():
            return True
        if (path / CONFIG_NAME).is_file():
            return _has_model_type(path / CONFIG_NAME)
        path = path / TENSORS_NAME
    if path.suffix != SAFETENSORS_SUFFIX or not path.is_file():
        return False
    return any(_OF_VJEPA2.match(key) or _OF_DINOV2.match(key) for key in read_keys(path))


def read_encoder(
    path: str | Path, key: str | None = None, num_heads: int | None = None
) -> tuple[VJEPA2Encoder, tuple[WeightFile, ...], Account]:
    """The encoder of a `VJEPA2Model` or `VJEPA2ForVideoClassification`.

    Args:
        path: file or folder.
        key: must be None; such a file holds one encoder.
        num_heads: attention heads, where neither `config.json` nor a published width tells them.

    Returns:
        The frozen module, the files it came from, and what became of their keys.

    Raises:
        WeightsError: a file is missing or damaged, a key does not fit, or the config contradicts the tensors.
    """
    source = _read(path, configs.VJEPA2)
    if key is not None:
        raise WeightsError(f"{path} holds one encoder", expected="no key", found=repr(key), fix="set key to null")
    models = _vjepa2_models(source, {"encoder": num_heads})
    return _fill_one(source, models, "encoder", VJEPA2Encoder, Layout(("",), {}))


def read_masked_predictor(
    path: str | Path, num_heads: int | None = None
) -> tuple[MaskedPredictor, tuple[WeightFile, ...], Account]:
    """The predictor of a `VJEPA2Model` or `VJEPA2ForVideoClassification`; see `read_encoder`."""
    source = _read(path, configs.VJEPA2)
    models = _vjepa2_models(source, {"predictor": num_heads})
    return _fill_one(source, models, "predictor", MaskedPredictor, Layout(("",), {}))


def read_probe(
    path: str | Path, num_heads: int | None = None
) -> tuple[AttentiveProbe, tuple[WeightFile, ...], Account]:
    """The pooler and classifier of a `VJEPA2ForVideoClassification`; its one task is called `action`.

    Its layer norms keep upstream's epsilon of 1e-5, with which these probes were trained; `transformers` takes the
    config's 1e-6, made for the encoder, for the pooler too.
    """
    source = _read(path, configs.VJEPA2)
    models = _vjepa2_models(source, {"probe": num_heads})
    return _fill_one(source, models, "probe", AttentiveProbe, Layout(("",), {}))


def read_backbone(path: str | Path, num_heads: int | None = None) -> tuple[DINOv2, tuple[WeightFile, ...], Account]:
    """DINOv2 from a `Dinov2Model`; see `read_encoder`.

    Our module resizes the learned positions as upstream's hub does, `transformers` without its offset of 0.1: away
    from the trained size the features differ.
    """
    source = _read(path, configs.DINOV2)
    heads = configs.num_heads(source.config_path, source.config, "num_attention_heads", num_heads)

    def build(shapes: dict[str, tuple[int, ...]]) -> tuple[nn.Module, list[Claim | RatioClaim]]:
        spec = sizes.dinov2_spec(shapes, heads)
        return build_empty(lambda: DINOv2(spec)), configs.backbone_claims(spec)

    reason = DINOV2.dropped["mask_token"]
    required = (MASK_TOKEN,) if source.config.get("use_mask_token", True) else ()
    models = [_Model("DINOv2", names.backbone_part(), build)]
    return _fill_one(source, models, "DINOv2", DINOv2, Layout(("",), {MASK_TOKEN: reason}, required))


def _vjepa2_models(source: _Source, heads: Mapping[str, int | None]) -> list[_Model]:
    """The three models that a V-JEPA 2 file may hold; `heads` names the one to read and the caller's heads for it."""
    prefix = "vjepa2." if any(key.startswith("vjepa2.") for key in source.tensors) else ""
    num_mask_tokens = MASK_TOKENS["2"]
    if source.config_path is not None:
        num_mask_tokens = configs.whole(source.config_path, source.config, "pred_num_mask_tokens") or MASK_TOKENS["2"]

    def heads_of(what: str, field: str) -> int | None:
        told = configs.num_heads(source.config_path, source.config, field, heads.get(what))
        # The heads of a model that is not read, and only checked by shape, do not matter.
        return told if told is not None or what in heads else 1

    def encoder(shapes: dict[str, tuple[int, ...]]) -> tuple[nn.Module, list[Claim | RatioClaim]]:
        spec = sizes.encoder_spec(shapes, heads_of("encoder", "num_attention_heads"))
        return build_empty(lambda: VJEPA2Encoder(spec)), configs.encoder_claims(spec, f"{prefix}encoder.")

    def predictor(shapes: dict[str, tuple[int, ...]]) -> tuple[nn.Module, list[Claim | RatioClaim]]:
        spec = sizes.masked_predictor_spec(shapes, heads_of("predictor", "pred_num_attention_heads"), num_mask_tokens)
        claims = configs.masked_predictor_claims(spec, f"{prefix}predictor.")
        return build_empty(lambda: MaskedPredictor(spec)), claims

    def probe(shapes: dict[str, tuple[int, ...]]) -> tuple[nn.Module, list[Claim | RatioClaim]]:
        spec = sizes.probe_spec(shapes, heads_of("probe", "num_attention_heads") or PROBE_HEADS)
        return build_empty(lambda: AttentiveProbe.from_spec(spec)), configs.probe_claims(spec)

    return [
        _Model("encoder", names.encoder_part(prefix), encoder),
        _Model("predictor", names.masked_predictor_part(prefix), predictor),
        _Model("probe", names.probe_part(), probe),
    ]


def _fill_one(
    source: _Source, models: list[_Model], wanted: str, module_type: type[ModuleT], layout: Layout
) -> tuple[ModuleT, tuple[WeightFile, ...], Account]:
    """Check all models of a file, and fill one of them."""
    mapped = checked_remap(source.path, source.tensors, layout)
    expected: dict[str, tuple[int, ...]] = {}
    claims: list[Claim | RatioClaim] = []
    chosen: tuple[nn.Module, Part] | None = None
    for model in models:
        there = [key for key in mapped.tensors if key.startswith(model.part.homes)]
        if not there and model.what != wanted:
            continue
        module, of_model = _build(source, model, {key: mapped.tensors[key] for key in there})
        expected |= names.their_shapes(model.part, shapes_of(module))
        claims += of_model
        if model.what == wanted:
            chosen = module, model.part
    assert chosen is not None
    dropped = {MASK_TOKEN: (1, expected[_CLASS_TOKEN][-1])} if MASK_TOKEN in mapped.dropped else None
    check_names_and_shapes(source.path, mapped, expected, dropped)
    if source.config_path is not None:
        configs.check_claims(source.config_path, source.config, claims)
    module, part = chosen
    assert isinstance(module, module_type)
    ours, theirs = shapes_of(module), names.their_shapes(part, shapes_of(module))
    of_part = Remapped("", {key: mapped.tensors[key] for key in theirs}, {}, {}, Layout(("",), {}))
    state = names.to_ours(part, ours, check_state(source.path, of_part, theirs))
    others = {key: f"not of the {wanted}: it is another model of this file" for key in expected if key not in theirs}
    files = tuple(hash_file(path) for path in source.tensor_paths)
    return fill(module, state), files, Account(tuple(ours), mapped.dropped | others)


def _build(source: _Source, model: _Model, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, list[Claim | RatioClaim]]:
    """The empty module of the sizes that the file tells; messages about our names are turned into the file's."""
    named = {model.part.ours(key) or key: tensor for key, tensor in tensors.items()}
    try:
        return infer(source.path, Remapped("", named, {}, {}, Layout(("",), {})), model.build)
    except WeightsError as error:

        def translated(text: str | None) -> str | None:
            if text is None:
                return None
            return re.sub(r"[\w.]+", lambda word: ", ".join(model.part.theirs(word[0])) or word[0], text)

        found = (translated(part) for part in (error.problem, error.expected, error.found, error.fix))
        problem, expected, what, fix = found
        raise WeightsError(problem or "", expected=expected, found=what, fix=fix) from error


def _read(path: str | Path, model_type: str) -> _Source:
    """All tensors of a file or folder, and the config beside them, if it is a Hugging Face one and of this type."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    config_path, config = None, {}
    if (path.is_dir() or path.name == TENSORS_NAME) and (folder / CONFIG_NAME).is_file():
        content = read_json(folder / CONFIG_NAME, MAX_CONFIG_BYTES)
        if not isinstance(content, dict):
            raise WeightsError(f"{folder / CONFIG_NAME} is no config", expected="an object", found=str(type(content)))
        config_path, config = folder / CONFIG_NAME, content
        configs.check_model_type(config_path, config, model_type)
    if path.is_dir() and (path / INDEX_NAME).is_file():
        tensors, tensor_paths = _read_shards(path)
    else:
        tensor_paths = (path / TENSORS_NAME if path.is_dir() else path,)
        tensors = read_safetensors(tensor_paths[0]).tensors
    return _Source(path, tensors, tensor_paths, config, config_path)


def _read_shards(folder: Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    """The tensors of all shards: exactly those that the index names, each in the shard that it names."""
    index = read_json(folder / INDEX_NAME, MAX_INDEX_BYTES)
    homes = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(homes, dict) or not homes:
        raise WeightsError(f"{folder / INDEX_NAME} is no index", expected="a weight_map of keys and files")
    for key, shard in homes.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard):
            raise WeightsError(
                f"{folder / INDEX_NAME}: {key} is in no file of this folder",
                expected="the name of a .safetensors file beside the index", found=repr(shard)[:200],
            )  # fmt: skip
    tensors: dict[str, Tensor] = {}
    shards = sorted(set(homes.values()))
    for shard in shards:
        there = read_safetensors(folder / shard).tensors
        wrong = sorted(key for key in {*homes, *there} if (homes.get(key) == shard) != (key in there))
        if wrong:
            raise WeightsError(
                f"{folder / shard} does not hold what {INDEX_NAME} says", expected="the keys of the index, no others",
                found=", ".join(wrong[:5]), fix="get all files again",
            )  # fmt: skip
        tensors |= there
    return tensors, tuple(folder / shard for shard in shards)


def _has_model_type(path: Path) -> bool:
    """A config of ours says `format`; one that cannot be read is left to our own reader's message."""
    try:
        config = read_json(path, MAX_CONFIG_BYTES)
    except WeightsError:
        return False
    return isinstance(config, dict) and "model_type" in config and "format" not in config
