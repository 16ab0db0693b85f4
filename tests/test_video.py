"""The right frame, whatever codec, order and container; and bad files end in a clear error, never in a hang."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest

from hwm.data.skipping import FrameWalk
from hwm.data.transforms import random_box
from hwm.data.video import CropBox, VideoReader, probe_video, write_video
from hwm.errors import DataError

BITS = 10
SIDE = 64


def painted(number: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A frame that shows its number: a row of ten black or white columns, and its complement below."""
    row = np.array([(number >> bit) & 1 for bit in range(BITS)], dtype=np.uint8) * 200 + 25
    code = np.stack([row, 250 - row])
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * BITS // width
    return np.repeat(code[np.ix_(rows, columns)][..., None], 3, axis=2)


def numbers_of(frames: np.ndarray) -> list[int]:
    """Read the numbers back from [F, Y, X, R], and check that no two frames are blended."""
    height, width = frames.shape[1:3]
    rows = [height // 4, 3 * height // 4]
    columns = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    code = frames[..., 0].astype(float)[:, rows][:, :, columns]
    assert (np.abs(code - 125) > 40).all(), "neither black nor white"
    bits = code > 125
    assert (bits[:, 0] != bits[:, 1]).all(), "the complement does not fit"
    return [int(sum(1 << bit for bit in range(BITS) if row[0, bit])) for row in bits]


class Kind(NamedTuple):
    """A way to encode a video."""

    name: str
    suffix: str
    codec: str
    opts: dict[str, Any]
    variable: bool = False
    num_frames: int = 120


_FAST_VP9 = {"deadline": "realtime", "cpu-used": 8, "lag-in-frames": 10}
_FAST_AV1 = {"preset": 12, "svtav1-params": "lp=1"}
KINDS = [
    Kind("h264-gop1", ".mp4", "libx264", {"g": 1, "preset": "ultrafast"}),
    Kind("h264-bframes", ".mp4", "libx264", {"g": 30, "bf": 3, "preset": "veryfast"}),
    Kind("h264-open-gop", ".mp4", "libx264", {"g": 12, "bf": 3, "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}),
    Kind("h264-refresh", ".mp4", "libx264", {"g": 30, "x264-params": "intra-refresh=1"}),
    Kind(
        "h264-gop250",
        ".mkv",
        "libx264",
        {"g": 250, "bf": 2, "preset": "veryfast", "sc_threshold": 0},
        num_frames=300,
    ),
    Kind("h264-vfr", ".mp4", "libx264", {"g": 20, "bf": 2, "preset": "veryfast"}, variable=True),
    Kind("h264-ts", ".ts", "libx264", {"g": 25, "bf": 2, "preset": "veryfast"}),
    Kind(
        "hevc-open-gop", ".mp4", "libx265", {"g": 15, "preset": "ultrafast", "x265-params": "log-level=none:bframes=3"}
    ),
    Kind("hevc-vfr", ".mkv", "libx265", {"g": 40, "preset": "ultrafast", "x265-params": "log-level=none"}, True),
    Kind("hevc-gop1", ".mp4", "libx265", {"g": 1, "preset": "ultrafast", "x265-params": "log-level=none"}),
    Kind(
        "hevc-gop250",
        ".mp4",
        "libx265",
        {"g": 250, "preset": "ultrafast", "x265-params": "log-level=none:bframes=4:scenecut=0"},
        num_frames=300,
    ),
    Kind("mpeg2-ts", ".ts", "mpeg2video", {"g": 25, "bf": 2, "b": 4_000_000}),
    Kind("vp9", ".webm", "libvpx-vp9", {"g": 40, **_FAST_VP9}),
    Kind("vp9-gop1", ".mp4", "libvpx-vp9", {"g": 1, **_FAST_VP9}),
    Kind("vp9-gop250", ".webm", "libvpx-vp9", {"g": 250, **_FAST_VP9}, num_frames=300),
    Kind("vp9-vfr", ".mkv", "libvpx-vp9", {"g": 25, **_FAST_VP9}, variable=True),
    Kind("av1", ".mkv", "libsvtav1", {"g": 30, **_FAST_AV1}),
    Kind("av1-gop1", ".mp4", "libsvtav1", {"g": 1, **_FAST_AV1}),
    Kind("av1-gop250", ".mp4", "libsvtav1", {"g": 250, **_FAST_AV1}, num_frames=300),
    Kind("av1-vfr", ".mkv", "libsvtav1", {"g": 25, **_FAST_AV1}, variable=True),
]
CODECS = ("libx264", "libx265", "libvpx-vp9", "libsvtav1")
"""H.264, HEVC, VP9 and AV1, as PyAV's FFmpeg encodes them."""
FPS = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


def _write(path: Path, kind: Kind) -> np.ndarray:
    """Returns the time of each frame as it was asked for, the first at 0."""
    rng = np.random.default_rng(7)
    times = np.arange(kind.num_frames) / FPS
    if kind.variable:
        times = np.concatenate([[0.0], np.cumsum(rng.uniform(0.005, 0.12, kind.num_frames - 1))])
    # Noise that stands still makes each frame depend on the ones it was predicted from.
    noise = rng.integers(-20, 20, (SIDE, SIDE, 1)).astype(np.int16)
    frames = (np.clip(painted(number) + noise, 0, 255).astype(np.uint8) for number in range(kind.num_frames))
    write_video(path, frames, FPS, kind.codec, times_sec=times if kind.variable else None, **kind.opts)
    return times


def _sequential(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times [F] and pixels [F, Y, X, R] of all frames, decoded in one go with PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return np.array([float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames]), pixels


def _num_key_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(packet.is_keyframe and packet.size > 0 for packet in container.demux(video=0))


RANDOM, ON_A_FRAME, BACKWARDS = 60, 30, 10
"""Accesses to each kind of video: anywhere, exactly when a frame starts, and from the end to the start."""


def test_the_kinds_cover_codecs_groups_and_rates():
    """Every encoder has groups of 1 and of 250 pictures and a variable rate; some have pictures out of order."""
    by_codec = {codec: [kind for kind in KINDS if kind.codec == codec] for codec in CODECS}
    for kinds in by_codec.values():
        assert {1, 250} <= {kind.opts["g"] for kind in kinds}
        assert any(kind.variable for kind in kinds)
        assert len(kinds) * (RANDOM + ON_A_FRAME + BACKWARDS) >= 400
    assert sum(kind.opts.get("bf", 0) > 0 or "bframes" in str(kind.opts) for kind in KINDS) >= 5
    assert len(KINDS) * (RANDOM + ON_A_FRAME + BACKWARDS) >= 1000


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_random_and_backward_access_equals_sequential_decode(folder: Path, kind: Kind):
    path = folder / f"{kind.name}{kind.suffix}"
    asked_times = _write(path, kind)
    times, pixels = _sequential(path)
    assert numbers_of(pixels) == list(range(kind.num_frames))
    np.testing.assert_allclose(times, asked_times, atol=1.1e-3)  # some containers count milliseconds
    if kind.opts["g"] in (1, 250) and "refresh" not in kind.name:
        assert _num_key_frames(path) == (kind.num_frames if kind.opts["g"] == 1 else 2)
    info = probe_video(path)
    assert (info.width, info.height) == (SIDE, SIDE)
    assert info.duration_sec == pytest.approx(times[-1] + 1 / FPS, abs=0.15 if kind.variable else 2e-3)

    rng = np.random.default_rng(1)
    draws = np.concatenate([
        rng.uniform(0, times[-1], RANDOM),
        times[rng.integers(0, len(times), ON_A_FRAME)],
        np.sort(rng.uniform(0, times[-1], BACKWARDS))[::-1],
    ])  # fmt: skip
    expected = np.searchsorted(times, draws + 1e-6, side="right") - 1
    with VideoReader(path) as reader:
        clips = [reader.read([draw], [(SIDE, SIDE)]) for draw in draws]
        together = reader.read(draws.tolist(), [(SIDE, SIDE)])
    found = np.concatenate([clip.views[0] for clip in clips])
    assert numbers_of(found) == expected.tolist()
    np.testing.assert_array_equal(found, pixels[expected])
    np.testing.assert_array_equal(together.views[0], pixels[expected])
    np.testing.assert_allclose(together.times_sec, times[expected], atol=1e-9)


def test_a_stream_that_does_not_start_at_zero(folder: Path):
    path = folder / "late.mkv"
    write_video(path, (painted(n) for n in range(30)), 10.0, times_sec=[5.0 + n / 10 for n in range(30)], bf=2)
    assert probe_video(path).duration_sec == pytest.approx(3.0, abs=1e-3)
    with VideoReader(path) as reader:
        clip = reader.read([0.0, 1.05, 2.95], [(SIDE, SIDE)])
    assert numbers_of(clip.views[0]) == [0, 10, 29]
    np.testing.assert_allclose(clip.times_sec, [0.0, 1.0, 2.9], atol=1e-3)


def test_forward_requests_do_not_seek_and_backward_ones_do(folder: Path):
    path = folder / "forward.mp4"
    write_video(path, (painted(n) for n in range(90)), FPS, g=30, bf=2)
    with VideoReader(path) as reader:
        for clip in range(5):
            reader.read([clip * 0.5 + step / 4 for step in range(3)], [(8, 8)])
        assert reader.num_seeks == 0
        reader.read([0.1], [(8, 8)])
        assert reader.num_seeks == 1


def test_a_far_jump_seeks_to_the_key_frame_before(folder: Path):
    path = folder / "far.mp4"
    write_video(path, (painted(n % 1000) for n in range(900)), FPS, g=30, preset="ultrafast")
    with VideoReader(path) as reader:
        reader.read([0.0], [(8, 8)])
        began = time.perf_counter()
        assert numbers_of(reader.read([28.5], [(SIDE, SIDE)]).views[0]) == [855]
        assert reader.num_seeks == 1
        jump = time.perf_counter() - began
    with VideoReader(path) as reader:
        began = time.perf_counter()
        reader.read(list(np.arange(0, 28.6, 0.1)), [(8, 8)])
        assert jump < (time.perf_counter() - began) / 3


def test_times_outside_the_video_are_refused(folder: Path):
    path = folder / "short.mp4"
    write_video(path, (painted(n) for n in range(10)), 10.0)
    with VideoReader(path) as reader:
        assert numbers_of(reader.read([1.0, 0.0], [(SIDE, SIDE)]).views[0]) == [9, 0]
        for wrong in (-0.01, 1.01, float("nan"), float("inf")):
            with pytest.raises(DataError, match=r"short\.mp4"):
                reader.read([wrong], [(8, 8)])
        assert numbers_of(reader.read([0.5], [(SIDE, SIDE)]).views[0]) == [5]


def test_read_grid_gives_every_step_of_the_video(folder: Path):
    path = folder / "grid.mp4"
    write_video(path, (painted(n) for n in range(300)), FPS, g=50, bf=2, preset="ultrafast")
    with VideoReader(path) as reader:
        chunks = list(reader.read_grid(4.0, [(SIDE, SIDE), (8, 8)]))
        assert reader.num_seeks == 0
        pairs = list(reader.read_grid(4.0, [(SIDE, SIDE)], offsets=(-0.125, 0.0)))
        with pytest.raises(DataError, match=r"offsets"):
            next(reader.read_grid(4.0, [(8, 8)], offsets=(0.1,)))
    assert [len(chunk.times_sec) for chunk in chunks] == [32, 8]
    expected = [int(step / 4 * FPS + 1e-6) for step in range(40)]
    assert [n for chunk in chunks for n in numbers_of(chunk.views[0])] == expected
    assert [chunk.views[1].shape for chunk in chunks] == [(32, 8, 8, 3), (8, 8, 8, 3)]
    both = [n for chunk in pairs for n in numbers_of(chunk.views[0])]
    assert both[1::2] == expected
    assert both[::2] == [max(0, int((step / 4 - 0.125) * FPS + 1e-6)) for step in range(40)]


# ------------------------------------------------------------------------------------------------- pictures


def test_written_bytes_are_a_function_of_the_input(folder: Path):
    """Wherever in memory the encoder works: x264 by itself gave other bytes in every third of such calls."""
    written, kept = set(), []
    for size in np.random.default_rng(0).integers(1_000, 400_000, 12):
        kept.append(np.zeros(size, dtype=np.uint8))
        write_video(folder / "one.mp4", (painted(n) for n in range(20)), 12.0, crf=20, g=6, bf=2)
        written.add((folder / "one.mp4").read_bytes())
    assert len(written) == 1
    assert not list(folder.glob(".*partial*"))


def test_a_failed_write_leaves_nothing(folder: Path):
    def broken() -> Iterator[np.ndarray]:
        yield painted(0)
        yield painted(0, 32, 32)

    with pytest.raises(DataError, match=r"shape"):
        write_video(folder / "broken.mp4", broken(), 10.0)
    with pytest.raises(DataError, match=r"no frames"):
        write_video(folder / "broken.mp4", iter([]), 10.0)
    assert not list(folder.glob("*broken*"))


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_metadata_is_applied(folder: Path, turn: int):
    """The stored picture is turned; turning it back by the metadata shows red at the top left again."""
    upright = np.full((48, 80, 3), 60, dtype=np.uint8)
    upright[:16, :16] = (255, 0, 0)
    upright[:16, -16:] = (0, 255, 0)
    path = folder / f"turned{turn}.mp4"
    stored = np.rot90(upright, -turn // 90)
    write_video(path, [stored] * 5, 10.0, rotation=turn, crf=10)
    info = probe_video(path)
    assert (info.height, info.width, info.rotation) == (48, 80, turn)
    with VideoReader(path) as reader:
        (view,) = reader.read([0.2], [(48, 80)]).views
        (corner,) = reader.read([0.2], [(8, 8)], CropBox(2, 66, 10, 10)).views
    assert np.abs(view[0].astype(int)[8, 8] - (255, 0, 0)).max() < 40
    assert np.abs(view[0].astype(int)[8, 72] - (0, 255, 0)).max() < 40
    assert np.abs(corner[0].astype(int).mean((0, 1)) - (0, 255, 0)).max() < 40


@pytest.mark.parametrize(("height", "width"), [(33, 47), (64, 35), (51, 64)])
def test_odd_sizes(folder: Path, height: int, width: int):
    path = folder / f"odd{height}x{width}.mp4"
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[:, :, 0] = np.linspace(0, 255, width).astype(np.uint8)
    picture[:, :, 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    write_video(path, [picture] * 4, 8.0, pix_fmt="yuv444p", crf=4)
    assert probe_video(path)[2:4] == (width, height)
    with VideoReader(path) as reader:
        (view,) = reader.read([0.3], [(height, width)]).views
    assert np.abs(view[0].astype(int) - picture).max() < 16


def test_the_largest_of_several_streams_is_read(folder: Path):
    path = folder / "several.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for side in (32, 96, 64):
            stream: Any = container.add_stream("libx264", rate=10)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            streams.append(stream)
        for number in range(10):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(painted(number, stream.height, stream.width), format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    info = probe_video(path)
    assert (info.width, info.height, info.num_streams) == (96, 96, 3)
    with VideoReader(path) as reader:
        assert numbers_of(reader.read([0.7], [(96, 96)]).views[0]) == [7]


def test_a_bright_dot_lands_in_the_same_cell_of_both_views(folder: Path):
    """Encoder view 64 px and Gazelle view 112 px, 8 × 8 cells each, over random dots and boxes."""
    rng = np.random.default_rng(3)
    height, width, cells, num_dots = 180, 320, 8, 60
    dots = [(rng.uniform(10, width - 10), rng.uniform(10, height - 10)) for _ in range(num_dots)]
    pictures = []
    rows, columns = np.mgrid[:height, :width] + 0.5
    for x, y in dots:
        glow = 230 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.5**2))
        pictures.append(np.repeat(glow.astype(np.uint8)[..., None], 3, axis=2))
    path = folder / "dots.mp4"
    write_video(path, pictures, 10.0, crf=6, pix_fmt="yuv444p")
    info = probe_video(path)
    checked = 0
    with VideoReader(path) as reader:
        for number, (x, y) in enumerate(dots):
            box = random_box(info, (0.2, 1.0), (0.5, 2.0), rng)
            u, v = (x - box.left) / box.width * cells, (y - box.top) / box.height * cells
            margin = min(u % 1, 1 - u % 1, v % 1, 1 - v % 1)
            if not (0 < u < cells and 0 < v < cells) or margin < 0.06:
                continue  # outside, or so near a border that the codec's noise decides
            clip = reader.read([number / 10 + 0.05], [(64, 64), (112, 112)], box)
            found = {_brightest_cell(view[0], cells) for view in clip.views}
            assert found == {(int(v), int(u))}
            checked += 1
    assert checked >= 15


def _brightest_cell(view: np.ndarray, cells: int) -> tuple[int, int]:
    """The cell of the centre of mass of the light."""
    light = np.maximum(view.astype(float).mean(-1) - 60, 0)
    side = view.shape[0]
    centre = (np.arange(side) + 0.5) / side * cells
    row, column = (light.sum(1) * centre).sum() / light.sum(), (light.sum(0) * centre).sum() / light.sum()
    return int(row), int(column)


def test_crop_equals_an_exact_average(folder: Path):
    """A box on whole pixels, shrunk by a whole factor: areas of one colour keep that colour, to the border's blend."""
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[16:48, 16:48] = 200
    path = folder / "square.mp4"
    write_video(path, [picture] * 3, 10.0, crf=1, pix_fmt="yuv444p")
    with VideoReader(path) as reader:
        inside, whole = (reader.read([0.0], [(8, 8)], box).views[0] for box in (CropBox(16, 16, 32, 32), None))
        with pytest.raises(DataError, match=r"outside the picture"):
            reader.read([0.0], [(8, 8)], CropBox(40, 0, 30, 30))
    assert np.abs(inside[:, 1:-1, 1:-1].astype(int) - 200).max() <= 4
    assert np.abs(whole[0, 3:5, 3:5].astype(int) - 200).max() <= 4
    assert whole[0, 0].max() <= 4


def test_scaling_averages_what_lies_under_a_pixel(folder: Path):
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[:, ::2] = 200
    path = folder / "stripes.mkv"
    write_video(path, [picture] * 3, 10.0, codec="ffv1", pix_fmt="bgr0")
    with VideoReader(path) as reader:
        shrunk = reader.read([0.0], [(16, 16)]).views[0]
        moved = reader.read([0.0], [(64, 62)], CropBox(0, 0.5, 64, 62)).views[0]
    assert np.abs(shrunk[0, :, 1:-1].astype(int) - 100).max() <= 2
    assert np.abs(moved.astype(int) - 100).max() <= 2


def test_pictures_that_nobody_asks_for_are_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = folder / "unasked.mp4"
    write_video(path, (painted(n) for n in range(120)), FPS, g=30, bf=2, preset="veryfast")
    counts: list[int] = []
    whole = FrameWalk.next_frame

    def counted(walk: FrameWalk) -> av.VideoFrame | None:
        counts.append(1)
        return whole(walk)

    monkeypatch.setattr(FrameWalk, "next_frame", counted)
    times = [n * 5 / FPS for n in range(24)]
    with VideoReader(path) as reader:
        together = reader.read(times, [(SIDE, SIDE)]).views[0]
    sparse = len(counts)
    with VideoReader(path) as reader:
        one_by_one = [reader.read([time], [(SIDE, SIDE)]).views[0] for time in times]
    assert numbers_of(together) == [n * 5 for n in range(24)]
    np.testing.assert_array_equal(together, np.concatenate(one_by_one))
    assert sparse < len(counts) - sparse - 10
