"""Measured gaze: units, missing cells, time, and never a sample from later than asked."""

from pathlib import Path

import numpy as np
import pytest

from hwm.data.gaze_tracks import GazeTrack, read_gaze_2d
from hwm.errors import DataError

HEADER = "frame_num,tracking_timestamp_us,x,y"


def _file(folder: Path, *lines: str) -> Path:
    path = folder / "general_eye_gaze_2d.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_pixels_become_shares_of_the_frame_and_device_time_video_time(tmp_path: Path):
    track = read_gaze_2d(_file(tmp_path, HEADER, "0,5000000,704,352", "1,5100000,0,1407.9", "2,5199000,1056,704"))
    np.testing.assert_allclose(track.times_sec, [0.0, 0.1, 0.199])
    np.testing.assert_allclose(track.xy, [[0.5, 0.25], [0.0, 1407.9 / 1408], [0.75, 0.5]])
    assert track.valid.tolist() == [True, True, True]


def test_a_track_that_starts_late_keeps_its_place(tmp_path: Path):
    track = read_gaze_2d(_file(tmp_path, HEADER, "4,9000000,1,1", "5,9100000,1,1"))
    np.testing.assert_allclose(track.times_sec, [0.4, 0.5])


def test_empty_cells_and_points_outside_are_kept_as_invalid(tmp_path: Path):
    lines = ["0,0,,", "1,100000,-1,5", "2,200000,5,1408", "3,300000,nan,5", "4,400000,7,", "5,500000,5,5"]
    track = read_gaze_2d(_file(tmp_path, HEADER, *lines))
    assert track.valid.tolist() == [False, False, False, False, False, True]
    assert np.isfinite(track.xy).all()


def test_other_column_names_without_timestamps(tmp_path: Path):
    track = read_gaze_2d(_file(tmp_path, "frame_number,y_norm,x_norm", "0,0.25,0.5", "1,0.5,0.75"))
    np.testing.assert_allclose(track.times_sec, [0.0, 0.1])
    np.testing.assert_allclose(track.xy, [[0.5, 0.25], [0.75, 0.5]])


def test_the_frame_side_can_be_another(tmp_path: Path):
    assert read_gaze_2d(_file(tmp_path, HEADER, "0,0,224,112"), frame_side_px=448).xy.tolist() == [[0.5, 0.25]]


def test_at_holds_the_last_sample_and_never_looks_ahead():
    track = GazeTrack(np.array([0.0, 0.1, 0.5]), np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]), np.array([True] * 3))
    xy, valid = track.at(np.array([0.0, 0.0999, 0.1, 0.25, 0.26, 0.4999, 0.5, 9.0]))
    assert valid.tolist() == [True, True, True, True, False, False, True, False]
    np.testing.assert_allclose(xy[:4, 0], [0.1, 0.1, 0.3, 0.3])
    np.testing.assert_allclose(xy[6], [0.5, 0.6])
    assert (xy[~valid] == 0).all()


def test_a_sample_due_at_a_step_is_known_at_it(tmp_path: Path):
    """3 · 0.1 is a little more than 3 / 10; the gaze of such steps must not be a sample old."""
    track = read_gaze_2d(_file(tmp_path, "frame_num,x,y", *(f"{n},{n + 1},5" for n in range(300))))
    xy, valid = track.at(np.arange(300) / 10)
    assert valid.all()
    np.testing.assert_allclose(xy[:, 0] * 1408, np.arange(300) + 1)


def test_changing_later_gaze_changes_nothing_before():
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.08, 0.12, 200))
    track = GazeTrack(times, rng.uniform(size=(200, 2)), rng.uniform(size=200) < 0.9)
    asked = rng.uniform(0, times[-1], 500)
    for cut in rng.uniform(0, times[-1], 50):
        later = times > cut + 1e-6
        changed = GazeTrack(
            times, np.where(later[:, None], 0.123, track.xy), np.where(later, ~track.valid, track.valid)
        )
        before = asked[asked <= cut]
        for one, other in zip(track.at(before), changed.at(before), strict=True):
            np.testing.assert_array_equal(one, other)


def test_invalid_samples_are_not_bridged():
    track = GazeTrack(np.array([0.0, 0.1]), np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([True, False]))
    assert track.at(np.array([0.05, 0.12]))[1].tolist() == [True, False]


def test_no_samples(tmp_path: Path):
    xy, valid = read_gaze_2d(_file(tmp_path, HEADER)).at(np.array([0.0, 1.0]))
    assert xy.shape == (2, 2)
    assert not valid.any()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER, "0,0,1,1", "1,100000,left,1"], "line 3: not a number"),
        ([HEADER, "0,0,1,1", "", "1,0,1,1"], "line 4: times do not ascend"),
        ([HEADER, ",,1,1"], "line 2: neither a frame number nor a timestamp"),
        (["frame_num,x", "0,1"], "line 1: columns are missing"),
        ([HEADER, "0,0,1,1", "1,33333,1,1", "2,66666,1,1"], "not sampled at 10 Hz"),
        ([], "is empty"),
        (["", HEADER], "line 1: columns are missing"),
        ([HEADER, "0,0,1," + "1" * 200_000], "line 2: not a line of a CSV"),
        (["tracking_timestamp_us,x,y", "0,1,1", "33333,1,1", "66666,1,1"], "not sampled at 10 Hz"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, lines: list[str], message: str):
    path = _file(tmp_path, *lines)
    if not lines:
        path.write_text("", encoding="utf-8")
    with pytest.raises(DataError) as raised:
        read_gaze_2d(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_missing_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot read gaze file"):
        read_gaze_2d(tmp_path / "none.csv")
