"""Frames a person can read: attention as a heat map, the measured gaze as a ring, the forecast in a strip below.

Inputs are uint8 frames [Y, X, 3] (any size, enlarged to a readable one), heat maps [h, w] in 0..1 and gaze points as
fractions of the frame; outputs are uint8 frames [Y', X', 3] with even sides, as video codecs want them.

The heat map is what Gaze-LLE estimates. It was made for a visible person seen from outside; in an egocentric view no
head is visible and the map is a learned guess of what draws attention, never the wearer's gaze. The strip says so. Only
gaze from an eye tracker is drawn as a point.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hwm.errors import DataError

SHORT_SIDE = 512
"""Pixels of the shorter side of an annotated frame."""
_COLOUR_MAP = "inferno"  # perceptually uniform, readable with any colour vision, bright only where attention is high
_MAX_ALPHA = 0.7
_ROUNDING = 1e-3  # a resized map may overshoot 0..1 by this much
_STRIP, _TEXT, _SOFT, _TRACK = (20, 23, 26), (240, 242, 244), (160, 168, 176), (48, 54, 60)
_RIGHT, _WRONG = (52, 190, 140), (86, 156, 214)
_MARGIN, _LINE = 14, 24


class Forecast(NamedTuple):
    """What the strip below a frame says."""

    guesses: Sequence[tuple[str, float]]
    """(step, probability 0..1), best first; the first three are shown."""
    truth: str
    """The step that really comes next."""
    seconds_to_start: float
    """From this frame to the start of that step; negative once it has begun."""


def resize_frame(frame_YXR: np.ndarray, short_side: int = SHORT_SIDE) -> np.ndarray:
    """The frame with its shorter side at `short_side` pixels, both sides even; Lanczos filter.

    Raises:
        DataError: not uint8 [Y, X, 3].
    """
    _check_frame(frame_YXR)
    height, width = frame_YXR.shape[:2]
    scale = short_side / min(height, width)
    size = (2 * round(width * scale / 2), 2 * round(height * scale / 2))
    return np.asarray(Image.fromarray(frame_YXR).resize(size, Image.Resampling.LANCZOS))


def blend_heat(frame_YXR: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """The frame under a heat map whose colour and opacity grow with attention, on the fixed scale 0..1.

    The scale is fixed so that two frames can be compared: a map that is faint everywhere looks faint.

    Args:
        frame_YXR: uint8 [Y, X, 3].
        heat_HW: attention 0..1 at any resolution, stretched over the whole frame.

    Raises:
        DataError: values outside 0..1 or not finite, or a wrong frame.
    """
    _check_frame(frame_YXR)
    heat_HW = np.asarray(heat_HW, dtype=np.float32)
    if heat_HW.ndim != 2 or heat_HW.size == 0:
        raise DataError("a heat map cannot be drawn", expected="[rows, columns]", found=f"shape {heat_HW.shape}")
    low, high = float(heat_HW.min()), float(heat_HW.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also true for NaN
        raise DataError("a heat map cannot be drawn", expected="values 0..1", found=f"values {low:.3g}..{high:.3g}")
    height, width = frame_YXR.shape[:2]
    stretched = Image.fromarray(heat_HW).resize((width, height), Image.Resampling.BILINEAR)
    heat_YX = np.clip(np.asarray(stretched), 0, 1)
    colour_YXR = mpl.colormaps[_COLOUR_MAP](heat_YX)[..., :3] * 255
    alpha_YX1 = _MAX_ALPHA * heat_YX[..., None]
    return np.rint(frame_YXR * (1 - alpha_YX1) + colour_YXR * alpha_YX1).astype(np.uint8)


def mark_gaze(frame_YXR: np.ndarray, gaze_xy: tuple[float, float]) -> np.ndarray:
    """The frame with a ring at the measured gaze; nothing is drawn where gaze is NaN (unknown) or outside the frame.

    Args:
        frame_YXR: uint8 [Y, X, 3].
        gaze_xy: fractions of width and height, (0, 0) at the top left.
    """
    _check_frame(frame_YXR)
    x, y = float(gaze_xy[0]), float(gaze_xy[1])
    if not (0 <= x <= 1 and 0 <= y <= 1):  # also false for NaN
        return frame_YXR.copy()
    height, width = frame_YXR.shape[:2]
    image = Image.fromarray(frame_YXR)
    _ring(ImageDraw.Draw(image), x * width, y * height, radius=max(6.0, min(height, width) / 40))
    return np.asarray(image)


def annotate(
    frame_YXR: np.ndarray,
    forecast: Forecast,
    heat_HW: np.ndarray | None = None,
    measured_xy: tuple[float, float] | None = None,
    short_side: int = SHORT_SIDE,
) -> np.ndarray:
    """One frame, readable: enlarged, with attention, measured gaze and the forecast against the truth.

    Args:
        frame_YXR: uint8 [Y, X, 3].
        forecast: the text of the strip.
        heat_HW: estimated attention 0..1, or None.
        measured_xy: gaze from an eye tracker as fractions of the frame, NaN where unknown; None where there is none.
        short_side: pixels of the shorter side of the frame part.

    Returns:
        uint8 [Y', X', 3], both sides even; the strip's height depends only on whether heat or gaze is given.
    """
    picture = resize_frame(frame_YXR, short_side)
    if heat_HW is not None:
        picture = blend_heat(picture, heat_HW)
    if measured_xy is not None:
        picture = mark_gaze(picture, measured_xy)
    strip = _strip(picture.shape[1], forecast, heat_HW is not None, measured_xy is not None)
    return np.concatenate([picture, strip])


def annotate_clip(
    frames_TYXR: np.ndarray,
    forecasts: Sequence[Forecast],
    heat_THW: np.ndarray | None = None,
    measured_T2: np.ndarray | None = None,
    short_side: int = SHORT_SIDE,
) -> np.ndarray:
    """`annotate` for each frame of a clip, ready for a video writer.

    Args:
        frames_TYXR: uint8 [T, Y, X, 3].
        forecasts: one a frame.
        heat_THW: estimated attention of each frame, or None.
        measured_T2: measured gaze of each frame (NaN: unknown), or None.
        short_side: pixels of the shorter side of the frame part.

    Returns:
        uint8 [T, Y', X', 3].

    Raises:
        DataError: not one forecast, map or gaze point a frame.
    """
    num_frames = len(frames_TYXR)
    for what, given in (("forecasts", forecasts), ("heat maps", heat_THW), ("gaze points", measured_T2)):
        if given is not None and len(given) != num_frames:
            raise DataError(f"{what} do not fit the clip", expected=f"{num_frames}, one a frame", found=str(len(given)))
    if num_frames == 0:
        raise DataError("a clip to annotate has no frames", expected="at least one", found="none")
    return np.stack(
        [
            annotate(
                frame,
                forecasts[index],
                None if heat_THW is None else heat_THW[index],
                None if measured_T2 is None else (measured_T2[index][0], measured_T2[index][1]),
                short_side,
            )
            for index, frame in enumerate(frames_TYXR)
        ]
    )


def _strip(width: int, forecast: Forecast, has_heat: bool, has_gaze: bool) -> np.ndarray:
    legend_lines = int(has_heat) + int(has_gaze)
    height = 2 * _MARGIN + 4 * _LINE + 6 + 20 * legend_lines
    image = Image.new("RGB", (width, height + height % 2), _STRIP)
    draw = ImageDraw.Draw(image)
    right, y = width - _MARGIN, _MARGIN
    when = forecast.seconds_to_start
    clock = f"begins in {when:.1f} s" if when >= 0 else f"began {-when:.1f} s ago"
    draw.text((right, y), clock, font=_font(13), fill=_SOFT, anchor="ra")
    room = width - 2 * _MARGIN - int(draw.textlength(clock, font=_font(13))) - 16
    draw.text(
        (_MARGIN, y),
        _fit(draw, f"Next step: {forecast.truth}", _font(14, bold=True), room),
        font=_font(14, bold=True),
        fill=_TEXT,
    )
    y += _LINE + 4
    for step, probability in forecast.guesses[:3]:
        _guess_line(draw, y, width, step, probability, is_right=step == forecast.truth)
        y += _LINE
    if has_heat:
        _heat_key(image, draw, y + 8)
        text = _fit(draw, "attention estimated by Gaze-LLE, 0 to 1; not measured gaze", _font(11), width - 110)
        draw.text((_MARGIN + 84, y + 6), text, font=_font(11), fill=_SOFT)
        y += 20
    if has_gaze:
        _ring(draw, _MARGIN + 40, y + 13, radius=5)
        draw.text((_MARGIN + 84, y + 6), "gaze measured by an eye tracker", font=_font(11), fill=_SOFT)
    return np.asarray(image)


def _guess_line(draw: ImageDraw.ImageDraw, y: int, width: int, step: str, probability: float, is_right: bool) -> None:
    """One guess: its bar from the left margin, its name, and its probability; the right one in green with a tick."""
    font = _font(13, bold=is_right)
    percent = f"{100 * probability:.0f}%"
    bar_width = (width - 2 * _MARGIN) // 4
    draw.rounded_rectangle((_MARGIN, y + 4, _MARGIN + bar_width, y + 14), radius=3, fill=_TRACK)
    filled = round(bar_width * min(max(probability, 0.0), 1.0))
    if filled >= 1:
        colour = _RIGHT if is_right else _WRONG
        draw.rounded_rectangle((_MARGIN, y + 4, _MARGIN + filled, y + 14), radius=min(3, filled // 2), fill=colour)
    x = _MARGIN + bar_width + 12
    draw.text((x + 40, y), percent, font=font, fill=_TEXT, anchor="ra")
    name = _fit(draw, f"{step} ✓" if is_right else step, font, width - _MARGIN - x - 54)
    draw.text((x + 54, y), name, font=font, fill=_RIGHT if is_right else _TEXT)


def _heat_key(image: Image.Image, draw: ImageDraw.ImageDraw, y: int) -> None:
    ramp = mpl.colormaps[_COLOUR_MAP](np.linspace(0, 1, 72))[None, :, :3] * 255
    bar = Image.fromarray(np.repeat(np.rint(ramp), 9, axis=0).astype(np.uint8))
    image.paste(bar, (_MARGIN, y))
    draw.rectangle((_MARGIN - 1, y - 1, _MARGIN + 72, y + 9), outline=_TRACK)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """A ring that shows on any background: dark, light, dark."""
    for grow, width, colour in ((2, 6, (0, 0, 0)), (0, 2, (255, 255, 255))):
        r = radius + grow
        draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=width)
    draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=(255, 255, 255), outline=(0, 0, 0))


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # The face that comes with matplotlib: the same picture on every machine.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The text, shortened with an ellipsis where it is wider than `room` pixels."""
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(f"{text}…", font=font) > room:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _check_frame(frame_YXR: np.ndarray) -> None:
    if frame_YXR.dtype != np.uint8 or frame_YXR.ndim != 3 or frame_YXR.shape[2] != 3 or 0 in frame_YXR.shape:
        raise DataError(
            "a frame has the wrong form", expected="uint8 [Y, X, 3]", found=f"{frame_YXR.dtype} {frame_YXR.shape}"
        )
