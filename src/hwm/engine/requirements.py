"""What a configuration needs on disk, looked for before anything heavy is imported or opened.

configuration -> nothing, or one error that lists every missing file, what it is, and where to get it
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hwm.config import (
    AdaptConfig,
    AdaptGazeConfig,
    AnnotationConfig,
    AnticipateConfig,
    ClipDataConfig,
    CompareConfig,
    EncoderConfig,
    GazeFilesConfig,
    GazelleConfig,
    GazeScoreConfig,
    PretrainConfig,
    RunConfig,
    VJEPA2BackboneConfig,
)
from hwm.engine.named_weights import MINI, weights_folder, weights_path
from hwm.errors import ConfigError
from hwm.weights import catalog

_MANIFEST = "the manifest of the data; make it: hwm data check CONFIG"


class Needed(NamedTuple):
    """A file or folder that a setting names."""

    setting: str
    path: Path
    what: str
    given: str = ""
    """What the setting says, where that is a name and not the path."""


def require_inputs(config: RunConfig) -> None:
    """Stops at once where weights, videos or annotations that a configuration names are not there.

    Raises:
        ConfigError: lists all that is missing, the setting that names it, and what to fetch.
    """
    require_files(list(needed_inputs(config)))


def require_data(config: RunConfig) -> None:
    """Stops where videos or annotations are not there; weights, checkpoints and the manifest may be missing.

    Raises:
        ConfigError: lists all that is missing.
    """
    require_files(
        [
            item
            for item in needed_inputs(config)
            if item.setting.startswith(("data.", "annotations.")) and not item.setting.endswith(".manifest")
        ]
    )


def is_there(item: Needed) -> bool:
    """Whether a file or folder exists."""
    return item.path.exists()


def require_files(needed: Sequence[Needed]) -> None:
    """Stops where any of these is not there; see `require_inputs`."""
    missing = [item for item in needed if not is_there(item)]
    if not missing:
        return
    lines = [f"{item.setting} = {item.given or item.path}: {item.what}" for item in missing]
    cures = list(how_to_get(missing))
    raise ConfigError(
        "\n    ".join(["files that the configuration names are missing:", *lines]),
        expected="; ".join(_places(missing)),
        fix="\n    ".join(["get them:", *cures])
        if cures
        else "the comment at the top of the recipe says where they come from",
    )


def _places(missing: Sequence[Needed]) -> Iterator[str]:
    """Where what is missing was looked for."""
    named = [item for item in missing if catalog.find(item.given)]
    if named:
        yield f"named weights in {weights_folder()}"
    if len(named) < len(missing):
        yield f"paths below {Path.cwd()} (relative paths start at the folder the command runs in)"


def how_to_get(missing: Sequence[Needed]) -> Iterator[str]:
    """One command for the weights that are named, and for each weight file at a path its address."""
    if named := [item.given for item in missing if catalog.find(item.given)]:
        yield f"hwm weights fetch {' '.join(dict.fromkeys(named))}"
    for item in missing:
        if (released := catalog.find_file(item.path.name)) and item.given not in named:
            yield f"{released.url} -> {item.path}, or {item.setting}={released.name} and {released.fetch_command}"
        elif item.given and item.given not in named and (near := catalog.near(item.given)):
            yield f"{item.setting}: did you mean {' or '.join(near)}? (all names: hwm weights list)"


def needed_inputs(config: RunConfig) -> Iterator[Needed]:
    """Every file and folder that a configuration names, there or not."""
    match config:
        case PretrainConfig():
            yield from _encoder(config.encoder, "encoder")
            yield from _encoder(config.target_encoder, "target_encoder")
            sources = {config.gaze, config.validation_gaze}
            yield from _gazelle(config.gazelle if "estimated" in sources else None)
            yield from _gaze_files(config.gaze_files if sources & {"estimated", "measured"} else None)
            yield from _clips(config.data)
        case AdaptConfig():
            yield from _encoder(config.init, "init")
            yield from (item for item in _clips(config.data) if item.setting != "data.val")
        case AdaptGazeConfig():
            yield Needed("world", config.world, "a toy world; make it: hwm toyworld " + str(config.world))
        case GazeScoreConfig():
            yield from _gazelle(config.gazelle)
            yield from _gaze_files(config.gaze_files)
            yield from _videos("videos", config.videos)
            yield from _videos("prior_videos", config.prior_videos)
        case CompareConfig():
            for setting, part in (("pretrain", config.pretrain), ("anticipate", config.anticipate)):
                yield from _inside(setting, part)
            yield from _inside("vjepa2", config.vjepa2)
            if config.ceilings is not None:
                yield Needed("ceilings", config.ceilings, "toyworld.json of `hwm toyworld`")
        case AnticipateConfig():
            yield from _annotations(config.annotations)
            yield from _gaze_files(config.gaze_files)
            yield from _foresight(config)


def _inside(setting: str, config: RunConfig | None) -> Iterator[Needed]:
    """What a configuration within another one names."""
    for item in needed_inputs(config) if config is not None else ():
        yield item._replace(setting=f"{setting}.{item.setting}")


def _encoder(config: EncoderConfig | None, setting: str) -> Iterator[Needed]:
    if config is not None and config.weights != MINI:
        yield _weights(f"{setting}.weights", config.weights, "V-JEPA 2 encoder weights")


def _foresight(config: AnticipateConfig) -> Iterator[Needed]:
    yield from _gazelle(config.gazelle)
    if config.checkpoint is not None:
        yield Needed("checkpoint", config.checkpoint, "a run folder of `hwm pretrain`, or a saved world model")
    if isinstance(config.backbone, VJEPA2BackboneConfig):
        yield from _encoder(config.backbone.encoder, "backbone.encoder")
        if config.backbone.predictor.weights is not None and config.probe.inputs != "context":
            given = config.backbone.predictor.weights
            yield _weights("backbone.predictor.weights", given, "weights of V-JEPA 2's masked predictor")


def _gazelle(config: GazelleConfig | None) -> Iterator[Needed]:
    if config is None:
        return
    if config.weights != MINI:
        yield _weights("gazelle.weights", config.weights, "Gaze-LLE weights")
    if config.backbone is not None:
        yield _weights("gazelle.backbone", config.backbone, "DINOv2 weights")


def _weights(setting: str, given: str, what: str) -> Needed:
    return Needed(setting, Path(weights_path(given)), what, given)


def _gaze_files(config: GazeFilesConfig | None) -> Iterator[Needed]:
    if config is not None and config.folder is not None:
        yield Needed("gaze_files.folder", config.folder, "files of measured gaze")


def _clips(config: ClipDataConfig) -> Iterator[Needed]:
    yield from _videos("data.train", config.train)
    yield from _videos("data.val", config.val)
    if config.manifest is not None:
        yield Needed("data.manifest", config.manifest, _MANIFEST)


def _videos(setting: str, sources: Sequence[str]) -> Iterator[Needed]:
    for source in sources:
        yield Needed(setting, Path(source), "a video, a folder of videos, or a .txt or .csv list")


def _annotations(config: AnnotationConfig) -> Iterator[Needed]:
    videos = "the folder that holds takes/, or videos named after the takes"
    if config.dataset != "keystep":
        videos = "the folder that holds the videos, at any depth"
    yield Needed("annotations.train", config.train, f"{config.dataset} annotations to train on")
    yield Needed("annotations.val", config.val, f"{config.dataset} annotations to score on")
    yield Needed("annotations.videos", config.videos, videos)
    for setting, path, what in (
        ("takes", config.takes, "takes.json"),
        ("splits", config.splits, "splits.json"),
        ("label_mapping", config.label_mapping, "label_mapping.csv"),
        ("taxonomy", config.taxonomy, "fho_lta_taxonomy.json"),
        ("unseen_participants", config.unseen_participants, "EPIC_100_unseen_participant_ids_validation.csv"),
        ("tail_verbs", config.tail_verbs, "EPIC_100_tail_verbs.csv"),
        ("tail_nouns", config.tail_nouns, "EPIC_100_tail_nouns.csv"),
        ("manifest", config.manifest, _MANIFEST),
    ):
        if path is not None:
            yield Needed(f"annotations.{setting}", path, what)
