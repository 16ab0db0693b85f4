"""The few drawing operations that run in every frame, on uint8 canvases [Y, X, 3] in place: sprites and limbs.

Sprites are pre-multiplied once, in 16-bit integers, so that a blit is one multiply-add; results are exact integers and
so the same on every machine.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
NOISE_ROOM = 5
"""Colours keep this far from 0 and 255, so that noise can be added in 8 bits without clipping."""


class Sprite(NamedTuple):
    """A small picture with soft edges."""

    colour: np.ndarray
    """[y, x, 3] uint16: colour times alpha (0..256)."""
    keep: np.ndarray
    """[y, x, 3] uint16: 256 minus alpha, once a colour: without broadcasting a blit runs several times as fast."""
    anchor: tuple[int, int]
    """(row, column) of the sprite that is put at the place asked for."""


def make_sprite(image: Image.Image, anchor: tuple[int, int], light: float = 1.0) -> Sprite:
    """Turn an RGBA picture into a sprite, its colours multiplied by `light`."""
    pixels = np.asarray(image, dtype=np.float64)
    alpha = np.round(pixels[..., 3:] * (256 / 255))
    colour = np.clip(pixels[..., :3] * light, NOISE_ROOM, 255 - NOISE_ROOM)
    keep = np.repeat((256 - alpha).astype(np.uint16), 3, axis=2)
    return Sprite(np.round(colour * alpha).astype(np.uint16), keep, anchor)


def blit(canvas: np.ndarray, sprite: Sprite, row: int, column: int) -> None:
    """Put a sprite's anchor at (row, column); what falls outside the canvas is cut off."""
    top, left = row - sprite.anchor[0], column - sprite.anchor[1]
    height, width = sprite.keep.shape[:2]
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height, canvas.shape[0]), min(left + width, canvas.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    region = canvas[y0:y1, x0:x1]
    region[...] = (sprite.colour[part] + region * sprite.keep[part]) >> 8


class Limb(NamedTuple):
    """A chain of thick strokes with round ends that share a colour and a thin dark rim."""

    strokes: tuple[tuple[np.ndarray, np.ndarray, float], ...]
    """(start, end, radius): points (x, y) and half the thickness, pixels."""
    colour: Colour


def limb_sprite(limbs: tuple[Limb, ...]) -> Sprite:
    """Draw limbs over each other, anti-aliased; the anchor is the origin of their coordinates."""
    ends = [(point, radius + 2.5) for limb in limbs for *points, radius in limb.strokes for point in points]
    low = np.floor(np.min([point - reach for point, reach in ends], axis=0)).astype(int)
    high = np.ceil(np.max([point + reach for point, reach in ends], axis=0)).astype(int)
    x = np.arange(low[0], high[0], dtype=np.float32)[None, :]
    y = np.arange(low[1], high[1], dtype=np.float32)[:, None]
    colour = np.zeros((3, y.size, x.size), np.uint16)
    keep = np.full((y.size, x.size), 256, np.uint32)  # 256 * 256 does not fit 16 bits
    for limb in limbs:
        inside = _depth(x, y, *limb.strokes[0])
        for stroke in limb.strokes[1:]:
            inside = np.maximum(inside, _depth(x, y, *stroke))
        tint = np.clip(limb.colour, NOISE_ROOM, 255 - NOISE_ROOM)
        for grow, shade in ((1.0, 0.58 * tint), (0.0, tint)):
            alpha = (np.minimum(np.maximum(inside + np.float32(grow + 0.5), 0), 1) * 256).astype(np.uint16)
            colour = alpha * shade.astype(np.uint16)[:, None, None] + ((colour >> 8) * (256 - alpha))
            keep = (keep * (256 - alpha)) >> 8
    channels_last = np.ascontiguousarray(np.moveaxis(colour, 0, 2))
    keep_each = np.repeat(keep.astype(np.uint16)[..., None], 3, axis=2)
    return Sprite(channels_last, keep_each, (-int(low[1]), -int(low[0])))


def _depth(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
    """How deep each pixel lies inside a stroke, in pixels; negative outside."""
    # float32 throughout: only its rounding to 1/256 reaches the picture.
    dx, dy = x - np.float32(start[0]), y - np.float32(start[1])
    ax, ay = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    square = ax * ax + ay * ay
    if square > 1e-6:
        along = np.minimum(np.maximum((dx * ax + dy * ay) / square, 0), 1)
        dx, dy = dx - along * ax, dy - along * ay
    return np.float32(radius) - np.sqrt(dx * dx + dy * dy)


class Pen:
    """A transparent picture with coordinates 0..100, drawn large and scaled down: smooth edges at any size."""

    def __init__(self, width_px: int, height_px: int, oversample: int = 4) -> None:
        self.size = (width_px, height_px)
        self.scale = (width_px * oversample / 100.0, height_px * oversample / 100.0)
        self.image = Image.new("RGBA", (width_px * oversample, height_px * oversample), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)

    def _xy(self, points: tuple[float, ...]) -> list[float]:
        return [value * self.scale[index % 2] for index, value in enumerate(points)]

    def ellipse(self, box: tuple[float, float, float, float], fill: tuple[int, ...]) -> None:
        """Fill an ellipse given by its bounding box (left, top, right, bottom)."""
        self.draw.ellipse(self._xy(box), fill=fill)

    def box(self, box: tuple[float, float, float, float], fill: tuple[int, ...], radius: float = 0.0) -> None:
        """Fill a rectangle (left, top, right, bottom) with rounded corners."""
        self.draw.rounded_rectangle(self._xy(box), radius=radius * self.scale[0], fill=fill)

    def polygon(self, points: tuple[float, ...], fill: tuple[int, ...]) -> None:
        """Fill a polygon given as x, y, x, y and so on."""
        self.draw.polygon(self._xy(points), fill=fill)

    def line(self, points: tuple[float, ...], fill: tuple[int, ...], width: float) -> None:
        """Draw a line through x, y, x, y and so on, with round joints."""
        self.draw.line(self._xy(points), fill=fill, width=max(1, round(width * self.scale[0])), joint="curve")

    def pie(self, box: tuple[float, float, float, float], start: float, end: float, fill: tuple[int, ...]) -> None:
        """Fill a sector of an ellipse; angles in degrees, clockwise from 3 o'clock."""
        self.draw.pieslice(self._xy(box), start, end, fill=fill)

    def arc(
        self, box: tuple[float, float, float, float], start: float, end: float, fill: tuple[int, ...], width: float
    ) -> None:
        """Draw a part of an ellipse's rim; angles in degrees, clockwise from 3 o'clock."""
        self.draw.arc(self._xy(box), start, end, fill=fill, width=max(1, round(width * self.scale[0])))

    def done(self) -> Image.Image:
        """Scale down to the size asked for."""
        return self.image.resize(self.size, Image.Resampling.BOX)
