"""`HumanWorldModel`: the world model as people use it, saved to and read from one folder, here or on the Hub.

A folder holds `model.safetensors` (encoder, Gazelle and predictor, float32) and `config.json` (their sizes, the time
grid, a format version, the sha256 of the tensors). Nothing in it is code. Reading is strict: every tensor must fit.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hwm.errors import WeightsError
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.gazelle import GazeLLE, GazelleSpec
from hwm.models.layers import set_precision
from hwm.models.observer import Observer
from hwm.models.predictor import GazePredictor, PredictorSpec
from hwm.models.vjepa2 import EncoderSpec
from hwm.models.vjepa21 import build_encoder
from hwm.models.world_model import TimeGrid, WorldModel
from hwm.weights.card import model_card
from hwm.weights.files import WeightFile
from hwm.weights.ours import read_model, spec_from_plain, spec_to_plain, write_model
from hwm.weights.remap import OURS
from hwm.weights.strict import build_empty, check_state, checked_remap, fill, shapes_of

KIND = "world_model"


class HumanWorldModel(WorldModel):
    """Observe a clip, imagine what comes next; `WorldModel` with a place on disk.

    world = HumanWorldModel.from_pretrained("models/mine")  # or "owner/name" on the Hugging Face Hub
    seen = world.observe(frames_BTFRYX, gaze_frames_BTRYX)  # normalised floats, `world.grid.fps` steps a second
    future = world.imagine(seen.z_SND, seen.scene_SNG, num_steps=4)  # future.z_BKND [B, 4, N, D]

    The README reads such frames from a video (`hwm.data.video.VideoReader`, `hwm.data.transforms.normalise`), and
    `hwm.load_stage1(RUN).world` is the world model of a run of stage 1.

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
    def from_pretrained(
        cls,
        path_or_repo_id: str | Path,
        revision: str | None = None,
        *,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        endpoint: str | None = None,
    ) -> "HumanWorldModel":
        """Read a model that `save_pretrained` or `push_to_hub` wrote; in `eval()`, without gradients.

        Its frozen parts compute in the precision of stage 1 (`world.grid`), the predictor in float32.

        Args:
            path_or_repo_id: a folder, or `owner/name` on the Hugging Face Hub. What exists here goes before the Hub.
            revision: branch, tag or commit on the Hub; None is the main branch.
            token: access token for the Hub; None takes that of `hf auth login`, if there is one.
            cache_dir: where downloads are kept; None is the Hub's own cache.
            local_files_only: take what was downloaded before and do not connect (as does `HF_HUB_OFFLINE=1`).
            endpoint: address of another Hub; None is huggingface.co or `HF_ENDPOINT`.

        Raises:
            WeightsError: there is neither such a folder nor such a repository, the Hub cannot be reached, a file is
                missing or damaged, or its tensors do not fit its sizes.
        """
        path = Path(path_or_repo_id)
        if path.exists() and revision is not None:
            raise WeightsError(
                f"{path} is here, and has no revisions", expected="no revision", found=f"revision {revision}",
                fix="set revision to None, or rename the local folder to read the one on the Hub",
            )  # fmt: skip
        if not path.exists() and isinstance(path_or_repo_id, str):
            from hwm.weights import hub  # half a second, which only those pay who need it

            if hub.is_repo_id(path_or_repo_id):
                access = hub.HubAccess(token, endpoint)
                path = hub.download(path_or_repo_id, revision, access, cache_dir, local_files_only)
        if (path / "checkpoints").is_dir():
            raise WeightsError(
                f"{path} is the folder of a run", expected="the folder of a saved model",
                fix="save it first: hwm.load_stage1(RUN).world.save_pretrained(FOLDER)",
            )  # fmt: skip
        stored = read_model(path, KIND)
        # Sizes first, without memory; then one copy of the weights.
        empty = build_empty(lambda: cls._of_spec(path, stored.spec))
        mapped = checked_remap(stored.file.path, stored.tensors, OURS)
        world = fill(empty, check_state(stored.file.path, mapped, shapes_of(empty)))
        set_precision(world.observer.encoder, world.grid.encoder_precision)
        if world.observer.gazelle is not None:
            set_precision(world.observer.gazelle, world.grid.gazelle_precision)
        return world

    def push_to_hub(
        self,
        repo_id: str,
        branch: str | None = None,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "A human world model",
        notes: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Write the whole model and its card to the Hugging Face Hub, in one commit.

        Args:
            repo_id: `owner/name`; made if there is none.
            branch: where to; made if there is none. None is the main branch.
            private: whether nobody else may see the repository; one that is public already is refused.
            token: access token with the right to write; None takes that of `hf auth login`.
            commit_message: first line of the commit.
            notes: plain data to keep in `config.json` and show in the card, e.g. which run made the model.
            endpoint: address of another Hub; None is huggingface.co or `HF_ENDPOINT`.

        Returns:
            Address of the commit.

        Raises:
            WeightsError: a weight is not finite, the Hub cannot be reached, or it refuses.
        """
        from hwm.weights import hub

        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, notes)
            (folder / hub.CARD_NAME).write_text(model_card(self, repo_id, notes), encoding="utf-8")
            access = hub.HubAccess(token, endpoint)
            return hub.upload(folder, repo_id, branch, private, commit_message, access)

    @classmethod
    def _of_spec(cls, path: Path, spec: Mapping[str, Any]) -> "HumanWorldModel":
        parts = {"grid", "encoder", "gazelle", "backbone", "predictor"}
        if set(spec) != parts:
            raise WeightsError(f"{path}: wrong spec", expected=str(sorted(parts)), found=str(sorted(spec)))
        gazelle = None
        if spec["gazelle"] is not None:
            backbone = DINOv2(spec_from_plain(DINOv2Spec, spec["backbone"]))
            gazelle = GazeLLE(backbone, spec_from_plain(GazelleSpec, spec["gazelle"]))
        encoder = build_encoder(spec_from_plain(EncoderSpec, spec["encoder"]))
        predictor = GazePredictor(spec_from_plain(PredictorSpec, spec["predictor"]))
        grid = spec_from_plain(TimeGrid, spec["grid"])
        try:
            return cls(Observer(encoder, gazelle, grid.gaze_control == "dinov2"), predictor, grid)
        except ValueError as error:
            raise WeightsError(f"{path}: its parts do not go together", found=str(error)) from error
