"""Readers kept open give the same frames, are few, and are not used after an error; waiting is measured."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hwm.data.decoding import FrameCursor
from hwm.data.open_readers import OpenReaders
from hwm.data.video import VideoReader, write_video
from hwm.engine.waiting import Waited
from hwm.errors import DataError


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("readers")
    rng = np.random.default_rng(0)
    made = [folder / f"{name}.mp4" for name in "abc"]
    for path in made:
        write_video(path, rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8), 8.0, preset="ultrafast", g=10)
    return made


def test_a_kept_reader_gives_the_frames_of_a_new_one(paths: list[Path]) -> None:
    readers, rng = OpenReaders(2), np.random.default_rng(1)
    for _ in range(40):
        path = paths[int(rng.integers(3))]
        times = [float(rng.uniform(0, 4.8)) for _ in range(3)]
        with VideoReader(path) as fresh:
            expected = fresh.read(times, [(32, 32)])
        found = readers.get(path).read(times, [(32, 32)])
        assert np.array_equal(found.views[0], expected.views[0])
        assert np.array_equal(found.times_sec, expected.times_sec)


def test_few_are_open_and_the_oldest_goes(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    close = FrameCursor.close

    def noted(self: FrameCursor) -> None:
        closed.append(self.path.name)
        close(self)

    monkeypatch.setattr(FrameCursor, "close", noted)
    readers = OpenReaders(2)
    first = readers.get(paths[0])
    readers.get(paths[1])
    assert readers.get(paths[0]) is first
    readers.get(paths[2])
    assert closed == ["b.mp4"]
    readers.forget(paths[0])
    assert readers.get(paths[0]) is not first
    readers.close()
    assert sorted(closed) == ["a.mp4", "a.mp4", "b.mp4", "c.mp4"]
    with pytest.raises(DataError):
        readers.get(paths[0].with_name("none.mp4"))
    with pytest.raises(DataError):  # what could not be opened is not kept
        readers.get(paths[0].with_name("none.mp4"))


def test_waiting_is_the_share_of_time_before_a_value_is_there() -> None:
    def values() -> Iterator[int]:
        for i in range(4):
            time.sleep(0.03)
            yield i

    waited = Waited(values())
    seen = []
    for value in waited:
        time.sleep(0.01)
        seen.append(value)
    assert seen == [0, 1, 2, 3]
    assert 0.6 < waited.share() < 0.9
    assert waited.share() < 0.5  # begins anew
