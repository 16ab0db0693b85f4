"""Overlays put attention and gaze where they belong, on a fixed scale, and say what is estimated."""

import numpy as np
import pytest

from hwm.errors import DataError
from hwm.viz.overlay import Forecast, annotate, annotate_clip, blend_heat, mark_gaze, resize_frame

FORECAST = Forecast((("Crack the egg", 0.62), ("Pour water", 0.21), ("Stir", 0.09)), "Pour water", 1.0)


def _grey(height: int = 128, width: int = 128) -> np.ndarray:
    return np.full((height, width, 3), 100, dtype=np.uint8)


def test_a_toy_frame_is_enlarged_and_its_sides_are_even():
    assert resize_frame(_grey(128, 128)).shape == (512, 512, 3)
    assert resize_frame(_grey(90, 161)).shape == (512, 916, 3)
    assert resize_frame(_grey(1408, 1408)).shape == (512, 512, 3)
    frame = _grey()
    frame[40:60, 90:110] = 255
    bright = resize_frame(frame).mean(axis=2) > 200
    rows, columns = np.nonzero(bright)
    assert (rows.min() // 4, rows.max() // 4, columns.min() // 4, columns.max() // 4) == (40, 59, 90, 109)


def test_heat_changes_the_frame_where_attention_is_and_only_there():
    heat = np.zeros((16, 16), dtype=np.float32)
    heat[3, 12] = 1.0
    out = blend_heat(_grey(), heat).astype(int)
    change = np.abs(out - 100).sum(axis=2)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert (row // 8, column // 8) == (3, 12)
    assert change[64:].max() == 0
    assert change[:, :64].max() == 0


def test_the_scale_of_heat_is_fixed_so_that_faint_stays_faint():
    strength = [np.abs(blend_heat(_grey(), np.full((4, 4), v)).astype(int) - 100).mean() for v in (0.0, 0.1, 0.5, 1.0)]
    assert strength[0] == 0
    assert strength[1] < 0.35 * strength[3]
    assert strength == sorted(strength)


def test_the_ring_is_centred_on_the_measured_gaze_and_absent_where_gaze_is_unknown():
    frame = _grey(200, 400)
    marked = mark_gaze(frame, (0.75, 0.25))
    rows, columns = np.nonzero((marked != frame).any(axis=2))
    assert abs(rows.mean() - 50) <= 1
    assert abs(columns.mean() - 300) <= 1
    assert np.array_equal(mark_gaze(frame, (float("nan"), float("nan"))), frame)
    assert np.array_equal(mark_gaze(frame, (1.2, 0.5)), frame)
    assert np.array_equal(frame, _grey(200, 400))


def test_the_strip_says_what_is_estimated_and_what_is_measured():
    heat, gaze = np.full((8, 8), 0.5), (0.5, 0.5)
    plain, estimated, measured, both = (
        annotate(_grey(), FORECAST, heat_HW=h, measured_xy=g)
        for h, g in ((None, None), (heat, None), (None, gaze), (heat, gaze))
    )
    assert plain.shape[0] < estimated.shape[0] == measured.shape[0] < both.shape[0]
    assert not np.array_equal(estimated[512:], measured[512:])
    for picture in (plain, estimated, measured, both):
        assert picture.dtype == np.uint8
        assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0


def test_the_strip_depends_on_every_part_of_the_forecast():
    base = annotate(_grey(), FORECAST)
    for other in (
        FORECAST._replace(truth="Stir"),
        FORECAST._replace(seconds_to_start=-0.5),
        FORECAST._replace(guesses=(("Crack the egg", 0.1), *FORECAST.guesses[1:])),
        FORECAST._replace(guesses=(("Wash", 0.62), *FORECAST.guesses[1:])),
    ):
        picture = annotate(_grey(), other)
        assert picture.shape == base.shape
        assert np.array_equal(picture[:512], base[:512])
        assert not np.array_equal(picture[512:], base[512:])


def test_long_names_are_shortened_instead_of_running_over_the_edge():
    long = "Put the very large ceramic mixing bowl back on the second shelf of the cupboard " * 3
    wide = annotate(_grey(), Forecast(((long, 1.0), ("a", 0.0)), long, 12.3))
    assert (wide[512:, -12:] == wide[-1, -1]).all()


def test_a_clip_is_annotated_frame_by_frame():
    frames = np.stack([_grey(), _grey() + 20])
    gaze = np.array([[0.2, 0.2], [np.nan, np.nan]])
    clip = annotate_clip(frames, [FORECAST, FORECAST._replace(seconds_to_start=0.75)], np.zeros((2, 4, 4)), gaze, 256)
    assert clip.dtype == np.uint8
    assert np.array_equal(clip[0], annotate(frames[0], FORECAST, np.zeros((4, 4)), (0.2, 0.2), 256))
    with pytest.raises(DataError, match="forecasts do not fit"):
        annotate_clip(frames, [FORECAST])
    with pytest.raises(DataError, match="no frames"):
        annotate_clip(frames[:0], [])


@pytest.mark.parametrize("heat", [np.full((4, 4), 1.5), np.full((4, 4), np.nan), np.zeros((2, 4, 4)), np.zeros((0, 4))])
def test_heat_that_cannot_be_drawn_is_refused(heat):
    with pytest.raises(DataError, match="heat map cannot"):
        blend_heat(_grey(), heat)


def test_frames_of_another_form_are_refused():
    for frame in (
        np.zeros((8, 8, 3), dtype=np.float32),
        np.zeros((3, 8, 8), dtype=np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ):
        with pytest.raises(DataError, match="wrong form"):
            resize_frame(frame)
