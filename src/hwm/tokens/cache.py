"""Tokens of whole videos on disk: one safetensors file a video, read back by steps, memory-mapped.

A file's name holds two hashes: of everything that decides the numbers (weights, time grid, crop, precision, version of
this code) and of the video's bytes. Nothing stale can be read by mistake; a changed video or weight file gives new
names. Files are written aside and renamed. Tokens are float16: layer-normed values, relative error below 5e-4.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hwm.errors import CacheError
from hwm.models.world_model import TimeGrid
from hwm.tokens.observe import StepTokens

FORMAT = 1
"""Raised whenever the code that computes tokens changes their numbers."""

STORED_DTYPE = torch.float16


class TokenCache:
    """A folder of token files for one observer on one time grid.

    Args:
        folder: where files are kept; made if missing.
        grid: the time grid and resolutions.
        weights: name → sha256 of every weight file that decides the tokens.
    """

    def __init__(self, folder: Path, grid: TimeGrid, weights: Mapping[str, str]) -> None:
        identity: dict[str, Any] = {
            "format": FORMAT,
            "grid": asdict(grid),
            "weights": dict(sorted(weights.items())),
            "crop": "centre-square",
            "dtype": str(STORED_DTYPE),
        }
        self._identity = json.dumps(identity, sort_keys=True)
        self._folder = folder / hashlib.sha256(self._identity.encode()).hexdigest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._names: dict[str, Path] = {}

    def path(self, video: Path) -> Path:
        """File of a video's tokens (it may not exist yet); the video's bytes are hashed once a run."""
        known = self._names.get(str(video))
        if known is None:
            with video.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            known = self._names[str(video)] = self._folder / f"{digest[:32]}.safetensors"
        return known

    def write(self, video: Path, tokens: StepTokens) -> None:
        """Store the tokens of all steps of a video."""
        path = self.path(video)
        aside = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}.partial")
        tensors = {"z": tokens.z_SND.to(STORED_DTYPE).cpu().contiguous()}
        if tokens.scene_SNG is not None:
            tensors["scene"] = tokens.scene_SNG.to(STORED_DTYPE).cpu().contiguous()
        try:
            save_file(tensors, str(aside), metadata={"identity": self._identity, "video": video.name})
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def read(self, video: Path, first_step: int, num_steps: int) -> StepTokens:
        """Tokens of the steps `first_step` … `first_step + num_steps` − 1 as float32.

        Raises:
            CacheError: the file is damaged, is not this cache's, or the steps lie outside the video.
        """
        path = self.path(video)
        try:
            with safe_open(str(path), framework="pt") as file:
                if (file.metadata() or {}).get("identity") != self._identity:
                    raise CacheError(f"token file {path} belongs to other weights or settings", fix=f"rm {path}")
                z = file.get_slice("z")
                total = z.get_shape()[0]
                if not 0 <= first_step <= first_step + num_steps <= total:
                    raise CacheError(
                        f"steps {first_step}..{first_step + num_steps - 1} of {video} were asked for",
                        expected=f"steps within 0..{total - 1}",
                    )
                steps = slice(first_step, first_step + num_steps)
                scene = file.get_slice("scene")[steps].float() if "scene" in file.keys() else None  # noqa: SIM118
                return StepTokens(z[steps].float(), scene)
        except (SafetensorError, OSError) as error:
            raise CacheError(f"cannot read token file {path}: {error}", fix=f"rm {path}, and run again") from error
