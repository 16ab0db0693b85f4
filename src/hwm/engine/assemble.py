"""From a configuration to the modules of a run, and from a finished stage 1 to the world model that stage 2 uses.

Every weight file that is read, and what was chosen of it, is accounted for by a sha256; the predictor by the hash of
its tensors, so that stage 2 can prove that it runs stage 1's weights.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from safetensors import torch as safetensors
from torch import Tensor

from hwm.config import EncoderConfig, Gaze, GazelleConfig, PretrainConfig, VJEPA2BackboneConfig
from hwm.data.seen_videos import SeenVideos, read_seen
from hwm.engine.checkpoint import CHECKPOINTS, CheckpointStore, Rejected, verify
from hwm.engine.mean_scene import load_mean_scene
from hwm.engine.named_weights import weights_path
from hwm.engine.runlog import read_facts
from hwm.engine.runtime import seeded_weights
from hwm.errors import ConfigError, RunError
from hwm.models.gazelle import GazeLLE
from hwm.models.layers import set_precision
from hwm.models.masked_predictor import MaskedPredictor
from hwm.models.measured_gaze import SCENE_WIDTH
from hwm.models.observer import Observer
from hwm.models.predictor import GazePredictor, PredictorSpec
from hwm.models.vjepa2 import VJEPA2Encoder
from hwm.models.world_model import TimeGrid
from hwm.recipes import load_config
from hwm.weights.files import PICKLE_SUFFIXES, digest_of, hash_tensors
from hwm.weights.load import read_encoder, read_gazelle, read_masked_predictor
from hwm.weights.ours import CONFIG_NAME, TENSORS_NAME
from hwm.weights.pretrained import HumanWorldModel

PREDICTOR = "predictor"


class Assembled(NamedTuple):
    """A world model and the sha256 of every weight file behind its frozen parts."""

    world: HumanWorldModel
    weights: dict[str, str]


class Stage1(NamedTuple):
    """A trained world model."""

    world: HumanWorldModel
    weights: dict[str, str]
    """sha256 of the frozen parts' weight files, by name."""
    predictor_sha256: str
    """Hash of the predictor's tensors; the same as in stage 1's `run.json`."""
    source: Path
    """The checkpoint or saved model that was read."""
    seen: SeenVideos | None = None
    """What it was trained on; None where that is not recorded (a saved model, or a run of an older version)."""
    num_steps: int | None = None
    """Steps of the clips that it was trained on; None for a saved model."""
    warnings: tuple[str, ...] = ()
    """Why it may not be what its run was meant to become: a damaged checkpoint, or one before the end of training."""


class FrozenEncoder(NamedTuple):
    """An encoder, and the digest of its files and of what was chosen of them (`weights.files.digest_of`)."""

    module: VJEPA2Encoder
    sha256: str


def load_frozen_encoder(config: EncoderConfig) -> FrozenEncoder:
    """The encoder that a configuration names, frozen.

    Raises:
        WeightsError: missing, damaged, or not fitting.
    """
    loaded = read_encoder(weights_path(config.weights), config.key, config.num_heads)
    set_precision(loaded.module, config.precision)
    return FrozenEncoder(loaded.module, digest_of(loaded.files, config.key, config.num_heads))


def new_world(config: PretrainConfig) -> Assembled:
    """Frozen observer and a new predictor, whose initial weights are a function of the seed.

    Raises:
        WeightsError: a weight file is missing, damaged, or does not fit.
        ConfigError: the resolutions do not fit the patches.
    """
    encoder = load_frozen_encoder(config.encoder)
    weights = {"encoder": encoder.sha256}
    gazelle, scene_width = None, SCENE_WIDTH if config.gaze == "measured" else None
    if config.gaze == "estimated":
        gazelle, files = load_gazelle(config.gazelle)
        plain = config.gaze_control == "dinov2"
        scene_width = gazelle.backbone.spec.width if plain else gazelle.spec.width
        weights |= files
    encoder.module.spec.grid(config.encoder.resolution, config.encoder.resolution)
    sizes = config.predictor
    spec = PredictorSpec(
        encoder.module.spec.width, scene_width, sizes.width, sizes.depth, sizes.num_heads, sizes.mlp_ratio,
        scene_normed=config.gaze != "measured",
    )  # fmt: skip
    with seeded_weights(config.seed, PREDICTOR):
        predictor = GazePredictor(spec)
    resolution = None if gazelle is None else config.gazelle.resolution
    data, measured = config.data, config.gaze == "measured"
    grid = TimeGrid(
        data.fps, data.step, config.encoder.resolution, resolution, measured, config.gaze_control,
        config.encoder.precision, "32-true" if gazelle is None else config.gazelle.precision,
    )  # fmt: skip
    observer = Observer(encoder.module, gazelle, plain_features=config.gaze_control == "dinov2")
    return Assembled(HumanWorldModel(observer, predictor, grid), weights)


def load_stage1(path: str | Path) -> Stage1:
    """The frozen world model of a stage-1 run folder, one of its checkpoints, or a saved model's folder.

    Raises:
        RunError: nothing there, no whole checkpoint, or weight files that are not those of stage 1.
        WeightsError: a weight file is missing, damaged, or does not fit.
        DataError: the run's list of training videos is damaged.
    """
    path = Path(path)
    if (path / TENSORS_NAME).is_file() and (path / CONFIG_NAME).is_file():
        world = HumanWorldModel.from_pretrained(path)
        observer = {"encoder": hash_tensors(world.observer.encoder.state_dict())}
        if world.observer.gazelle is not None:
            observer["gazelle"] = hash_tensors(world.observer.gazelle.state_dict())
        return Stage1(world, observer, predictor_hash(world.predictor), path)
    run = path.parents[1] if path.parent.name == CHECKPOINTS else path
    if not (run / "config.yaml").is_file() or not (run / CHECKPOINTS).is_dir():
        elsewhere = f"; or run this where the path begins: it was looked for below {Path.cwd()}"
        raise RunError(
            f"{path} is no stage-1 run",
            expected=f"a run folder (config.yaml, {CHECKPOINTS}/), one of its checkpoints, or a saved model's folder",
            found=_what_is_at(path),
            fix="train one first: hwm pretrain CONFIG" + ("" if path.is_absolute() else elsewhere),
        )
    facts = read_facts(run)
    if not facts:
        raise RunError(
            f"{run / 'run.json'} is missing or damaged", expected="the record of stage 1, and of its weights",
            fix="go on with the stage-1 run, which writes it again: hwm pretrain CONFIG --resume",
        )  # fmt: skip
    config = load_config(PretrainConfig, run / "config.yaml")
    found = _read_predictor(run, None if run == path else path)
    world, weights = new_world(config)
    world.predictor.load_state_dict(found.state, strict=True)
    if world.grid.gaze_control == "mean":
        load_mean_scene(run, world.mean_scene_NG, facts.get("mean_scene_sha256"))
    recorded = facts.get("weights", {})
    changed = sorted(name for name, digest in weights.items() if recorded.get(name) != digest)
    if changed:
        raise RunError(
            f"the weight files of {run} have changed since stage 1: {', '.join(changed)}",
            expected=", ".join(f"{name} {recorded.get(name)}" for name in changed),
            found=", ".join(f"{name} {weights[name]}" for name in changed),
            fix="put the files of stage 1 back, or train again",
        )
    seen = read_seen(run, facts.get("train_videos"))
    warnings = [
        f"checkpoint {rejected.folder} of stage 1 was passed over for {found.folder.name}: {rejected.reason}"
        for rejected in found.rejected
    ]
    if run == path and found.step < config.optim.num_steps:
        warnings.append(f"stage 1 was trained for {found.step} of its {config.optim.num_steps} steps")
    sha256 = predictor_hash(world.predictor)
    world = world.requires_grad_(False).eval()
    return Stage1(world, weights, sha256, found.folder, seen, config.data.num_steps, tuple(warnings))


class VJEPA2Pair(NamedTuple):
    """V-JEPA 2's own models, frozen."""

    encoder: VJEPA2Encoder
    predictor: MaskedPredictor | None
    """None where only the encoder's latents are read."""
    weights: dict[str, str]
    """sha256 of their weight files, by name."""


def load_vjepa2_pair(config: VJEPA2BackboneConfig, *, with_predictor: bool) -> VJEPA2Pair:
    """The encoder and, if it is used, the masked predictor that a configuration names.

    Raises:
        ConfigError: no file of a masked predictor, one of another encoder, or no such mask token.
        WeightsError: a weight file is missing, damaged, or does not fit.
    """
    encoder = load_frozen_encoder(config.encoder)
    encoder.module.spec.grid(config.encoder.resolution, config.encoder.resolution)
    weights = {"encoder": encoder.sha256}
    if not with_predictor:
        return VJEPA2Pair(encoder.module, None, weights)
    path = weights_path(config.predictor.weights or config.encoder.weights)
    if config.predictor.weights is None and Path(path).suffix not in PICKLE_SUFFIXES:
        raise ConfigError(
            f"the encoder's weights ({path}) hold no masked predictor",
            expected="a released V-JEPA 2 .pt, which holds both, or the setting backbone.predictor.weights",
            fix="name a masked predictor, or read the encoder alone: probe.inputs=context",
        )
    loaded = read_masked_predictor(path, config.predictor.num_heads)
    predictor = loaded.module
    if predictor.spec.in_width != encoder.module.spec.width:
        raise ConfigError(
            f"the masked predictor of {path} belongs to another encoder",
            expected=f"latents of width {encoder.module.spec.width}",
            found=f"width {predictor.spec.in_width}",
        )
    predictor.check_mask_index(config.mask_index)
    set_precision(predictor, config.predictor.precision)
    sha256 = digest_of(loaded.files, config.predictor.num_heads)
    return VJEPA2Pair(encoder.module, predictor, weights | {"masked_predictor": sha256})


class Seer(NamedTuple):
    """What turns the frames of stage 2 into tokens."""

    observer: Observer
    grid: TimeGrid
    weights: dict[str, str]
    """sha256 of its weight files, by name."""


def probe_seer(stage1: Stage1, gaze_point: Gaze, config: GazelleConfig | None) -> Seer:
    """The world model's own observer, or for an estimated gaze point beside a world model without Gazelle, one with it.

    Args:
        stage1: the world model; its predictor never sees what this Gazelle says.
        gaze_point: where the probe's gaze point comes from.
        config: the Gazelle to use where the world model has none.

    Raises:
        ConfigError: an estimated gaze point without any Gazelle, or with two.
        WeightsError: a weight file is missing, damaged, or does not fit.
    """
    world = stage1.world
    has_gazelle = world.observer.gazelle is not None
    if gaze_point != "estimated" or (has_gazelle and config is None):
        return Seer(world.observer, world.grid, stage1.weights)
    if config is None:
        raise ConfigError(
            "probe.gaze_point=estimated needs a Gazelle, and this world model has none",
            expected="a stage-1 run with gaze=estimated, or the setting `gazelle`",
            found=f"a stage-1 run with gaze={world.grid.gaze}",
            fix="name one: gazelle.weights=…, or probe.gaze_point=none, or measured in the ego view",
        )
    if has_gazelle:
        raise ConfigError(
            "the world model has a Gazelle of its own, and the setting `gazelle` names another",
            fix="leave `gazelle` out",
        )
    gazelle, files = load_gazelle(config)
    grid = replace(world.grid, gazelle_resolution=config.resolution, gazelle_precision=config.precision)
    return Seer(Observer(world.observer.encoder, gazelle, world.observer.plain_features), grid, stage1.weights | files)


def load_gazelle(config: GazelleConfig) -> tuple[GazeLLE, dict[str, str]]:
    """A frozen Gazelle and the sha256 of its files, by name.

    Raises:
        WeightsError: a weight file is missing, damaged, or does not fit.
        ConfigError: the resolution does not fit its patches.
    """
    backbone = None if config.backbone is None else weights_path(config.backbone)
    loaded = read_gazelle(weights_path(config.weights), backbone)
    loaded.module.backbone.spec.grid(config.resolution, config.resolution)
    set_precision(loaded.module, config.precision)
    decoder, *of_backbone = loaded.files
    weights = {"gazelle": decoder.sha256}
    if of_backbone:
        weights["gazelle_backbone"] = digest_of(of_backbone)
    return loaded.module, weights


def predictor_hash(predictor: GazePredictor) -> str:
    """sha256 over names, shapes and values of the predictor's tensors."""
    return hash_tensors(predictor.state_dict())


def shared_hash(predictor: GazePredictor) -> str:
    """Hash of the tensors that predictors with and without gaze have in common: equal at the start of paired runs."""
    state = predictor.state_dict()
    return hash_tensors({name: state[name] for name in state if not name.startswith(("scene_proj.", "scene_out."))})


def _what_is_at(path: Path) -> str:
    if not path.is_dir():
        return "a file" if path.exists() else "nothing"
    return ", ".join(sorted(inside.name for inside in path.iterdir())[:8]) or "an empty folder"


class _Found(NamedTuple):
    """A whole checkpoint's predictor, and the newer checkpoints that are not whole."""

    folder: Path
    step: int
    state: dict[str, Tensor]
    rejected: tuple[Rejected, ...]


def _read_predictor(run: Path, wanted: Path | None) -> _Found:
    """The predictor's tensors in the newest whole checkpoint, or in the wanted one."""
    steps = CheckpointStore(run / CHECKPOINTS, keep_last=1, is_writer=False).steps()[::-1]
    folders = [wanted.resolve()] if wanted is not None else [run / CHECKPOINTS / f"step-{step:06d}" for step in steps]
    rejected: list[Rejected] = []
    for folder in folders:
        files = verify(folder)
        if not isinstance(files, Rejected):
            step = json.loads(files["state.json"])["step"]
            return _Found(folder, step, safetensors.load(files[f"{PREDICTOR}.safetensors"]), tuple(rejected))
        rejected.append(files)
    raise RunError(
        f"{run} has no whole checkpoint",
        found="; ".join(f"{name}: {reason}" for name, reason in rejected) or "none",
        fix="go on with the stage-1 run: hwm pretrain CONFIG --resume",
    )
