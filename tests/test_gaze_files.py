"""Which gaze file belongs to a video, what Ego4D's says, and why a video has none."""

import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from hwm.config import GazeFilesConfig
from hwm.data.gaze_ego4d import read_gaze_ego4d
from hwm.data.gaze_files import GazeFiles
from hwm.data.video import VideoInfo
from hwm.errors import ConfigError, DataError

ARIA = "frame_num,tracking_timestamp_us,x,y\n0,0,704,{y}\n1,100000,704,{y}\n"
EGO4D = "component_idx,component_timestamp_s,canonical_timestamp_s,world_index,confidence,norm_pos_x,norm_pos_y\n"


def video(path: str, width: int = 448, height: int = 448, fps: float = 30.0) -> VideoInfo:
    return VideoInfo(Path(path), 0.4, width, height, fps, "h264", 0, 1)


def files(folder: Path, y: Literal["down", "up"] | None = None) -> GazeFiles:
    return GazeFiles(folder, GazeFilesConfig(ego4d_y=y))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_personalised_file_comes_first(tmp_path: Path) -> None:
    general = tmp_path / "takes" / "a" / "eye_gaze" / "general_eye_gaze_2d.csv"
    write(general, ARIA.format(y=100))
    ego = video("/x/takes/a/frame_aligned_videos/downscaled/448/aria03_214-1.mp4")
    assert files(tmp_path).coverage([ego], 10).kinds == {"general_eye_gaze_2d": 1}
    write(general.with_name("personalized_eye_gaze_2d.csv"), ARIA.format(y=704))
    assert files(tmp_path).coverage([ego], 10).kinds == {"personalized_eye_gaze_2d": 1}
    track = files(tmp_path).track(ego)
    assert track is not None
    np.testing.assert_allclose(track.xy[0], [0.5, 0.5])
    assert files(tmp_path / "takes").track(ego) is not None  # the folder of takes itself
    assert files(tmp_path).track(video("/elsewhere/a.mp4")) is not None  # a video named after the take


def test_csvs_named_after_the_videos(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ARIA.format(y=100))
    assert files(tmp_path).coverage([video("/x/a.mp4"), video("/x/b.mp4")], 10) == (
        {"eye_gaze_2d": 1},
        (("/x/b.mp4", "no gaze file"),),
        3,  # 0 and 0.1 s have a sample, 0.2 s one that is 0.1 s old
        5,
        files(tmp_path).coverage([video("/x/a.mp4"), video("/x/b.mp4")], 10).sha256,
    )


def test_a_gaze_file_with_accents_is_found_however_its_name_is_written(tmp_path: Path) -> None:
    for disk, name in (("NFD", "NFC"), ("NFC", "NFD")):
        folder = tmp_path / disk
        write(folder / f"{unicodedata.normalize(disk, 'Küche')}.csv", ARIA.format(y=100))
        shown = video(f"/x/{unicodedata.normalize(name, 'Küche')}.mp4")
        assert files(folder).coverage([shown], 10).missing == ()


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (video("/x/takes/a/frame_aligned_videos/cam01.mp4"), "not the ego view"),
        (video("/x/takes/a/frame_aligned_videos/aria01_1201-1.mp4"), "not the ego view"),
        (video("/x/a.mp4", width=796), "not the square picture that Aria gaze is given in"),
        (video("/x/takes/b/frame_aligned_videos/aria01_214-1.mp4"), "no gaze file"),
        (video("/x/broken.mp4"), "gaze file cannot be used: gaze file"),
        (video("/x/ego4d.mp4", fps=25.0), "not a canonical Ego4D video of 30 frames a second"),
    ],
)
def test_videos_without_gaze_are_counted_with_their_reason(tmp_path: Path, shown: VideoInfo, reason: str) -> None:
    write(tmp_path / "takes" / "a" / "eye_gaze" / "general_eye_gaze_2d.csv", ARIA.format(y=100))
    write(tmp_path / "broken.csv", ARIA.replace("704", "left"))
    write(tmp_path / "ego4d.csv", EGO4D + "0,,,0,1,0.5,0.5\n")
    coverage = files(tmp_path, "down").coverage([shown], 10)
    assert coverage.kinds == {}
    assert (coverage.steps_known, coverage.steps_unknown) == (0, 4)
    assert coverage.missing[0].item == str(shown.path)
    assert coverage.missing[0].reason.startswith(reason)


def test_another_byte_in_a_file_is_another_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ARIA.format(y=100))
    before = files(tmp_path).coverage([video("/x/a.mp4")], 10).sha256
    path.write_text(ARIA.format(y=101))
    assert files(tmp_path).coverage([video("/x/a.mp4")], 10).sha256 != before


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set gaze_files\.folder"):
        files(tmp_path / "nowhere")


def test_ego4d_needs_to_be_told_which_way_y_runs(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", EGO4D + "0,,,0,1,0.25,0.25\n")
    with pytest.raises(ConfigError, match=r"ego4d_y=down"):
        files(tmp_path).track(video("/x/a.mp4", width=596))
    for y, expected in (("down", 0.25), ("up", 0.75)):
        track = files(tmp_path, y).track(video("/x/a.mp4", width=596))
        assert track is not None
        np.testing.assert_allclose(track.xy, [[0.25, expected]])


def test_ego4d_samples_are_known_at_the_end_of_their_frame(tmp_path: Path) -> None:
    rows = ["0,,,3,1,0.1,0.1", "0,,,3,0.6,0.2,0.2", "0,,,3,0.3,0.3,0.3", "0,,,5,0.2,0.4,0.4", "0,,,6,,0.5,0.5"]
    rows += ["0,,,7,1,1.2,0.5", "0,,,8,1,,0.5", "0,,,9,1,0.6,0.6"]
    track = read_gaze_ego4d(write(tmp_path / "a.csv", EGO4D + "\n".join(rows) + "\n"), "down", 0.6)
    np.testing.assert_allclose(track.times_sec, np.array([4, 6, 7, 8, 9, 10]) / 30)
    assert track.valid.tolist() == [True, False, False, False, False, True]
    np.testing.assert_allclose(track.xy[0], [0.2, 0.2])  # the last confident one of frame 3
    assert not track.at(np.array([3 / 30]))[1].any()
    assert track.at(np.array([4 / 30]))[1].all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EGO4D.replace(",confidence", ""), "line 1: columns are missing"),
        (EGO4D + "0,,,4,1,0.5,0.5\n1,,,0,1,0.5,0.5\n", "line 3: world_index is wrong"),
        (EGO4D + "0,,,,1,0.5,0.5\n", "line 2: world_index is wrong"),
        (EGO4D + "0,,,-1,1,0.5,0.5\n", "line 2: world_index is wrong"),
        (EGO4D + "0,,,0,sure,0.5,0.5\n", "line 2: not a number"),
    ],
)
def test_faults_of_ego4d_files_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_gaze_ego4d(write(tmp_path / "a.csv", text), "down", 0.6)


def test_an_empty_ego4d_file_has_no_samples(tmp_path: Path) -> None:
    track = read_gaze_ego4d(write(tmp_path / "a.csv", EGO4D), "up", 0.6)
    assert not track.at(np.array([0.0]))[1].any()
