"""What does not change by itself: kitchen, worktop, the person's body, lamp, ball, and the fisheye's dark rim."""

import numpy as np
from PIL import Image

from hwm.data.toyworld.head import torso_image
from hwm.data.toyworld.look import Look
from hwm.data.toyworld.raster import NOISE_ROOM, Colour, Pen, Sprite, make_sprite

_TOP_EDGE = 0.585
"""Exo: where the worktop begins, units of the frame height."""


def _rgba(colour: Colour, factor: float = 1.0) -> tuple[int, int, int, int]:
    red, green, blue = (min(int(value * factor), 255) for value in colour)
    return red, green, blue, 255


def _surface(look: Look, height: int, width: int, grain_px: float) -> Image.Image:
    """The worktop's material, RGBA, `height` x `width` pixels."""
    rng = np.random.default_rng(look.texture_seed)
    base = np.array(look.top, float)
    if look.texture == "wood":
        plank = max(int(5 * grain_px), 2)
        planks = np.repeat(rng.normal(0, 7, height // plank + 1), plank)[:height]
        fibre = rng.normal(0, 16, (height, max(width // 24, 2)))
        streaks = np.asarray(
            Image.fromarray(fibre.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
        )
        change = streaks * 0.55 + planks[:, None]
    elif look.texture == "stone":
        rows, columns = round(height / (1.3 * grain_px)), round(width / (1.3 * grain_px))
        speckle = Image.fromarray(rng.normal(0, 8, (rows, columns)).astype(np.float32))
        change = np.asarray(speckle.resize((width, height), Image.Resampling.BICUBIC))
    else:
        change = rng.normal(0, 1.5, (height, width))
    pixels = np.clip(base + change[..., None] * np.array([1.0, 0.95, 0.85]), 0, 255)
    alpha = np.full((height, width, 1), 255.0)
    return Image.fromarray(np.concatenate([pixels, alpha], axis=-1).astype(np.uint8), "RGBA")


def _lit(image: Image.Image, look: Look) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) * look.light
    return np.clip(np.round(pixels), NOISE_ROOM, 255 - NOISE_ROOM).astype(np.uint8)


def exo_room(look: Look, height: int, width: int, margin: int) -> np.ndarray:
    """Kitchen wall, person's body and worktop, uint8 [height + 2 margin, width + 2 margin, 3]."""
    rows, columns = height + 2 * margin, width + 2 * margin
    image = _wall(look, columns, rows)
    body_width, body_height = round(0.44 * height), round(0.40 * height)
    body = torso_image(body_width, body_height, look.shirt, look.skin)
    image.alpha_composite(body, ((columns - body_width) // 2, margin + round(0.27 * height)))
    edge = margin + round(_TOP_EDGE * height)
    top = _surface(look, rows - edge, columns, height / 144)
    # The far edge is lit, and the top grows a little darker towards it.
    fade = Image.linear_gradient("L").resize((columns, rows - edge))
    dark = Image.new("RGBA", top.size, (30, 18, 10, 255))
    dark.putalpha(fade.point(lambda value: int((255 - value) * 0.16)))
    top.alpha_composite(dark)
    image.alpha_composite(top, (0, edge))
    strip = Image.new("RGBA", (columns, max(round(0.012 * height), 1)), _rgba(look.top, 1.25))
    image.alpha_composite(strip, (0, edge))
    return _lit(image, look)


def _wall(look: Look, columns: int, rows: int) -> Image.Image:
    pen = Pen(columns, rows, oversample=3)
    pen.box((0, 0, 100, 100), _rgba(look.wall))
    line = _rgba(look.wall, 0.93)
    for row in range(7):
        pen.box((0, 9.5 * row + 4, 100, 9.5 * row + 4.7), line)
        for column in range(13):
            left = 8.5 * column + (4.25 if row % 2 else 0) - 2
            pen.box((left, 9.5 * row + 4, left + 0.35, 9.5 * row + 13.5), line)
    window, shelf = (2, 76) if look.window_side == 0 else (78, 3)
    _window(pen, window)
    _shelf(pen, shelf)
    return pen.done()


def _window(pen: Pen, left: float) -> None:
    frame = (250, 248, 244, 255)
    pen.box((left, 8, left + 19, 46), frame, 1)
    pen.box((left + 1.2, 10.5, left + 17.8, 43.5), (156, 208, 240, 255))
    pen.ellipse((left + 11, 13, left + 15, 20.5), (255, 236, 150, 255))
    pen.ellipse((left - 1, 31, left + 12, 56), (126, 184, 120, 255))
    pen.ellipse((left + 8, 34, left + 21, 56), (104, 164, 104, 255))
    pen.box((left, 43.5, left + 19, 46.5), frame, 0.5)
    pen.box((left + 17.8, 10, left + 19, 46), frame)
    pen.box((left + 9, 10, left + 9.9, 44), frame)
    pen.box((left, 10, left + 1.2, 46), frame)


def _shelf(pen: Pen, left: float) -> None:
    wood = (150, 108, 74, 255)
    for top in (22, 43):
        pen.box((left, top, left + 20, top + 2.6), wood, 0.4)
    pots: tuple[tuple[float, float, float, Colour], ...] = (
        (1.0, 4.2, 13, (196, 168, 120)), (6.0, 3.6, 10, (150, 170, 186)), (10.5, 4.4, 14, (184, 132, 116)),
        (15.8, 3.2, 9, (170, 178, 140)),
    )  # fmt: skip
    for index, (x, wide, tall, colour) in enumerate(pots):
        for top, flip in ((22, 0), (43, 2)):
            tint = pots[(index + flip) % len(pots)][3]
            pen.box((left + x, top - tall, left + x + wide, top), (*tint, 255), 0.7)
        pen.box((left + x, 22 - tall, left + x + wide, 24 - tall), _rgba(colour, 0.8), 0.4)


def ego_room(look: Look, size: int, margin: int) -> np.ndarray:
    """The worktop from above with the floor beyond it, uint8 [size + 2 margin, size + 2 margin, 3]."""
    side = size + 2 * margin
    image = Image.new("RGBA", (side, side), _rgba(look.wall, 0.62))
    pen = Pen(side, side, oversample=3)
    for column in range(-2, 10):
        pen.line((14 * column, 0, 14 * column - 8, 40), _rgba(look.wall, 0.54), 0.8)
    image.alpha_composite(pen.done())
    edge = margin + round(0.235 * size)
    image.alpha_composite(_surface(look, side - edge, side, 1.2 * size / 144), (0, edge))
    strip = Image.new("RGBA", (side, max(round(0.014 * size), 1)), _rgba(look.top, 0.7))
    image.alpha_composite(strip, (0, edge))
    apron = Pen(side, side, oversample=3)
    near = 100 * (margin + 1.05 * size) / side
    apron.ellipse((28, near - 6, 72, near + 40), (250, 246, 236, 255))
    image.alpha_composite(apron.done())
    return _lit(image, look)


def vignette(size: int) -> np.ndarray:
    """The dark corners of a fisheye, [size, size, 3] uint16 in 0..256."""
    grid = (np.arange(size) + 0.5) / size - 0.5
    radius = np.hypot(*np.meshgrid(grid, grid))
    gain = np.clip((0.575 - radius) / 0.035, 0, 1) * (1.0 - 0.7 * np.clip(radius - 0.25, 0, None) ** 1.5)
    return np.repeat(np.round(256 * np.maximum(gain, 0.03)).astype(np.uint16)[..., None], 3, axis=2)


def ball_sprite(look: Look, side_px: int) -> Sprite:
    """The rolling ball; the anchor is its middle."""
    pen = Pen(side_px, side_px)
    pen.ellipse((4, 10, 98, 100), (20, 14, 10, 100))
    pen.ellipse((2, 2, 94, 94), _rgba(look.ball, 0.75))
    pen.ellipse((4, 3, 86, 84), _rgba(look.ball))
    pen.ellipse((22, 16, 44, 38), (255, 255, 255, 220))
    return make_sprite(pen.done(), (side_px // 2, side_px // 2), look.light)


def lamp_shade(look: Look, size: int) -> Sprite:
    """The shade of the hanging lamp; the anchor is its top."""
    side = round(0.17 * size)
    pen = Pen(side, side)
    pen.ellipse((30, 44, 70, 84), (255, 244, 190, 255))
    pen.polygon((36, 6, 64, 6, 96, 62, 4, 62), (232, 178, 60, 255))
    pen.polygon((36, 6, 46, 6, 30, 62, 4, 62), (246, 206, 110, 255))
    return make_sprite(pen.done(), (round(0.06 * side), side // 2), look.light)
