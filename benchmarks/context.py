"""What a benchmark is given: sizes, rounds, and where the peers are."""

import importlib
import importlib.util
import subprocess
import sys
import tarfile
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
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
        images: folder for plots, or None.
    """

    quick: bool
    rounds: int
    scratch: Path
    upstream: Path | None = None
    gazelle: Path | None = None
    images: Path | None = None

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
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    try:
        with stand_ins({"timm.models.layers": {"drop_path": lambda x, drop_prob=0.0, training=False: x}}):
            return importlib.import_module(name)
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


@contextmanager
def stand_ins(parts: Mapping[str, Mapping[str, object]]) -> Iterator[None]:
    """Inside, modules of libraries that are not installed can be imported, with the members that are given for them.

    Upstream imports such libraries for parts that evaluation hardly runs. On leaving nobody else finds the stand-ins.
    """
    added = []
    for name, members in parts.items():
        if importlib.util.find_spec(name.split(".")[0]) is not None and name.split(".")[0] not in added:
            continue
        steps = name.split(".")
        for depth in range(1, len(steps) + 1):
            path = ".".join(steps[:depth])
            if path not in sys.modules:
                sys.modules[path] = types.ModuleType(path)
                sys.modules[path].__spec__ = ModuleSpec(path, None)
                added.append(path)
                if depth > 1:
                    sys.modules[".".join(steps[: depth - 1])].__dict__[steps[depth - 1]] = sys.modules[path]
        sys.modules[name].__dict__.update(members)
    try:
        yield
    finally:
        for path in added:
            del sys.modules[path]
