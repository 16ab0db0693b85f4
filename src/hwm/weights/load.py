"""Reading models: our own folders, and files as their publishers released them. Always strict.

A path → a frozen module in `eval()` with float32 weights (`load_…`), or that module with the SHA-256 of its files and
an account of every key (`read_…`). Every key of a file becomes a parameter, is dropped by name, or is an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from hwm.errors import WeightsError
from hwm.models.causal_stack import CausalStack
from hwm.models.dense_predictor import build_masked_predictor
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.gazelle import GazeLLE, GazelleSpec
from hwm.models.masked_predictor import MaskedPredictor, MaskedPredictorSpec
from hwm.models.probe import AttentiveProbe, ProbeSpec
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
from hwm.models.vjepa21 import build_encoder
from hwm.weights import huggingface_read as huggingface
from hwm.weights import remap as tables
from hwm.weights import sizes
from hwm.weights.files import (
    MINI,
    PICKLE_SUFFIXES,
    SAFETENSORS_SUFFIX,
    WeightFile,
    check_is_file,
    hash_file,
    read_metadata,
)
from hwm.weights.foreign import flat_state, probe_state, vjepa2_state
from hwm.weights.ours import FORMAT, StoredModel, read_model, spec_from_plain, spec_to_plain, write_model
from hwm.weights.remap import Remapped
from hwm.weights.strict import Account, build_empty, check_state, checked_remap, fill, infer, shapes_of

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class LoadedWeights(Generic[ModuleT]):
    """A loaded model and where it came from."""

    module: ModuleT
    files: tuple[WeightFile, ...]
    account: Account

    @property
    def sha256(self) -> str:
        """SHA-256 of the (first) file in hex."""
        return self.files[0].sha256

    @property
    def path(self) -> Path:
        """The (first) file."""
        return self.files[0].path


def load_encoder(path: str | Path, key: str | None = None, num_heads: int | None = None) -> VJEPA2Encoder:
    """A frozen V-JEPA 2 encoder.

        encoder = load_encoder("vitl.pt")                      # normalised floats, see hwm.data.transforms.normalise
        encoder(video_BRFYX)                                   # clips [B, 3, F, Y, X] -> [B, T·N, D], T = F / 2
        encoder.encode_frames(frames_BRYX)                     # frames [B, 3, Y, X], each alone -> [B, N, D]

    Arguments and errors are those of `hwm.weights.load.read_encoder`: `mini`, a folder or file of ours (such as
    `<run>/encoder` of `hwm adapt`), of Hugging Face, or a released `.pt`. Names of `hwm weights list` are for recipes.
    """
    return read_encoder(path, key, num_heads).module


def load_masked_predictor(path: str | Path, num_heads: int | None = None) -> MaskedPredictor:
    """A frozen V-JEPA 2 or 2.1 masked predictor: latents of seen tokens [B, L, D] -> of hidden ones [B, M, D].

    Arguments and errors are those of `hwm.weights.load.read_masked_predictor`: a folder of ours or of Hugging Face, or
    a released `.pt`.
    """
    return read_masked_predictor(path, num_heads).module


def load_gazelle(
    decoder_path: str | Path, backbone_path: str | Path | None = None, num_heads: int | None = None
) -> GazeLLE:
    """A frozen Gaze-LLE with its backbone.

        gazelle = load_gazelle("gazelle_dinov2_vitb14_inout.pt", "dinov2_vitb14_pretrain.pth")
        gazelle(images_BRYX).heatmaps                          # normalised floats [B, 3, Y, X] -> [B, 64, 64], 0..1

    Arguments and errors are those of `hwm.weights.load.read_gazelle`: `mini`, a folder of ours (such as `<run>/gazelle`
    of `hwm adapt-gaze`), or a released decoder with its DINOv2. Names of `hwm weights list` are for recipes.
    """
    return read_gazelle(decoder_path, backbone_path, num_heads).module


def load_probe(path: str | Path, num_heads: int | None = None, index: int | None = None) -> AttentiveProbe:
    """A frozen attentive probe: features [B, L, D] -> logits [B, C] of each task, by its name.

    Arguments and errors are those of `hwm.weights.load.read_probe`: a folder of ours or of Hugging Face, or a `.pt` of
    V-JEPA 2's harness.
    """
    return read_probe(path, num_heads, index).module


def read_encoder(
    path: str | Path, key: str | None = None, num_heads: int | None = None
) -> LoadedWeights[VJEPA2Encoder]:
    """Read a V-JEPA 2 or 2.1 encoder.

    Args:
        path: `mini`, a folder or file of ours, or a released `.pt`.
        key: which model of a released `.pt`; None reads what upstream evaluates: `ema_encoder` where there is one,
            else `target_encoder`, else `encoder`.
        num_heads: attention heads, where the width is not a published one.

    Raises:
        WeightsError: the file is missing, damaged or refused, or one of its keys does not fit.
    """
    source = _resolve(path, "encoder")
    if huggingface.is_huggingface(source):
        return LoadedWeights(*huggingface.read_encoder(source, key, num_heads))
    if is_ours(source):
        _refuse_for_ours(source, key=key, num_heads=num_heads)
        stored = read_model(source, "encoder")
        spec = spec_from_plain(EncoderSpec, stored.spec)
        return _from_ours(stored, lambda: build_encoder(spec))
    model, state = vjepa2_state(source, (key,) if key else tables.VJEPA2_ENCODERS)
    mapped = checked_remap(source, state, tables.VJEPA2_ENCODER)
    spec = infer(source, mapped, lambda shapes: sizes.encoder_spec(shapes, num_heads))
    return _from_released(source, mapped, lambda: build_encoder(spec), model=model)


def read_masked_predictor(path: str | Path, num_heads: int | None = None) -> LoadedWeights[MaskedPredictor]:
    """Read the masked predictor of V-JEPA 2 or 2.1 from a folder of ours or the `predictor` of a released `.pt`.

    A file of 2.1 gives a `hwm.models.dense_predictor.DensePredictor`.

    Raises:
        WeightsError: the file is missing, damaged or refused, or one of its keys does not fit.
    """
    source = Path(path)
    if huggingface.is_huggingface(source):
        return LoadedWeights(*huggingface.read_masked_predictor(source, num_heads))
    if is_ours(source):
        _refuse_for_ours(source, num_heads=num_heads)
        stored = read_model(source, "masked_predictor")
        spec = spec_from_plain(MaskedPredictorSpec, stored.spec)
        return _from_ours(stored, lambda: build_masked_predictor(spec))
    model, state = vjepa2_state(source, ("predictor",))
    mapped = checked_remap(source, state, tables.VJEPA2_PREDICTOR)
    spec = infer(source, mapped, lambda shapes: sizes.masked_predictor_spec(shapes, num_heads))
    return _from_released(source, mapped, lambda: build_masked_predictor(spec), model=model)


def read_causal_stack(path: str | Path, num_heads: int | None = None) -> LoadedWeights[CausalStack]:
    """Read a block-causal stack with V-JEPA 2-AC's key names.

    Args:
        path: the released AC `.pt`, whose projections of action, state and extrinsics are dropped; or a `.safetensors`
            file with a projection of the condition, `scene_proj`, which is dropped too.
        num_heads: attention heads, where the width is not V-JEPA 2-AC's.

    Raises:
        WeightsError: the file is missing or damaged, or one of its keys does not fit.
    """
    source = Path(path)
    is_ac = source.suffix in PICKLE_SUFFIXES
    model, state = vjepa2_state(source, ("predictor",)) if is_ac else (None, flat_state(source))
    mapped = checked_remap(source, state, tables.AC_PREDICTOR if is_ac else tables.CAUSAL_STACK)
    spec = infer(source, mapped, lambda shapes: sizes.causal_stack_spec(shapes, num_heads))
    dropped = {name: (spec.width, None) if name.endswith("weight") else (spec.width,) for name in mapped.dropped}
    return _from_released(source, mapped, lambda: CausalStack(spec), dropped, model)


def read_gazelle(
    decoder_path: str | Path, backbone_path: str | Path | None = None, num_heads: int | None = None
) -> LoadedWeights[GazeLLE]:
    """Read Gaze-LLE.

    Args:
        decoder_path: `mini`, a folder or file of ours, or a released decoder `.pt`.
        backbone_path: the DINOv2 `.pth` that goes with a released decoder.
        num_heads: attention heads of the backbone, where its width is not a published one.

    Raises:
        WeightsError: a file is missing, damaged or refused, or one of its keys does not fit.
    """
    source = _resolve(decoder_path, "gazelle")
    if is_ours(source):
        _refuse_for_ours(source, backbone_path=backbone_path, num_heads=num_heads)
        stored = read_model(source, "gazelle")
        if set(stored.spec) != {"backbone", "decoder"}:
            raise WeightsError(f"{source}: wrong spec", expected="backbone and decoder", found=str(sorted(stored.spec)))
        ours = spec_from_plain(DINOv2Spec, stored.spec["backbone"])
        decoder = spec_from_plain(GazelleSpec, stored.spec["decoder"])
        return _from_ours(stored, lambda: GazeLLE(DINOv2(ours), decoder))
    if backbone_path is None:
        raise WeightsError(
            f"{source} is a decoder alone", expected="its DINOv2 backbone beside it", found="no backbone",
            fix="set gazelle.backbone to the DINOv2 .pth (dinov2_vitb14_pretrain.pth or dinov2_vitl14_pretrain.pth)",
        )  # fmt: skip
    return read_gazelle_decoder(source, read_backbone(backbone_path, num_heads))


def read_gazelle_decoder(path: str | Path, backbone: LoadedWeights[DINOv2]) -> LoadedWeights[GazeLLE]:
    """Read a released Gaze-LLE decoder onto a backbone that is already read (and is shared, not copied).

    Raises:
        WeightsError: the file is missing, damaged or refused, or one of its keys does not fit.
    """
    source = Path(path)
    mapped = checked_remap(source, flat_state(source), tables.GAZELLE_DECODER)
    spec = infer(source, mapped, lambda shapes: sizes.gazelle_spec(shapes, tables.GAZELLE_HEADS))
    empty = build_empty(lambda: GazeLLE(backbone.module, spec))
    of_decoder = {name: shape for name, shape in shapes_of(empty).items() if not name.startswith("backbone.")}
    tensors = check_state(source, mapped, of_decoder)
    tensors |= {f"backbone.{name}": tensor for name, tensor in backbone.module.state_dict().items()}
    account = Account(tuple(tensors), mapped.dropped | backbone.account.dropped)
    return LoadedWeights(fill(empty, tensors), (hash_file(source), *backbone.files), account)


def read_backbone(path: str | Path, num_heads: int | None = None) -> LoadedWeights[DINOv2]:
    """Read a DINOv2 encoder from a released `.pth`.

    Raises:
        WeightsError: the file is missing, damaged or refused, or one of its keys does not fit.
    """
    source = Path(path)
    if huggingface.is_huggingface(source):
        return LoadedWeights(*huggingface.read_backbone(source, num_heads))
    mapped = checked_remap(source, flat_state(source), tables.DINOV2)
    spec = infer(source, mapped, lambda shapes: sizes.dinov2_spec(shapes, num_heads))
    return _from_released(source, mapped, lambda: DINOv2(spec), {"mask_token": (1, spec.width)})


def read_probe(
    path: str | Path, num_heads: int | None = None, index: int | None = None
) -> LoadedWeights[AttentiveProbe]:
    """Read an attentive probe.

    Args:
        path: a folder of ours, a probe `.pt` of V-JEPA 2's harness, or a `.safetensors` file with its key names.
        num_heads: attention heads of the pooler, which most files do not tell; None is upstream's 16.
        index: which probe of a `.pt` that holds a whole sweep; None where it holds one.

    Raises:
        WeightsError: the file is missing or damaged, or one of its keys does not fit.
    """
    source = Path(path)
    if huggingface.is_huggingface(source):
        if index is not None:
            raise WeightsError(f"{source} holds one probe", expected="no index", found=str(index))
        return LoadedWeights(*huggingface.read_probe(source, num_heads))
    if is_ours(source):
        _refuse_for_ours(source, num_heads=num_heads, index=index)
        stored = read_model(source, "probe")
        ours = spec_from_plain(ProbeSpec, stored.spec)
        return _from_ours(stored, lambda: AttentiveProbe.from_spec(ours))
    model, state = probe_state(source, index)
    mapped = checked_remap(source, state, tables.PROBE)
    spec = infer(source, mapped, lambda shapes: sizes.probe_spec(shapes, num_heads or tables.PROBE_HEADS))
    return _from_released(source, mapped, lambda: AttentiveProbe.from_spec(spec), model=model)


def save_model(
    module: VJEPA2Encoder | MaskedPredictor | GazeLLE | AttentiveProbe,
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    notes: Mapping[str, Any] | None = None,
) -> WeightFile:
    """Write a model in our own format; the `load_…` function of its kind reads it back.

    Args:
        module: the model; its `spec` (of Gaze-LLE the backbone's too) is written along.
        path: folder, or file that ends in `.safetensors`.
        dtype: `torch.float16` halves the file; loading always gives float32.
        notes: remarks kept in `config.json`.

    Raises:
        WeightsError: a value is not finite or does not fit into `dtype`.
    """
    if isinstance(module, GazeLLE):
        kind = "gazelle"
        plain = {"backbone": spec_to_plain(module.backbone.spec), "decoder": spec_to_plain(module.spec)}
    else:
        kinds = {VJEPA2Encoder: "encoder", MaskedPredictor: "masked_predictor", AttentiveProbe: "probe"}
        kind = next(kind for base, kind in kinds.items() if isinstance(module, base))
        plain = spec_to_plain(module.spec)
    return write_model(Path(path), kind, plain, module.state_dict(), dtype, notes)


def is_ours(path: Path) -> bool:
    """Whether a path is in our own format: a folder is; a `.safetensors` file says so itself in its metadata.

    Raises:
        WeightsError: there is nothing, or a file that is neither `.safetensors` nor `.pt` nor `.pth`.
    """
    if path.suffix in PICKLE_SUFFIXES:
        return False
    if path.suffix == SAFETENSORS_SUFFIX:
        return read_metadata(path).get("format") == FORMAT
    if path.is_file():
        suffixes = ", ".join((SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES))
        raise WeightsError(
            f"{path} is no weight file", expected=f"a folder, or a file in {suffixes}", found=path.suffix
        )
    if not path.is_dir():
        check_is_file(path)
    return True


def _resolve(path: str | Path, kind: str) -> Path:
    """`mini` is the folder inside the package."""
    return Path(__file__).parent / MINI / kind if str(path) == MINI else Path(path)


def _refuse_for_ours(source: Path, **given: object) -> None:
    """Our format knows these things itself; a value for them would be ignored in silence."""
    unused = [f"{name}={value}" for name, value in given.items() if value is not None]
    if unused:
        raise WeightsError(
            f"{source} is in our own format and needs no such setting", found=", ".join(unused), fix="set it to null"
        )


def _from_released(
    source: Path,
    mapped: Remapped,
    build: Callable[[], ModuleT],
    dropped: Mapping[str, tuple[int | None, ...]] | None = None,
    model: str | None = None,
) -> LoadedWeights[ModuleT]:
    """Build, check and fill; `dropped`: see `check_state`, `model`: see `Account`."""
    empty = build_empty(build)
    tensors = check_state(source, mapped, shapes_of(empty), dropped)
    return LoadedWeights(fill(empty, tensors), (hash_file(source),), Account(tuple(tensors), mapped.dropped, model))


def _from_ours(stored: StoredModel, build: Callable[[], ModuleT]) -> LoadedWeights[ModuleT]:
    mapped = checked_remap(stored.file.path, stored.tensors, tables.OURS)
    empty = build_empty(build)
    tensors = check_state(stored.file.path, mapped, shapes_of(empty))
    return LoadedWeights(fill(empty, tensors), (stored.file,), Account(tuple(tensors), {}))
