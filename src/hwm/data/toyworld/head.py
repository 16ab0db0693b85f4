"""The head: a shaded ball with hair, face and nose that is truly turned in space, drawn per direction.

Input: yaw (positive to the right of the exo view) and pitch (positive down), radians. Output: a sprite. The face moves
over the ball as a real one does, so the direction can be read from where eyes and nose are, from how much hair shows,
and, far to the side, from the nose standing out of the outline.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from hwm.data.toyworld.raster import Colour, Pen, Sprite, make_sprite

_OVERSAMPLE = 3
_ROOM = 1.32
"""Half the side of the sprite over the radius of the head: room for nose, ears and bun."""


class HeadStyle(NamedTuple):
    """What a head looks like."""

    radius_px: float
    skin: Colour
    hair: Colour
    hair_style: str
    light: float


def direction_to(head_xy: tuple[float, float], point_xy: np.ndarray) -> tuple[float, float]:
    """Yaw and pitch, radians, of a head at `head_xy` that looks at `point_xy` on the worktop (exo units).

    A point far down in the exo view is near the exo camera, far from the person, who looks less steeply down to it.
    """
    yaw = 2.45 * (float(point_xy[0]) - head_xy[0])
    pitch = 0.78 - 3.1 * (float(point_xy[1]) - 0.65)
    return yaw, pitch


def _turn(yaw: float, pitch: float) -> np.ndarray:
    """Rows: the head's right, down and forward axes in picture coordinates (right, down, towards the viewer)."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    return np.array([[cy, 0.0, -sy], [-sy * sp, cp, -cy * sp], [sy * cp, sp, cy * cp]])


def head_sprite(style: HeadStyle, yaw: float, pitch: float) -> Sprite:
    """Draw the head in one direction; the anchor is its centre."""
    half = int(np.ceil(style.radius_px * _ROOM))
    side = 2 * half * _OVERSAMPLE
    grid = (np.arange(side) + 0.5) / (_OVERSAMPLE * style.radius_px) - half / style.radius_px
    x, y = np.meshgrid(grid, grid)
    axes = _turn(yaw, pitch)
    pixels = np.zeros((side, side, 4))
    _extras(pixels, x, y, axes, style, front=False)
    z2 = 1.0 - x * x - y * y
    disc = z2 > 0
    normal = np.stack([x[disc], y[disc], np.sqrt(z2[disc])], axis=-1)
    right, down, forward = np.moveaxis(normal @ axes.T, -1, 0)
    colour = _face(right, down, forward, style)
    shade = 0.80 + 0.24 * np.clip(normal @ np.array([-0.35, -0.6, 0.72]), 0, 1)
    shade = np.where(z2[disc] < 0.09, 0.72 * shade, shade)
    pixels[disc] = np.concatenate([colour * shade[:, None], np.full((len(colour), 1), 255.0)], axis=-1)
    _extras(pixels, x, y, axes, style, front=True)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")
    return make_sprite(image.resize((2 * half, 2 * half), Image.Resampling.BOX), (half, half), style.light)


def _face(right: np.ndarray, down: np.ndarray, forward: np.ndarray, style: HeadStyle) -> np.ndarray:
    """Colour of each point of the ball, [points, 3]; arguments are its coordinates in the head's own axes."""
    colour = np.broadcast_to(np.array(style.skin, float), (len(right), 3)).copy()

    def near(cx: float, cy: float, sx: float, sy: float) -> np.ndarray:
        return (forward > 0) & (((right - cx) / sx) ** 2 + ((down - cy) / sy) ** 2 < 1)

    dark = np.array([34.0, 26.0, 30.0])
    for side in (-1, 1):
        colour[near(0.52 * side, 0.34, 0.17, 0.12)] = np.array(style.skin) * np.array([1.0, 0.72, 0.68])
        colour[near(0.34 * side, -0.02, 0.19, 0.17)] = 255.0
        colour[near(0.34 * side, 0.01, 0.11, 0.135)] = dark
        colour[near(0.35 * side, -0.31, 0.17, 0.05)] = np.array(style.hair, float)
    mouth = near(0.0, 0.55, 0.24, 0.11) & (down > 0.53)
    colour[mouth] = np.array([168.0, 48.0, 56.0])
    low = {"short": 0.05, "bun": 0.0, "bob": 0.55}[style.hair_style]
    hair = (down < -0.53 - 0.10 * right) | ((forward < 0.12) & (down < low)) | (forward < -0.3)
    colour[hair] = np.array(style.hair, float)
    return colour


def _extras(pixels: np.ndarray, x: np.ndarray, y: np.ndarray, axes: np.ndarray, style: HeadStyle, front: bool) -> None:
    """Draw nose, ears and bun, which stand out of the ball, before or after it by which side they are on."""
    skin, hair = np.array(style.skin, float), np.array(style.hair, float)
    parts = [
        (np.array([0.0, 0.2, 1.06]), 0.155, skin * np.array([0.94, 0.72, 0.64])),
        (np.array([-1.02, 0.1, 0.0]), 0.17, skin * 0.88),
        (np.array([1.02, 0.1, 0.0]), 0.17, skin * 0.88),
    ]
    if style.hair_style == "bun":
        parts.append((np.array([0.0, -0.92, -0.62]), 0.34, hair * 1.1))
    for place, radius, colour in parts:
        seen = place @ axes
        if (seen[2] > 0) == front:
            hit = (x - seen[0]) ** 2 + (y - seen[1]) ** 2 < radius * radius
            pixels[hit] = np.append(colour, 255.0)


def torso_image(width_px: int, height_px: int, shirt: Colour, skin: Colour) -> Image.Image:
    """Draw neck, shoulders and apron in a box whose top is the chin."""
    pen = Pen(width_px, height_px)
    shade = tuple(int(0.78 * value) for value in shirt)
    pen.box((38, 0, 62, 40), (*(int(0.84 * value) for value in skin), 255), 6)
    pen.box((4, 24, 96, 140), (*shade, 255), 26)
    pen.box((7, 26, 93, 140), (*shirt, 255), 24)
    pen.ellipse((36, 12, 64, 40), (*(int(0.84 * value) for value in skin), 255))
    apron, tie = (250, 246, 236, 255), (218, 210, 196, 255)
    pen.line((36, 20, 30, 52), tie, 4)
    pen.line((64, 20, 70, 52), tie, 4)
    pen.box((26, 50, 74, 140), apron, 6)
    pen.box((38, 74, 62, 96), tie, 4)
    pen.box((40, 77, 60, 94), apron, 3)
    return pen.done()
