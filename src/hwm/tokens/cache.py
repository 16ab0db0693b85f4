"""Tokens of whole videos on disk: one safetensors file a video and part, read back by steps, memory-mapped.

Parts are the latents (`z`) and, where there is a Gazelle, its scene tokens and gaze weights (`scene`); models with and
without gaze share the latents. A file's place holds two hashes: of everything that decides the numbers (weights, time
grid, crop, precision, version of this code) and of the video's bytes. Nothing stale can be read by mistake; a changed
video or weight file gives new names. Files are written aside and renamed. Tokens are float16: layer-normed, relative
error below 5e-4.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hwm.data.content import content_sha256
from hwm.errors import CacheError
from hwm.models.world_model import TimeGrid
from hwm.tokens.observe import StepTokens

FORMAT = 3
"""Raised whenever the code that computes tokens changes their numbers."""

STORED_DTYPE = torch.float16


class TokenCache:
    """A folder of token files for one observer on one time grid.

    Args:
        folder: where files are kept; made if missing.
        grid: the time grid and resolutions; its Gazelle resolution says whether there are scene tokens.
        weights: `encoder`, and the files of Gazelle where there is one → sha256.
    """

    def __init__(self, folder: Path, grid: TimeGrid, weights: Mapping[str, str]) -> None:
        seen: dict[str, Any] = {
            "format": FORMAT,
            "fps": grid.fps,
            "step": grid.step,
            "crop": "centre-square",
            "dtype": str(STORED_DTYPE),
            "encoder": [weights["encoder"], grid.encoder_resolution],
        }
        identities = {"z": seen}
        if grid.gazelle_resolution is not None:
            files = {name: digest for name, digest in weights.items() if name != "encoder"}
            identities["scene"] = seen | {"gazelle": [files, grid.gazelle_resolution]}
            if grid.gaze_control == "dinov2":
                identities["scene"] |= {"scene": "dinov2"}
        self._identities = {part: json.dumps(identity, sort_keys=True) for part, identity in identities.items()}
        self._folders = {
            part: folder / f"{part}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
            for part, identity in self._identities.items()
        }
        self._digests: dict[str, str] = {}

    def holds(self, video: Path) -> bool:
        """Whether every part of a video is there."""
        return all(self._path(part, video).exists() for part in self._folders)

    def write(self, video: Path, tokens: StepTokens) -> None:
        """Store the tokens of all steps of a video; parts that are there already are left alone."""
        files = {"z": {"z": tokens.z_SND}}
        if tokens.scene_SNG is not None and tokens.gaze_SN is not None:
            files["scene"] = {"scene": tokens.scene_SNG, "gaze": tokens.gaze_SN}
        for part, tensors in files.items():
            path = self._path(part, video)
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.stem}.{os.getpid()}.partial")
            try:
                stored = {name: tensor.to(STORED_DTYPE).cpu().contiguous() for name, tensor in tensors.items()}
                save_file(stored, str(aside), metadata={"identity": self._identities[part], "video": video.name})
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)

    def read(self, video: Path, first_step: int, num_steps: int) -> StepTokens:
        """Tokens of the steps `first_step` … `first_step + num_steps` − 1 as float32.

        Raises:
            CacheError: a file is damaged, is not this cache's, or the steps lie outside the video.
        """
        steps = slice(first_step, first_step + num_steps)
        z = self._read_part("z", video, steps)["z"]
        if "scene" not in self._folders:
            return StepTokens(z, None, None)
        scene = self._read_part("scene", video, steps)
        return StepTokens(z, scene["scene"], scene["gaze"])

    def _read_part(self, part: str, video: Path, steps: slice) -> dict[str, Tensor]:
        path = self._path(part, video)
        try:
            with safe_open(str(path), framework="pt") as file:
                if (file.metadata() or {}).get("identity") != self._identities[part]:
                    raise CacheError(f"token file {path} belongs to other weights or settings", fix=f"rm {path}")
                stored = file.get_slice(part)
                total = stored.get_shape()[0]
                if not 0 <= steps.start <= steps.stop <= total:
                    raise CacheError(
                        f"steps {steps.start}..{steps.stop - 1} of {video} were asked for",
                        expected=f"steps within 0..{total - 1}",
                    )
                names = file.keys()
                return {name: file.get_slice(name)[steps].float() for name in names}
        except (SafetensorError, OSError) as error:
            raise CacheError(f"cannot read token file {path}: {error}", fix=f"rm {path}, and run again") from error

    def _path(self, part: str, video: Path) -> Path:
        """File of one part of a video; the video's bytes are hashed once a run."""
        digest = self._digests.get(str(video))
        if digest is None:
            digest = self._digests[str(video)] = content_sha256(video)
        return self._folders[part] / f"{digest[:32]}.safetensors"
