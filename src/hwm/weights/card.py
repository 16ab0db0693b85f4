"""The model card: the `README.md` that goes to the Hub beside a world model.

A world model, its repository and the remarks of whoever made it → Markdown with a YAML header. It says what the file
itself tells, and what no number in it can: where the frozen parts come from, and what the model is not good for.
"""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from hwm.models.world_model import WorldModel

TAGS = ("world-model", "video", "v-jepa-2", "action-anticipation")
GAZE_TAGS = ("gaze", "gaze-lle", "dinov2", "egocentric-video")


def model_card(world: WorldModel, repo_id: str, notes: Mapping[str, Any] | None = None) -> str:
    """The card of a world model.

    Args:
        world: the model.
        repo_id: where it will be, `owner/name`.
        notes: plain data to show as it is, e.g. which run made it.
    """
    sections = [_header(world), _summary(world, repo_id), _usage(world, repo_id), _parts(world), _limits(world)]
    if notes:
        text = json.dumps(dict(notes), indent=2, ensure_ascii=False, allow_nan=False)
        sections.append(f"## Notes of the maker\n\n```json\n{text}\n```\n")
    return "\n".join(sections)


def _header(world: WorldModel) -> str:
    # The stricter one of what is inside: DINOv2's weights are Apache-2.0, all others MIT.
    tags = (*TAGS, *GAZE_TAGS) if world.has_gaze else TAGS
    licence = "apache-2.0" if world.has_gaze else "mit"
    return "\n".join(
        ["---", f"license: {licence}", "library_name: hwm", "tags:", *(f"- {tag}" for tag in tags), "---", ""]
    )


def _summary(world: WorldModel, repo_id: str) -> str:
    grid, name = world.grid, repo_id.partition("/")[2]
    step = "one frame" if grid.step == "frame" else "two consecutive frames"
    views = f"{grid.encoder_resolution} × {grid.encoder_resolution} pixels for the encoder"
    if grid.gazelle_resolution is not None:
        views += f", {grid.gazelle_resolution} × {grid.gazelle_resolution} for Gazelle"
    given = (
        "given the steps so far and where people look" if world.has_gaze else "given the steps so far (without gaze)"
    )
    return f"""# {name}

A human world model: it watches video, keeps what it sees as latents of a frozen V-JEPA 2 encoder, and imagines the
latents of the next steps, {given}. It imagines latents, not pixels.

- Time: {grid.fps:g} steps a second, {step} a step.
- View: {views}.
{_control(world)}"""


def _control(world: WorldModel) -> str:
    """A line where the model was trained on something else than gaze."""
    if world.grid.gaze_control == "none":
        return ""
    return f"- A control, not a model of gaze: in the place of scene tokens it was given `{world.grid.gaze_control}`.\n"


def _usage(world: WorldModel, repo_id: str) -> str:
    inputs = "frames_BTFRYX, gaze_frames_BTRYX" if world.has_gaze else "frames_BTFRYX"
    return f"""## Use

```python
from hwm import HumanWorldModel

world = HumanWorldModel.from_pretrained("{repo_id}")
seen = world.observe({inputs})
future = world.imagine(seen.z_SND, seen.scene_SNG, num_steps=4)
```

Frames are ImageNet-normalised. Weights are float32, frozen, and read strictly: a file that does not fit is refused.
"""


def _parts(world: WorldModel) -> str:
    encoder, predictor, gazelle = world.observer.encoder, world.predictor, world.observer.gazelle
    sizes = encoder.spec
    rows = [
        f"| Encoder (frozen) | V-JEPA 2, width {sizes.width}, depth {sizes.depth}, {sizes.num_heads} heads "
        f"| {_count(encoder)} | MIT |"
    ]
    if gazelle is not None:
        backbone = gazelle.backbone.spec
        rows += [
            f"| Gazelle's backbone (frozen) | DINOv2, width {backbone.width}, depth {backbone.depth}, "
            f"{backbone.num_heads} heads | {_count(gazelle.backbone)} | Apache-2.0 |",
            f"| Gazelle's decoder (frozen) | Gaze-LLE, width {gazelle.spec.width}, depth {gazelle.spec.depth} "
            f"| {_count(gazelle) - _count(gazelle.backbone)} | MIT |",
        ]
    own = predictor.spec
    rows.append(
        f"| Predictor (trained) | block-causal, width {own.width}, depth {own.depth}, {own.num_heads} heads "
        f"| {_count(predictor)} | this repository's |"
    )
    return "\n".join(
        [
            "## What is inside",
            "",
            "| part | architecture | parameters | licence of the released weights |",
            "|---|---|---|---|",
            *rows,
            "",
            "The frozen parts are stored in the file. The licences are those under which the authors of V-JEPA 2",
            "(arXiv:2506.09985), DINOv2 (arXiv:2304.07193) and Gaze-LLE (arXiv:2412.09586) release their weights; the",
            "file cannot tell whether its own come from there. The data that the predictor was trained on may set",
            "further conditions.",
            "",
        ]
    )


def _limits(world: WorldModel) -> str:
    lines = [
        "- It was trained at the rate and the views above; others are not tested.",
        "- A roll-out feeds imagined steps back, so errors add up from step to step.",
        "- It is a research model. It was not tested for any use in which it decides about people.",
    ]
    if world.has_gaze:
        lines.insert(
            0,
            "- **Gaze in an egocentric view is a guess.** Gaze-LLE was made for a visible person seen from outside. "
            "Where no head is\n  visible its map is a learned guess of what draws attention, not a measurement of "
            "where the wearer looks.",
        )
    return "\n".join(["## Limits", "", *lines, ""])


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
