"""What a benchmark is given: sizes, rounds, and where the peers are."""

import subprocess
import sys
import tarfile
import types
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwm.errors import ConfigError
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder


@dataclass(frozen=True)
class Context:
    """How to run.

    Attributes:
        quick: tiny sizes, to see that everything runs; its figures mean nothing.
        rounds: interleaved rounds of a short comparison; long ones take fewer.
        scratch: an empty folder.
        upstream: checkout of facebookresearch/vjepa2, or None.
        gazelle: checkout or bare repository of fkryan/gazelle, or None.
    """

    quick: bool
    rounds: int
    scratch: Path
    upstream: Path | None = None
    gazelle: Path | None = None

    @property
    def long_rounds(self) -> int:
        """Rounds of a comparison whose calls take seconds."""
        return max(2, self.rounds // 2)

    def encoder_spec(self) -> EncoderSpec:
        """ViT-L, or a small encoder when quick."""
        return EncoderSpec(128, 2, 2) if self.quick else EncoderSpec(1024, 24, 16)


def random_encoder(spec: EncoderSpec) -> VJEPA2Encoder:
    """A frozen encoder with random weights, large enough that every part of it shows in the output."""
    torch.manual_seed(0)
    encoder = VJEPA2Encoder(spec)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return encoder.requires_grad_(False).eval()


def random_video(frames: int, side: int, clips: int = 1) -> Tensor:
    """Pictures [B, 3, F, side, side] that look like noise."""
    return torch.randn(clips, 3, frames, side, side, generator=torch.Generator().manual_seed(1))


def upstream_module(checkout: Path, name: str) -> Any:
    """A module of upstream's V-JEPA 2 checkout, e.g. `src.models.vision_transformer`.

    Raises:
        ConfigError: it cannot be imported from there.
    """
    _stub_drop_path()
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        raise ConfigError(
            f"{name} cannot be imported from {checkout}", found=str(error), fix="--upstream CHECKOUT_OF_VJEPA2"
        ) from error


def gazelle_source(repository: Path, scratch: Path) -> Path:
    """A folder with upstream's `gazelle` package: the checkout itself, or a bare repository's files unpacked.

    Raises:
        ConfigError: there is no such package.
    """
    if (repository / "gazelle" / "model.py").is_file():
        return repository
    archive = subprocess.run(
        ["git", "-C", str(repository), "archive", "HEAD", "gazelle"], capture_output=True, check=False
    )
    if archive.returncode:
        raise ConfigError(f"{repository} has no package `gazelle`", fix="--gazelle CHECKOUT_OF_GAZELLE")
    target = scratch / "gazelle-upstream"
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(target, filter="data")
    return target


def _stub_drop_path() -> None:
    """Upstream imports timm for one function that evaluation never calls; timm itself is not needed."""
    try:
        __import__("timm")
    except ImportError:
        layers = types.ModuleType("timm.models.layers")
        layers.__dict__["drop_path"] = lambda x, drop_prob=0.0, training=False: x
        sys.modules |= {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models")}
        sys.modules["timm.models.layers"] = layers
