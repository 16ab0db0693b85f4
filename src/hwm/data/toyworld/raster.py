"""The few drawing operations that run in every frame, on uint8 canvases [Y, X, 3] in place: sprites and soft capsules.

Sprites are pre-multiplied once, in 16-bit integers, so that a blit is one multiply-add; results are exact integers and
so the same on every machine.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


class Sprite(NamedTuple):
    """A small picture with soft edges."""

    colour: np.ndarray
    """[y, x, 3] uint16: colour times alpha (0..256)."""
    keep: np.ndarray
    """[y, x, 1] uint16: 256 minus alpha."""
    anchor: tuple[int, int]
    """(row, column) of the sprite that is put at the place asked for."""


def make_sprite(image: Image.Image, anchor: tuple[int, int], light: float = 1.0) -> Sprite:
    """Turn an RGBA picture into a sprite, its colours multiplied by `light`."""
    pixels = np.asarray(image, dtype=np.float64)
    alpha = np.round(pixels[..., 3:] * (256 / 255))
    colour = np.clip(pixels[..., :3] * light, 0, 255)
    return Sprite(np.round(colour * alpha).astype(np.uint16), (256 - alpha).astype(np.uint16), anchor)


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


def capsule(
    canvas: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float, colour: Colour, edge: Colour | None = None
) -> None:
    """Draw a thick line with round ends, anti-aliased, with a thin rim of colour `edge`.

    Args:
        canvas: [Y, X, 3] uint8, changed in place.
        start: (x, y) pixels.
        end: (x, y) pixels.
        radius: half the thickness in pixels.
        colour: of the inside.
        edge: of the rim; null draws none.
    """
    reach = radius + 1.5
    x0 = max(int(min(start[0], end[0]) - reach), 0)
    y0 = max(int(min(start[1], end[1]) - reach), 0)
    x1 = min(int(max(start[0], end[0]) + reach) + 1, canvas.shape[1])
    y1 = min(int(max(start[1], end[1]) + reach) + 1, canvas.shape[0])
    if y0 >= y1 or x0 >= x1:
        return
    # float32 throughout; only the final rounding to 1/256 reaches the picture.
    dx = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(start[0])
    dy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(start[1])
    ax, ay = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    square = ax * ax + ay * ay
    if square > 1e-6:
        along = np.clip((dx * ax + dy * ay) / square, 0, 1)
        dx, dy = dx - along * ax, dy - along * ay
    distance = np.sqrt(dx * dx + dy * dy)
    region = canvas[y0:y1, x0:x1]
    if edge is not None:
        _cover(region, np.float32(radius + 1.0) - distance, edge)
    _cover(region, np.float32(radius) - distance, colour)


def _cover(region: np.ndarray, inside: np.ndarray, colour: Colour) -> None:
    alpha = (np.clip(inside + 0.5, 0, 1) * 256).astype(np.uint16)[..., None]
    region[...] = (alpha * np.array(colour, dtype=np.uint16) + region * (256 - alpha)) >> 8


class Pen:
    """A transparent picture with coordinates 0..100, drawn large and scaled down: smooth edges at any size."""

    def __init__(self, width_px: int, height_px: int, oversample: int = 6) -> None:
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
