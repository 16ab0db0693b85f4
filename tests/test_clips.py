"""Each name of a source becomes a video or a named exclusion; clips are pure functions of (seed, epoch, index)."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hwm.config import AugmentConfig
from hwm.data.clips import ClipPlan, VideoSet, find_videos, fixed_box
from hwm.data.exclusions import Exclusion, check_coverage, summarise
from hwm.data.probing import probe_videos
from hwm.data.transforms import centre_square
from hwm.data.video import VideoInfo, VideoReader, num_grid_steps, write_video
from hwm.errors import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a/one.mp4 (2 s), a/b/two_214-1.mp4 (3 s), a/b/short.mp4 (0.4 s), a/b/broken.mp4, a/notes.txt."""
    folder = tmp_path_factory.mktemp("sources")
    frames = np.random.default_rng(0).integers(0, 255, (30, 32, 48, 3), dtype=np.uint8)
    for name, count in (("a/one.mp4", 20), ("a/b/two_214-1.mp4", 30), ("a/b/short.mp4", 4)):
        write_video(folder / name, frames[:count], 10.0, preset="ultrafast")
    (folder / "a/b/broken.mp4").write_text("not a video")
    (folder / "a/.hidden.mp4").write_text("not a video")
    (folder / "a/notes.md").write_text("not a video")
    (folder / "nothing").mkdir()
    return folder


def _names(found: VideoSet) -> list[str]:
    return [video.path.name for video in found.videos]


def _reasons(found: VideoSet) -> dict[str, str]:
    return {Path(item).name: reason for item, reason in found.excluded}


def test_folder_with_glob(root: Path):
    found = find_videos([root], "**/*", 1.0)
    assert _names(found) == ["two_214-1.mp4", "one.mp4"]
    assert found.expected == 4
    reasons = _reasons(found)
    assert set(reasons) == {"short.mp4", "broken.mp4"}
    assert reasons["short.mp4"] == "not longer than 1 s"
    assert reasons["broken.mp4"].startswith("Invalid data")
    assert _names(find_videos([root], "**/*_214-1.mp4", 1.0)) == ["two_214-1.mp4"]


def test_linked_folders_are_followed(root: Path, tmp_path: Path):
    (tmp_path / "linked").symlink_to(root / "a")
    assert _names(find_videos([tmp_path], "**/*.mp4", 1.0)) == ["two_214-1.mp4", "one.mp4"]


def test_links_that_lead_in_a_circle_are_left_out(root: Path):
    (root / "circle.mp4").symlink_to("circle.mp4")
    (root / "list.txt").write_text("a/one.mp4\ncircle.mp4\n")
    found = find_videos([root / "list.txt"], "", 0.1)
    assert _names(found) == ["one.mp4"]
    assert len(found.excluded) == 1


def test_lists_files_and_folders_mixed_and_duplicates_counted(root: Path):
    text = root / "list.txt"
    text.write_text(f"# training\n\na/one.mp4\n  {root}/a/b/two_214-1.mp4  \na/gone.mp4\na/b/../one.mp4\n")
    found = find_videos([text, str(root / "a/b/short.mp4"), root / "a"], "*.mp4", 0.1)
    assert _names(found) == ["one.mp4", "two_214-1.mp4", "short.mp4"]
    assert found.expected == 6 == len(found.videos) + len(found.excluded)
    assert summarise(found.excluded) == {"named more than once": 2, "the file does not exist": 1}


def test_csv_with_a_path_column_and_vjepa_lists(root: Path):
    table = root / "table.csv"
    table.write_text('label,path\n3,a/one.mp4\n4,"a/b/two_214-1.mp4"\n')
    assert _names(find_videos([table], "", 0)) == ["one.mp4", "two_214-1.mp4"]
    spaced = root / "name with space.mp4"
    spaced.write_bytes((root / "a/one.mp4").read_bytes())
    plain = root / "plain.csv"
    plain.write_text("name with space.mp4 0\na/b/two_214-1.mp4 17\n")
    assert _names(find_videos([plain], "", 0)) == ["name with space.mp4", "two_214-1.mp4"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "is empty"),
        ("comments.txt", "# nothing\n\n", "is empty"),
        ("empty.csv", "", "is empty"),
        ("header.csv", "path,label\n", "is empty"),
        ("other.csv", "file,label\na/one.mp4,1\n", "no column `path`"),
        ("hole.csv", "label,path\n1,a/one.mp4\n2\n", "row 3"),
        ("missing.txt", "a/gone.mp4\n", "1 × the file does not exist"),
        ("nothing", None, "no videos in the folder"),
        ("nowhere.txt", None, "does not exist"),
    ],
)
def test_sources_that_give_nothing_are_errors(root: Path, name: str, content: str | None, message: str):
    if content is not None:
        (root / name).write_text(content)
    with pytest.raises(DataError) as raised:
        find_videos([root / name], "**/*", 0)
    assert message in str(raised.value)
    assert name in str(raised.value)


def test_a_list_whose_paths_start_elsewhere_is_told_where_they_were_sought(root: Path):
    (root / "lists").mkdir()
    text = root / "lists/train.txt"
    text.write_text("a/one.mp4\na/gone.mp4\n")
    with pytest.raises(DataError) as raised:
        find_videos([text], "", 0)
    assert f"2 × the file does not exist ({root / 'lists/a/one.mp4'})" in str(raised.value)
    assert "start at the list's folder" in str(raised.value)
    with pytest.raises(DataError) as raised:
        find_videos([root / "a/b/short.mp4"], "", 9.0)
    assert "list's folder" not in str(raised.value)


def test_no_sources():
    with pytest.raises(DataError, match=r"no usable video"):
        find_videos([], "**/*", 0)


def test_binary_list(root: Path):
    (root / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match=r"cannot read the video list"):
        find_videos([root / "binary.txt"], "", 0)


def test_summarise_sorts_and_coverage_is_held():
    excluded = [Exclusion("1", "b"), Exclusion("2", "a"), Exclusion("3", "b"), Exclusion("4", "c")]
    assert list(summarise(excluded).items()) == [("b", 2), ("a", 1), ("c", 1)]
    check_coverage("x", 4, 1, 3)
    with pytest.raises(DataError, match=r"lost track"):
        check_coverage("x", 5, 1, 3)


def test_a_file_that_never_answers_is_one_exclusion_and_does_not_hold_up_the_others():
    never = threading.Event()

    def probe(path: Path) -> VideoInfo:
        if path.name.startswith("hang"):
            never.wait(30)
        if path.name.startswith("bad"):
            raise DataError(f"cannot read video {path}: torn")
        return VideoInfo(path, 1.0, 8, 8, 10.0, "h264", 0, 1)

    names = [f"good{n}" for n in range(20)] + [f"hang{n}" for n in range(9)] + ["bad", "good"]
    began = time.monotonic()
    answers = probe_videos([Path(name) for name in names], timeout_sec=0.3, probe=probe)
    assert time.monotonic() - began < 5
    never.set()
    expected = {"g": None, "h": "no answer within 0.3 s", "b": "torn"}
    for name, answer in zip(names, answers, strict=True):
        assert answer == (expected[name[0]] or VideoInfo(Path(name), 1.0, 8, 8, 10.0, "h264", 0, 1))
    assert probe_videos([]) == []


def test_who_waits_for_videos_is_told_how_many_and_may_stop():
    told: list[tuple[int, int]] = []
    never = threading.Event()

    def probe(path: Path) -> VideoInfo:
        if path.name == "hang":
            never.wait(30)
        return VideoInfo(path, 1.0, 8, 8, 10.0, "h264", 0, 1)

    def stops(done: int, total: int) -> None:
        told.append((done, total))
        if time.monotonic() - began > 1.2:
            raise SystemExit(143)

    began = time.monotonic()
    probe_videos([Path(f"good{n}") for n in range(20)], probe=probe, on_progress=stops)
    assert told == [(done, 20) for done in range(21)]
    began = time.monotonic()
    with pytest.raises(SystemExit):
        probe_videos([Path("good"), Path("hang")], probe=probe, on_progress=stops)
    never.set()
    assert 1.2 < time.monotonic() - began < 5, "a file that does not answer does not keep it from stopping"
    assert told[-1] == (1, 2)


# ------------------------------------------------------------------------------------------------- plans


def _videos(*durations: float) -> list[VideoInfo]:
    return [VideoInfo(Path(f"{n}.mp4"), sec, 320, 180, 30.0, "h264", 0, 1) for n, sec in enumerate(durations)]


def test_requests_do_not_depend_on_the_order_they_are_made_in():
    videos = _videos(10, 20, 5.3, 60)
    one = ClipPlan(videos, 4.0, 8, AugmentConfig(), seed=3)
    other = ClipPlan(videos, 4.0, 8, AugmentConfig(), seed=3)
    forward = {(epoch, index): one.request(epoch, index) for epoch in range(5) for index in range(4)}
    backward = {(epoch, index): other.request(epoch, index) for epoch in (4, 2, 0, 3, 1) for index in (2, 3, 1, 0)}
    assert forward == backward
    assert (
        len({(request.first_step, request.box) for request in forward.values()}) > 15
    )  # the largest box may come twice
    assert ClipPlan(videos, 4.0, 8, AugmentConfig(), seed=4).request(0, 3) != forward[0, 3]


def test_starts_are_uniform_over_the_grid():
    plan = ClipPlan(_videos(4.0), 4.0, 8, None, seed=0)  # 16 grid steps: starts 0..8
    starts = [plan.request(epoch, 0).first_step for epoch in range(1800)]
    counts = np.bincount(starts, minlength=9)
    assert len(counts) == 9
    assert (np.abs(counts - 200) < 60).all()


def test_every_requested_frame_exists(root: Path):
    (video,) = find_videos([root / "a/one.mp4"], "", 0).videos
    plan = ClipPlan([video], 7.0, 4, None, seed=0)
    with VideoReader(video.path) as reader:
        for epoch in range(40):
            request = plan.request(epoch, 0)
            times = [(request.first_step + step) / 7.0 for step in range(request.num_steps)]
            assert len(reader.read(times, [(8, 8)], request.box).times_sec) == 4


def test_order_is_a_permutation_and_changes_with_the_epoch():
    plan = ClipPlan(_videos(*[10] * 50), 4.0, 8, None, seed=0)
    orders = [plan.order(epoch).tolist() for epoch in range(4)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders == [plan.order(epoch).tolist() for epoch in range(4)]
    assert len(plan) == 50


def test_without_augmentation_the_box_is_the_centre_square():
    (video,) = _videos(10)
    assert ClipPlan([video], 4.0, 8, None, 0).request(0, 0).box == centre_square(video)


def test_validation_is_fixed_evenly_spaced_and_inside():
    plan = ClipPlan(_videos(2.0, 4.1, 60.0), 4.0, 8, AugmentConfig(), seed=0)
    requests = plan.validation()
    assert requests == ClipPlan(_videos(2.0, 4.1, 60.0), 4.0, 8, None, seed=9).validation()
    starts = {name: [r.first_step for r in requests if r.video.path.stem == name] for name in "012"}
    assert starts["0"] == [0]
    assert len(starts["1"]) == 2
    assert len(starts["2"]) == 4
    assert starts["2"] == [29, 87, 145, 203]  # of 0 … 232: the middle of each quarter
    for request in requests:
        assert 0 <= request.first_step <= num_grid_steps(request.video.duration_sec, 4.0) - 8


def test_a_video_too_short_for_a_clip_is_named():
    with pytest.raises(DataError, match=r"1\.mp4 is too short"):
        ClipPlan(_videos(10, 1.7), 4.0, 8, None, 0)
    ClipPlan(_videos(10, 1.76), 4.0, 8, None, 0)  # 8 steps: 0 … 1.75 s


@pytest.mark.parametrize("num_frames", [14, 15])  # of 8 a second: 1.75 s, when the frame of the last step would start
def test_videos_that_are_found_have_room_for_a_clip(tmp_path: Path, num_frames: int):
    frames = np.zeros((40, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "long.mp4", frames, 8.0, preset="ultrafast")
    write_video(tmp_path / "short.mp4", frames[:num_frames], 8.0, preset="ultrafast")
    found = find_videos([tmp_path], "*", 7 / 4.0)
    assert len(ClipPlan(found.videos, 4.0, 8, None, 0)) == (2 if num_frames == 15 else 1)


def test_views_of_a_video_are_different_crops_that_the_seed_decides():
    videos, augment = _videos(10, 20), AugmentConfig(scale=(0.2, 0.5))
    boxes = {(video.path, view): fixed_box(video, augment, 3, view) for video in videos for view in range(4)}
    assert len(set(boxes.values())) == 8
    moved = videos[0]._replace(path=Path("elsewhere") / videos[0].path)
    assert fixed_box(moved, augment, 3, 1) == boxes[videos[0].path, 1]
    assert fixed_box(videos[0], augment, 4, 1) != boxes[videos[0].path, 1]
    plan = ClipPlan(videos, 4.0, 8, augment, seed=3, num_views=4)
    drawn = {(videos[index].path, plan.request(epoch, index).box) for epoch in range(60) for index in range(2)}
    assert drawn == {(path, box) for (path, _), box in boxes.items()}


@pytest.mark.parametrize(
    ("duration", "fps", "steps"),
    [(2.0, 4.0, 8), (2.01, 4.0, 9), (1.99, 4.0, 8), (0.04, 4.0, 1), (1 / 3, 3.0, 1), (13.013, 4.0, 53), (0.7, 10.0, 7)],
)
def test_num_grid_steps(duration: float, fps: float, steps: int):
    assert num_grid_steps(duration, fps) == steps
