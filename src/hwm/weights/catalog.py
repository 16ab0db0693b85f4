"""The catalogue of released weight files that hwm can fetch: what each is, where it comes from, what it is for.

A name that a user types (`vjepa2-vitl-256`) → one `Release`. Pure data, no torch, no disk, no network.
Sources and licences are those that the publishers' READMEs and model cards state. Sizes are exact, or not given; hashes
are given where a publisher states one (so far none): the first fetch records what it got.
"""

import difflib
from dataclasses import dataclass
from posixpath import basename

from hwm.errors import ConfigError

MIT, APACHE = "MIT", "Apache-2.0"
HUB_WEIGHTS, HUB_CONFIG = "model.safetensors", "config.json"

_VJEPA2 = "https://dl.fbaipublicfiles.com/vjepa2"
_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"
_GAZELLE = "https://github.com/fkryan/gazelle/releases/download/v1.0.0"
_HUB = "https://huggingface.co"

_ENCODER = "stage 1: encoder"
_GAZE = "stage 1: gaze"
_BACKBONE = "stage 1: gaze"
_BASELINE = "baseline"
_PAIR = ("encoder", "target_encoder", "predictor")
_EMA = ("encoder", "ema_encoder", "predictor")


@dataclass(frozen=True)
class Release:
    """One released model.

    Attributes:
        name: what a user types.
        file: the weight file's place below the weights folder; unique even where case does not count.
        url: where the weight file is.
        licence: SPDX identifier.
        architecture: the architecture in words.
        holds: models inside the file.
        stage: which part of hwm uses it.
        size: bytes of the weight file, where known.
        sha256: of the weight file, where its publisher states it.
        repo: Hugging Face repository, for models that are fetched through `huggingface_hub`.
    """

    name: str
    file: str
    url: str
    licence: str
    architecture: str
    holds: tuple[str, ...]
    stage: str
    size: int | None = None
    sha256: str | None = None
    repo: str | None = None

    @property
    def released_name(self) -> str:
        """The file's name at its publisher."""
        return basename(self.url)

    @property
    def fetch_command(self) -> str:
        """What to type to get it."""
        return f"hwm weights fetch {self.name}"


def _hub(name: str, licence: str, architecture: str, holds: tuple[str, ...], stage: str, size: int | None) -> Release:
    """A model on Hugging Face: the weight file, and its `config.json` beside it, in a folder of their own."""
    repo = f"facebook/{name}"
    url = f"{_HUB}/{repo}/resolve/main/{HUB_WEIGHTS}"
    return Release(name, f"{name}/{HUB_WEIGHTS}", url, licence, architecture, holds, stage, size, repo=repo)


def _vjepa2(name: str, file: str, architecture: str, holds: tuple[str, ...] = _PAIR, stored: str = "") -> Release:
    return Release(name, stored or file, f"{_VJEPA2}/{file}", MIT, architecture, holds, _ENCODER)


def _gazelle(size: str, variant: str, architecture: str) -> Release:
    file = f"gazelle_dinov2_{size}{variant}.pt"
    name = f"gazelle-{size}{variant.replace('_', '-')}"
    return Release(name, file, f"{_GAZELLE}/{file}", MIT, architecture, ("decoder",), _GAZE)


def _probe(name: str, architecture: str) -> Release:
    file = f"{name}.pt"
    return Release(name, file, f"{_VJEPA2}/evals/{file}", MIT, architecture, ("probe",), _BASELINE)


CATALOG: tuple[Release, ...] = (
    _vjepa2("vjepa2-vitl-256", "vitl.pt", "V-JEPA 2 ViT-L/16, 256 px, 304 M, width 1024, 24 blocks"),
    _vjepa2("vjepa2-vith-256", "vith.pt", "V-JEPA 2 ViT-H/16, 256 px, 632 M, width 1280, 32 blocks"),
    _vjepa2("vjepa2-vitg-256", "vitg.pt", "V-JEPA 2 ViT-g/16, 256 px, 1.01 B, width 1408, 40 blocks"),
    _vjepa2("vjepa2-vitg-384", "vitg-384.pt", "V-JEPA 2 ViT-g/16, 384 px, 1.01 B, width 1408, 40 blocks"),
    Release(
        "vjepa2-ac-vitg", "vjepa2-ac-vitg.pt", f"{_VJEPA2}/vjepa2-ac-vitg.pt", MIT,
        "V-JEPA 2-AC: ViT-g/16 encoder, action-conditioned predictor (305 M, width 1024, 24 blocks)",
        ("encoder", "predictor"), _BASELINE,
    ),
    _vjepa2(
        "vjepa2.1-vitb-384", "vjepa2_1_vitb_dist_vitG_384.pt",
        "V-JEPA 2.1 ViT-B/16, 384 px, 80 M, width 768, 12 blocks, distilled from ViT-G", _EMA,
    ),
    _vjepa2(
        "vjepa2.1-vitl-384", "vjepa2_1_vitl_dist_vitG_384.pt",
        "V-JEPA 2.1 ViT-L/16, 384 px, 300 M, width 1024, 24 blocks, distilled from ViT-G", _EMA,
    ),
    _vjepa2(
        "vjepa2.1-vitg-384", "vjepa2_1_vitg_384.pt",
        "V-JEPA 2.1 ViT-g/16 (giant), 384 px, 1 B, width 1408, 40 blocks",
    ),
    # `…vitg…` and `…vitG…` are one file on a disk that ignores case: this one is kept under another name.
    _vjepa2(
        "vjepa2.1-vitgigantic-384", "vjepa2_1_vitG_384.pt",
        "V-JEPA 2.1 ViT-G/16 (gigantic), 384 px, 2 B, width 1664, 48 blocks", stored="vjepa2_1_vitgigantic_384.pt",
    ),
    _hub(
        "vjepa2-vitl-fpc64-256", MIT, "V-JEPA 2 ViT-L/16, 256 px, 304 M, width 1024, 24 blocks",
        ("encoder", "predictor"), _ENCODER, 1_303_947_864,
    ),
    _hub(
        "vjepa2-vith-fpc64-256", APACHE, "V-JEPA 2 ViT-H/16, 256 px, 632 M, width 1280, 32 blocks",
        ("encoder", "predictor"), _ENCODER, None,
    ),
    _hub(
        "vjepa2-vitg-fpc64-256", APACHE, "V-JEPA 2 ViT-g/16, 256 px, 1.01 B, width 1408, 40 blocks",
        ("encoder", "predictor"), _ENCODER, 4_138_311_608,
    ),
    _hub(
        "vjepa2-vitg-fpc64-384", APACHE, "V-JEPA 2 ViT-g/16, 384 px, 1.01 B, width 1408, 40 blocks",
        ("encoder", "predictor"), _ENCODER, None,
    ),
    Release(
        "dinov2-vitb14", "dinov2_vitb14_pretrain.pth", f"{_DINOV2}/dinov2_vitb14/dinov2_vitb14_pretrain.pth", APACHE,
        "DINOv2 ViT-B/14, 86 M, width 768, 12 blocks", ("backbone",), _BACKBONE, 346_378_731,
    ),
    Release(
        "dinov2-vitl14", "dinov2_vitl14_pretrain.pth", f"{_DINOV2}/dinov2_vitl14/dinov2_vitl14_pretrain.pth", APACHE,
        "DINOv2 ViT-L/14, 300 M, width 1024, 24 blocks", ("backbone",), _BACKBONE, 1_217_586_395,
    ),
    _hub(
        "dinov2-base", APACHE, "DINOv2 ViT-B/14, 86 M, width 768, 12 blocks", ("backbone",), _BACKBONE, None,
    ),
    _hub(
        "dinov2-large", APACHE, "DINOv2 ViT-L/14, 300 M, width 1024, 24 blocks", ("backbone",), _BACKBONE, None,
    ),
    _gazelle("vitb14", "", "Gaze-LLE decoder for DINOv2 ViT-B/14, 2.9 M; GazeFollow"),
    _gazelle("vitl14", "", "Gaze-LLE decoder for DINOv2 ViT-L/14, 2.9 M; GazeFollow"),
    _gazelle("vitb14", "_inout", "Gaze-LLE decoder with in/out head for DINOv2 ViT-B/14, 2.9 M; VideoAttentionTarget"),
    _gazelle("vitl14", "_inout", "Gaze-LLE decoder with in/out head for DINOv2 ViT-L/14, 2.9 M; VideoAttentionTarget"),
    _probe("ek100-vitl-256", "V-JEPA 2 attentive probe, EPIC-KITCHENS-100 anticipation, for ViT-L 256 px"),
    _probe("ek100-vitg-384", "V-JEPA 2 attentive probe, EPIC-KITCHENS-100 anticipation, for ViT-g 384 px"),
    _probe("ssv2-vitl-16x2x3", "V-JEPA 2 attentive probe, Something-Something v2, for ViT-L 256 px"),
    _probe("ssv2-vitg-384-64x2x3", "V-JEPA 2 attentive probe, Something-Something v2, for ViT-g 384 px"),
    _probe("diving48-vitl-256", "V-JEPA 2 attentive probe, Diving48, for ViT-L 256 px"),
    _probe("diving48-vitg-384-32x4x3", "V-JEPA 2 attentive probe, Diving48, for ViT-g 384 px"),
)  # fmt: skip
"""Every released file that hwm knows, in the order in which it is listed."""


def find(name: str) -> Release | None:
    """The release of that name; None where there is none."""
    return next((release for release in CATALOG if release.name == name), None)


def find_file(file_name: str) -> Release | None:
    """The release whose file its publisher calls so (`vitl.pt`); None where none or several do."""
    found = [release for release in CATALOG if release.released_name == file_name]
    return found[0] if len(found) == 1 else None


def near(name: str) -> list[str]:
    """Catalogue names that a mistyped one may have meant, best first."""
    by_lower = {release.name.lower(): release.name for release in CATALOG}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3)]


def require(name: str) -> Release:
    """The release of that name.

    Raises:
        ConfigError: there is none; the nearest names are suggested.
    """
    release = find(name)
    if release is None:
        suggested = near(name)
        raise ConfigError(
            f"there are no weights named {name!r} in the catalogue",
            expected=f"did you mean {' or '.join(suggested)}?" if suggested else None,
            fix="all names: hwm weights list",
        )
    return release
