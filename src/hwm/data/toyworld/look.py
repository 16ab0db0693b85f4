"""How one take looks: places of the objects, person, room, light and cameras. Drawn once, apart from its script.

Input: the recipe and a `numpy.random.Generator`. Output: a `Look`. Positions are in units of the frame height (see
`timeline.py`); colours are RGB 0..255. The ego view sees the worktop from behind it, so left and right, near and far
are exchanged against the exo view.
"""

from typing import NamedTuple

import numpy as np

from hwm.data.toyworld.rules import RECIPES

NUM_SLOTS = 8
"""Two rows (0-3 back, near the person; 4-7 front, near the exo camera) of four columns."""
HEAD_CENTRE = (0.5, 0.175)
HEAD_RADIUS = 0.13
"""Exo units: 37 px across in 144, 33 px across where the central square is 128."""
EXO_TALL = 0.2
"""Height of an object in the exo view."""
EGO_FOLLOW = 0.35
"""Share of the gaze displacement that the ego camera follows, unless it stands still."""
EXO_SPOT, EGO_SPOT = (0.5, 0.79), (0.5, 0.87)
"""Where an object in use stands, right in front of the person: its foot, exo and ego units."""

Colour = tuple[int, int, int]

_SKIN_HAIR: tuple[tuple[Colour, Colour], ...] = (
    ((250, 214, 186), (62, 38, 26)),
    ((246, 205, 172), (150, 62, 24)),
    ((238, 192, 152), (28, 26, 34)),
    ((226, 176, 132), (44, 30, 22)),
    ((206, 150, 106), (22, 20, 24)),
    ((184, 128, 88), (18, 16, 20)),
    ((252, 222, 200), (96, 72, 52)),
)
_WALLS: tuple[Colour, ...] = (
    (214, 226, 222), (232, 222, 206), (206, 216, 232), (236, 214, 208), (222, 228, 204), (226, 218, 234),
)  # fmt: skip
_TOPS: tuple[Colour, ...] = ((186, 142, 98), (206, 172, 128), (156, 112, 78), (188, 186, 182), (212, 202, 188))
_SHIRTS: dict[str, Colour] = {"tea": (44, 122, 140), "eggs": (226, 126, 58), "salad": (122, 88, 168)}
_BALLS: tuple[Colour, ...] = ((238, 70, 120), (250, 250, 250), (120, 220, 230))
_HAIR_STYLES = ("short", "bun", "bob")


class Look(NamedTuple):
    """Everything about the picture of a take that does not change with time."""

    kinds: tuple[str, ...]
    slots: tuple[int, ...]
    """Slot 0..7 of each object."""
    exo_base: np.ndarray
    """[O, 2] float64: middle of each object's foot, exo units."""
    ego_base: np.ndarray
    """[O, 2] float64: the same in the ego view."""
    ego_tall: np.ndarray
    """[O] float64: height of each object in the ego view."""
    exo_points: np.ndarray
    """[O + 1, 2] float64: what the gaze rests on: each object's middle, and last the neutral place."""
    ego_points: np.ndarray
    """[O + 1, 2] float64: the same in the ego view."""
    exo_grips: np.ndarray
    """[O, 2] float64: where a hand works on each object."""
    ego_grips: np.ndarray
    """[O, 2] float64"""
    hand_of: tuple[int, ...]
    """Hand (0 left, 1 right in the exo view) that uses each object: the nearer one."""
    exo_rest: np.ndarray
    """[2 hands, 2] float64"""
    ego_rest: np.ndarray
    """[2 hands, 2] float64"""
    gaze_jitter: float
    gaze_phases: np.ndarray
    """[2, 3] float64"""
    exo_shift: np.ndarray
    """[2] float64: where the exo camera stands off its place."""
    exo_sway: float
    exo_phases: np.ndarray
    """[2, 2] float64"""
    ego_follow: float
    """Share of the gaze displacement that the ego camera follows."""
    ego_sway: float
    ego_phases: np.ndarray
    """[2, 2] float64"""
    skin: Colour
    hair: Colour
    hair_style: str
    shirt: Colour
    wall: Colour
    top: Colour
    texture: str
    """Pattern of the worktop: `wood`, `stone` or `plain`."""
    texture_seed: int
    light: float
    noise: float
    """Standard deviation of the pixel noise."""
    ball: Colour
    ball_phases: np.ndarray
    """[3] float64"""
    lamp_phase: float
    lamp_rate_hz: float
    window_side: int
    """Side of the exo view on which the window is: 0 left, 1 right."""


def _exo_base(slots: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    row, column = slots // 4, slots % 4
    x = 0.5 + (column - 1.5) * np.where(row == 0, 0.242, 0.254)
    y = np.where(row == 0, 0.735, 0.955)
    return np.stack([x, y], axis=-1) + jitter * np.array([0.02, 0.012])


def _ego_base(slots: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    row, column = slots // 4, slots % 4
    x = 0.5 - (column - 1.5) * np.where(row == 0, 0.25, 0.215)
    y = np.where(row == 0, 0.79, 0.50)
    return np.stack([x, y], axis=-1) - jitter * np.array([0.02, 0.012])


def sample_look(recipe_index: int, person: int, rng: np.random.Generator, ego_follow: float = EGO_FOLLOW) -> Look:
    """Draw the look of a take.

    Args:
        recipe_index: index in `RECIPES`; it fixes which objects there are and the colour of the shirt.
        person: number of the participant; it fixes skin and hair.
        rng: source of the draw.
        ego_follow: share of the gaze displacement that the ego camera follows.
    """
    recipe = RECIPES[recipe_index]
    kinds = tuple(step.kind for step in recipe.steps)
    slots = rng.permutation(NUM_SLOTS)[: len(kinds)]
    jitter = rng.uniform(-1.0, 1.0, (len(kinds), 2))
    exo_base, ego_base = _exo_base(slots, jitter), _ego_base(slots, jitter)
    ego_tall = np.where(slots // 4 == 0, 0.235, 0.19)
    exo_points = np.concatenate([exo_base - np.array([0.0, 0.42 * EXO_TALL]), [[0.5, 0.76]]])
    ego_points = np.concatenate([ego_base - np.stack([0 * ego_tall, 0.42 * ego_tall], axis=-1), [[0.5, 0.56]]])
    skin, hair = _SKIN_HAIR[(person * 3) % len(_SKIN_HAIR)]
    return Look(
        kinds=kinds,
        slots=tuple(slots.tolist()),
        exo_base=exo_base,
        ego_base=ego_base,
        ego_tall=ego_tall,
        exo_points=exo_points,
        ego_points=ego_points,
        exo_grips=exo_base - np.array([0.0, 0.82 * EXO_TALL]),
        ego_grips=ego_base - np.stack([0 * ego_tall, 0.55 * ego_tall], axis=-1),
        hand_of=tuple(int(x >= 0.5) for x in exo_base[:, 0]),
        exo_rest=np.array([[0.258, 0.63], [0.742, 0.63]]),
        ego_rest=np.array([[0.66, 0.93], [0.34, 0.93]]),
        gaze_jitter=0.01,
        gaze_phases=rng.uniform(0, 2 * np.pi, (2, 3)),
        exo_shift=rng.uniform(-0.012, 0.012, 2),
        exo_sway=float(rng.uniform(0.0, 0.008)),
        exo_phases=rng.uniform(0, 2 * np.pi, (2, 2)),
        ego_follow=ego_follow,
        ego_sway=float(rng.uniform(0.004, 0.014)),
        ego_phases=rng.uniform(0, 2 * np.pi, (2, 2)),
        skin=skin,
        hair=hair,
        hair_style=_HAIR_STYLES[person % len(_HAIR_STYLES)],
        shirt=_SHIRTS[recipe.key],
        wall=_WALLS[int(rng.integers(len(_WALLS)))],
        top=_TOPS[int(rng.integers(len(_TOPS)))],
        texture=("wood", "stone", "plain")[int(rng.integers(3))],
        texture_seed=int(rng.integers(2**31)),
        light=float(rng.uniform(0.88, 1.08)),
        noise=float(rng.uniform(0.6, 2.0)),
        ball=_BALLS[int(rng.integers(len(_BALLS)))],
        ball_phases=rng.uniform(0, 2 * np.pi, 3),
        lamp_phase=float(rng.uniform(0, 2 * np.pi)),
        lamp_rate_hz=float(rng.uniform(0.15, 0.4)),
        window_side=int(rng.integers(2)),
    )
