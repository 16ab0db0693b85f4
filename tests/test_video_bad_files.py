"""Files that are not what they should be end in a clear error in bounded time, never in a hang or a wrong frame."""

import hashlib
import os
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from hwm.data.checking import CheckChild, VideoCheck, check_videos
from hwm.data.video import VideoReader, probe_video, write_video
from hwm.errors import DataError

SIDE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def good(folder: Path) -> Path:
    path = folder / "good.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (60, SIDE, SIDE, 3), dtype=np.uint8)
    write_video(path, noise, 10.0, g=10)
    return path


def _checked(path: Path) -> VideoCheck:
    return next(check for _, check in check_videos([path], lambda _: 20.0, 1))


def _refused(path: Path, *reasons: str) -> None:
    """Both probes and the check refuse the file in one line that gives the reason; the probes name it, too."""
    reason = _checked(path).reason
    assert reason is not None
    assert any(expected in reason for expected in reasons), reason
    assert str(path) not in reason
    for refuse in (lambda: probe_video(path), lambda: VideoReader(path)):
        with pytest.raises(DataError) as raised:
            refuse()
        assert str(path) in raised.value.problem
        assert "\n" not in raised.value.problem
        assert any(reason in raised.value.problem for reason in reasons), raised.value.problem


def test_missing_empty_and_text(folder: Path):
    _refused(folder / "nowhere.mp4", "does not exist")
    (folder / "empty.mp4").write_bytes(b"")
    _refused(folder / "empty.mp4", "0 bytes")
    (folder / "text.mp4").write_text("this is not a video\n" * 50)
    _refused(folder / "text.mp4", "Invalid data")
    (folder / "folder.mp4").mkdir()
    _refused(folder / "folder.mp4", "not a regular file")


def test_cut_download_without_index(folder: Path, good: Path):
    data = good.read_bytes()
    plain = folder / "plain.mp4"
    with av.open(str(good)) as source, av.open(str(plain), "w") as target:  # index at the end, as cameras write it
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    cut = folder / "cut.mp4"
    cut.write_bytes(plain.read_bytes()[: len(data) // 2])
    _refused(cut, "Invalid data")


def test_file_cut_in_the_middle_with_its_index_at_the_front(folder: Path, good: Path):
    path = folder / "middle.mp4"
    path.write_bytes(good.read_bytes()[: good.stat().st_size * 6 // 10])
    with pytest.raises(DataError, match=r"cut off before its end"):
        probe_video(path)
    assert "cut off before its end" in str(_checked(path).reason)
    with VideoReader(path) as reader:
        reader.read([0.0, 1.0], [(8, 8)])  # what is there can be read
        with pytest.raises(DataError, match=r"middle\.mp4"):
            reader.read([5.5], [(8, 8)])


def test_container_that_promises_more_frames_than_can_be_decoded(folder: Path, good: Path):
    """The index names 60 frames; the bytes of the last 20 are zeros."""
    data = bytearray(good.read_bytes())
    with av.open(str(good)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in packets[40:]:
        data[position : position + size] = bytes(size)
    path = folder / "promises.mp4"
    path.write_bytes(data)
    assert _checked(path).reason == "its last frame cannot be decoded"
    with VideoReader(path) as reader:
        reader.read([3.0], [(8, 8)])
        with pytest.raises(DataError, match=r"promises\.mp4"):
            reader.read([5.5], [(8, 8)])


def test_container_that_claims_a_longer_duration(folder: Path, good: Path):
    """The duration in the header is not believed: the last frame's timestamp is."""
    data = bytearray(good.read_bytes())
    for atom, offset in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)):
        place = data.index(atom) + 4 + offset
        (value,) = struct.unpack(">I", data[place : place + 4])
        data[place : place + 4] = struct.pack(">I", value * 3)
    path = folder / "claims.mp4"
    path.write_bytes(data)
    facts = _checked(path).facts
    assert facts is not None
    assert facts["duration_sec"] == pytest.approx(6.0, abs=0.01)


def test_damaged_data_in_the_middle_is_an_error_or_leaves_other_frames_right(folder: Path, good: Path):
    data = bytearray(good.read_bytes())
    with av.open(str(good)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    position, size = packets[25]
    data[position + 8 : position + size] = bytes(size - 8)
    path = folder / "damaged.mp4"
    path.write_bytes(data)
    with VideoReader(good) as reader:
        right = reader.read([step / 10 for step in range(60)], [(SIDE, SIDE)]).views[0]
    wrong = 0
    with VideoReader(path) as reader:
        for number in range(60):
            try:
                view = reader.read([number / 10], [(SIDE, SIDE)]).views[0]
            except DataError as error:
                wrong += "damaged.mp4" in error.problem
                continue
            if not 20 <= number < 30:
                np.testing.assert_array_equal(view[0], right[number])
    assert wrong >= 1


def test_sound_only(folder: Path):
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    _refused(path, "no video stream")


def test_no_permission(folder: Path, good: Path, monkeypatch: pytest.MonkeyPatch):
    path = folder / "locked.mp4"
    shutil.copy(good, path)
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything: let the system call refuse instead

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"cannot read video .*locked\.mp4: Permission denied"):
        probe_video(path)


def test_vanished_after_opening_and_before(folder: Path, good: Path):
    path = folder / "vanishing.mp4"
    shutil.copy(good, path)
    probe_video(path)
    path.unlink()
    _refused(path, "does not exist")


def test_fifo_is_refused_at_once(folder: Path):
    path = folder / "fifo.mp4"
    os.mkfifo(path)
    began = time.perf_counter()
    _refused(path, "not a regular file")
    assert time.perf_counter() - began < 10


READY = "import json, os, sys, time; print(json.dumps({'ready': True}), flush=True)"


def test_a_decoder_that_hangs_is_ended_named_and_the_next_video_gets_a_new_one(folder: Path):
    """The child blocks for ever on the first path it is asked, and answers the second."""
    record = folder / "children.txt"
    code = f"""{READY}
open({str(record)!r}, "a").write(f"{{os.getpid()}} ")
for line in sys.stdin:
    if "hangs" in line:
        time.sleep(600)
    print(json.dumps({{"reason": "answered"}}), flush=True)
"""
    began = time.perf_counter()
    paths = [folder / "hangs.mp4", folder / "next.mp4"]
    checks = dict(check_videos(paths, lambda _: 1.5, 1, [sys.executable, "-c", code]))
    assert time.perf_counter() - began < 20
    late = VideoCheck(None, "the decoder did not answer within 1.5 s and was ended", None, is_final=False)
    assert checks == {paths[0]: late, paths[1]: VideoCheck(None, "answered", None, is_final=True)}
    children = [int(number) for number in record.read_text().split()]
    assert len(children) == 2
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_a_decoder_that_crashes_is_named_with_its_last_words():
    code = (
        f"{READY}\nfor line in sys.stdin: print('no such luck', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)"
    )
    ((_, check),) = check_videos([Path("x.mp4")], lambda _: 20.0, 1, [sys.executable, "-c", code])
    assert check == VideoCheck(None, "the decoder ended with code -11", "no such luck", is_final=False)


def test_a_child_that_cannot_start_is_a_fault_of_the_installation():
    child = CheckChild([sys.executable, "-c", "raise ImportError('libavcodec.so is gone')"])
    with pytest.raises(DataError, match="cannot be started") as raised:
        child.check(Path("x.mp4"), 5.0)
    assert "libavcodec.so is gone" in str(raised.value.found)
    child.close()


def test_a_check_that_is_given_up_leaves_no_child_behind(folder: Path):
    record = folder / "given-up.txt"
    code = f"{READY}\nopen({str(record)!r}, 'a').write(f'{{os.getpid()}} ')\nfor line in sys.stdin: time.sleep(600)"
    paths = [folder / f"{number}.mp4" for number in range(4)]
    answers = check_videos(paths, lambda _: 0.5, 2, [sys.executable, "-c", code])
    next(answers)
    answers.close()
    for child in record.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(child), 0)


def test_check_agrees_with_probe(good: Path):
    facts, info = _checked(good).facts, probe_video(good)
    assert facts is not None
    assert {name: facts[name] for name in info._fields if name != "path"} == {
        name: value for name, value in info._asdict().items() if name != "path"
    }
    assert (facts["frames"], facts["frames_promised"], facts["frames_hidden"]) == (60, 60, 0)
    assert facts["sha256"] == hashlib.sha256(good.read_bytes()).hexdigest()
