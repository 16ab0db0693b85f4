"""`HumanWorldModel`: the world model as people use it, saved to and read from one folder.

A folder holds `model.safetensors` (encoder, Gazelle and predictor, float32) and `config.json` (their sizes, the time
grid, a format version, the sha256 of the tensors). Nothing in it is code. Reading is strict: every tensor must fit.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hwm.errors import WeightsError
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.gazelle import GazeLLE, GazelleSpec
from hwm.models.observer import Observer
from hwm.models.predictor import GazePredictor, PredictorSpec
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
from hwm.models.world_model import TimeGrid, WorldModel
from hwm.weights.files import WeightFile
from hwm.weights.ours import read_model, spec_from_plain, spec_to_plain, write_model

KIND = "world_model"


class HumanWorldModel(WorldModel):
    """Observe a clip, imagine what comes next; `WorldModel` with a place on disk.

    world = HumanWorldModel.from_pretrained("models/mine")
    seen = world.observe(frames_BTFRYX, gaze_frames_BTRYX)
    future = world.imagine(seen.z_SND, seen.scene_SNG, num_steps=4)

    A model of measured gaze (`world.grid.gaze`) has no Gazelle: its scene tokens are made from gaze points by
    `hwm.models.measured_gaze.gaze_point_scene`, with `known_BT` for the steps that have one.
    """

    def save_pretrained(self, folder: str | Path, notes: Mapping[str, Any] | None = None) -> WeightFile:
        """Write the whole model (frozen parts included) to a folder.

        Args:
            folder: where to; made if missing.
            notes: plain data to keep in `config.json`, e.g. which run made it.

        Raises:
            WeightsError: a weight is not finite.
        """
        gazelle = self.observer.gazelle
        spec = {
            "grid": asdict(self.grid),
            "encoder": spec_to_plain(self.observer.encoder.spec),
            "gazelle": None if gazelle is None else spec_to_plain(gazelle.spec),
            "backbone": None if gazelle is None else spec_to_plain(gazelle.backbone.spec),
            "predictor": spec_to_plain(self.predictor.spec),
        }
        return write_model(Path(folder), KIND, spec, self.state_dict(), torch.float32, notes)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "HumanWorldModel":
        """Read a model that `save_pretrained` wrote; float32, in `eval()`, without gradients.

        Raises:
            WeightsError: a file is missing or damaged, or its tensors do not fit its sizes.
        """
        stored = read_model(Path(folder), KIND)
        parts = {"grid", "encoder", "gazelle", "backbone", "predictor"}
        if set(stored.spec) != parts:
            raise WeightsError(f"{folder}: wrong spec", expected=str(sorted(parts)), found=str(sorted(stored.spec)))
        gazelle = None
        if stored.spec["gazelle"] is not None:
            backbone = DINOv2(spec_from_plain(DINOv2Spec, stored.spec["backbone"]))
            gazelle = GazeLLE(backbone, spec_from_plain(GazelleSpec, stored.spec["gazelle"]))
        encoder = VJEPA2Encoder(spec_from_plain(EncoderSpec, stored.spec["encoder"]))
        predictor = GazePredictor(spec_from_plain(PredictorSpec, stored.spec["predictor"]))
        world = cls(Observer(encoder, gazelle), predictor, spec_from_plain(TimeGrid, stored.spec["grid"]))
        expected, found = world.state_dict(), stored.tensors
        wrong = sorted(
            name
            for name in expected.keys() | found.keys()
            if name not in expected or name not in found or expected[name].shape != found[name].shape
        )
        if wrong:
            raise WeightsError(
                f"{folder}: {len(wrong)} tensors do not fit the sizes in config.json",
                expected="every tensor of the model, once, in its shape",
                found=", ".join(wrong[:5]),
            )
        world.load_state_dict({name: tensor.float() for name, tensor in found.items()}, strict=True)
        return world.requires_grad_(False).eval()
