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
    EncoderConfig,
    GazeFilesConfig,
    GazelleConfig,
    GazeScoreConfig,
    PretrainConfig,
    RunConfig,
)
from hwm.errors import ConfigError

_VJEPA2 = "https://dl.fbaipublicfiles.com/vjepa2"
_GAZELLE = "https://github.com/fkryan/gazelle/releases/download/v1.0.0"
_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"
_SIZES = ("vitb14", "vitl14")
_SOURCES = (
    {f"{name}.pt": f"{_VJEPA2}/{name}.pt" for name in ("vitl", "vith", "vitg", "vitg-384")}
    | {f"gazelle_dinov2_{size}.pt": f"{_GAZELLE}/gazelle_dinov2_{size}.pt" for size in _SIZES}
    | {f"gazelle_dinov2_{size}_inout.pt": f"{_GAZELLE}/gazelle_dinov2_{size}_inout.pt" for size in _SIZES}
    | {f"dinov2_{size}_pretrain.pth": f"{_DINOV2}/dinov2_{size}/dinov2_{size}_pretrain.pth" for size in _SIZES}
)
"""Released weight files by their released names."""


class Needed(NamedTuple):
    """A file or folder that a setting names."""

    setting: str
    path: Path
    what: str


def require_inputs(config: RunConfig) -> None:
    """Stops at once where weights, videos or annotations that a configuration names are not there.

    Raises:
        ConfigError: lists all that is missing, the setting that names it, and what to fetch.
    """
    require_files(list(_needed(config)))


def require_files(needed: Sequence[Needed]) -> None:
    """Stops where any of these is not there; see `require_inputs`."""
    missing = [item for item in needed if not item.path.expanduser().exists()]
    if not missing:
        return
    lines = [f"{item.setting} = {item.path}: {item.what}" for item in missing]
    fetch = [f"{_SOURCES[item.path.name]} -> {item.path}" for item in missing if item.path.name in _SOURCES]
    raise ConfigError(
        "\n    ".join(["files that the configuration names are missing:", *lines]),
        expected=f"paths below {Path.cwd()} (relative paths start at the folder the command runs in)",
        fix="\n    ".join(["fetch", *fetch])
        if fetch
        else "the comment at the top of the recipe says where they come from",
    )


def _needed(config: RunConfig) -> Iterator[Needed]:
    match config:
        case PretrainConfig():
            yield from _encoder(config.encoder, "encoder")
            yield from _encoder(config.target_encoder, "target_encoder")
            yield from _gazelle(config.gazelle if config.gaze == "estimated" else None)
            yield from _gaze_files(config.gaze_files if config.gaze == "measured" else None)
            yield from _clips(config.data)
        case AdaptConfig():
            yield from _encoder(config.init, "init")
            yield from _clips(config.data)
        case AdaptGazeConfig():
            yield Needed("world", config.world, "a toy world; make it: hwm toyworld " + str(config.world))
        case GazeScoreConfig():
            yield from _gazelle(config.gazelle)
            yield from _gaze_files(config.gaze_files)
            yield from _videos("videos", config.videos)
            yield from _videos("prior_videos", config.prior_videos)
        case AnticipateConfig():
            yield from _annotations(config.annotations)
            yield from _gazelle(config.gazelle)
            yield from _gaze_files(config.gaze_files)
            if config.checkpoint is not None:
                yield Needed("checkpoint", config.checkpoint, "a run folder of `hwm pretrain`, or a saved world model")


def _encoder(config: EncoderConfig | None, setting: str) -> Iterator[Needed]:
    if config is not None and config.weights != "mini":
        yield Needed(f"{setting}.weights", Path(config.weights), "V-JEPA 2 encoder weights")


def _gazelle(config: GazelleConfig | None) -> Iterator[Needed]:
    if config is None:
        return
    if config.weights != "mini":
        yield Needed("gazelle.weights", Path(config.weights), "Gaze-LLE weights")
    if config.backbone is not None:
        yield Needed("gazelle.backbone", Path(config.backbone), "DINOv2 weights")


def _gaze_files(config: GazeFilesConfig | None) -> Iterator[Needed]:
    if config is not None and config.folder is not None:
        yield Needed("gaze_files.folder", config.folder, "files of measured gaze")


def _clips(config: ClipDataConfig) -> Iterator[Needed]:
    yield from _videos("data.train", config.train)
    yield from _videos("data.val", config.val)


def _videos(setting: str, sources: Sequence[str]) -> Iterator[Needed]:
    for source in sources:
        yield Needed(setting, Path(source), "a video, a folder of videos, or a .txt or .csv list")


def _annotations(config: AnnotationConfig) -> Iterator[Needed]:
    yield Needed("annotations.train", config.train, "KeyStep annotations to train on")
    yield Needed("annotations.val", config.val, "KeyStep annotations to score on")
    yield Needed("annotations.videos", config.videos, "the folder that holds takes/, or videos named after the takes")
    if config.takes is not None:
        yield Needed("annotations.takes", config.takes, "takes.json")
