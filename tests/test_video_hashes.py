"""Hashes of videos are remembered: nothing is read twice, and nothing that may have changed is taken as known."""

import errno
import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from hwm.data import content
from hwm.errors import CacheError
from hwm.models.world_model import TimeGrid
from hwm.tokens import video_hashes
from hwm.tokens.cache import TokenCache
from hwm.tokens.video_hashes import SETTLED_NS, VIDEO_HASHES, Forgotten, VideoHashes


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that these tests write are old enough at once."""
    monkeypatch.setattr(video_hashes, "SETTLED_NS", -SETTLED_NS)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read for their hash."""
    names: list[str] = []

    def noted(path: Path, *given) -> str:
        names.append(path.name)
        return content.content_sha256(path, *given)

    monkeypatch.setattr(video_hashes, "content_sha256", noted)
    return names


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def videos_in(folder: Path, count: int = 3) -> list[Path]:
    paths = [folder / f"v{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 1000)
    return paths


@pytest.mark.usefixtures("settled")
def test_a_video_is_read_once_by_all_runs(tmp_path: Path, read: list[str]) -> None:
    videos, store = videos_in(tmp_path), tmp_path / "tokens" / VIDEO_HASHES
    for _ in range(3):
        hashes = VideoHashes(store)
        assert [hashes.sha256(video) for video in videos] == [sha256(video) for video in videos]
        assert [hashes.recall(video) for video in videos] == [sha256(video) for video in videos]
    assert read == ["v0.mp4", "v1.mp4", "v2.mp4"]
    (tmp_path / "link").symlink_to(tmp_path)
    assert VideoHashes(store).recall(tmp_path / "link" / "v0.mp4") == sha256(videos[0])
    store.unlink()
    assert VideoHashes(store).recall(videos[0]) is None, "the file may be deleted"
    assert VideoHashes(store).sha256(videos[0]) == sha256(videos[0])


@pytest.mark.usefixtures("settled")
def test_other_content_of_the_same_size_and_time_is_read_anew(tmp_path: Path, read: list[str]) -> None:
    (video,), store = videos_in(tmp_path, 1), tmp_path / VIDEO_HASHES
    VideoHashes(store).sha256(video)
    before = video.stat()
    time.sleep(0.02)  # more than a tick of the clock of a Linux file system
    with video.open("r+b") as file:
        file.write(b"other")
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = video.stat()
    same = ("st_size", "st_mtime_ns", "st_ino")
    assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]
    assert VideoHashes(store).recall(video) is None
    assert VideoHashes(store).sha256(video) == sha256(video)
    assert len(read) == 2


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", ["size", "mtime", "file", "target"])
def test_a_file_that_differs_in_anything_is_read_anew(tmp_path: Path, change: str) -> None:
    (video, other), store = videos_in(tmp_path, 2), tmp_path / VIDEO_HASHES
    link = tmp_path / "link.mp4"
    link.symlink_to(video)
    asked = link if change == "target" else video
    VideoHashes(store).sha256(asked)
    if change == "size":
        with video.open("ab") as file:
            file.write(b"!")
    elif change == "mtime":
        os.utime(video, ns=(0, 0))
    elif change == "file":
        other.replace(video)
    else:
        link.unlink()
        link.symlink_to(other)
    assert VideoHashes(store).recall(asked) is None
    assert VideoHashes(store).sha256(asked) == sha256(asked)


@pytest.mark.parametrize("name", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"])
def test_each_of_these_tells_two_files_apart(tmp_path: Path, name: str) -> None:
    (video,) = videos_in(tmp_path, 1)
    now = video.stat()
    indexed = {"st_ino": 1, "st_size": 6}
    fields, named = list(now), {each: getattr(now, each) for each in ("st_mtime_ns", "st_ctime_ns")}
    state = video_hashes._state(video, os.stat_result(fields, named))
    assert state == video_hashes._state(video, now)
    if name in indexed:
        fields[indexed[name]] += 1
    else:
        named[name] += 1
    assert state != video_hashes._state(video, os.stat_result(fields, named))


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a tick of the file system's clock it may change again, and look the same."""
    (video,), store = videos_in(tmp_path, 1), tmp_path / VIDEO_HASHES
    hashes = VideoHashes(store)
    assert hashes.sha256(video) == sha256(video)
    assert not store.exists()
    changed_ns = video.stat().st_ctime_ns
    for mtime_ns, now_ns, is_kept in (
        (0, changed_ns + SETTLED_NS // 2, False),  # by its ctime
        (changed_ns + SETTLED_NS, changed_ns + SETTLED_NS + SETTLED_NS // 2, False),  # by its mtime
        (0, changed_ns - SETTLED_NS, False),  # by a server whose clock is ahead
        (0, changed_ns + 2 * SETTLED_NS, True),
    ):
        os.utime(video, ns=(mtime_ns, mtime_ns))
        now_ns += video.stat().st_ctime_ns - changed_ns
        monkeypatch.setattr(time, "time_ns", lambda now_ns=now_ns: now_ns)
        assert VideoHashes(store).sha256(video) == sha256(video)
        assert (VideoHashes(store).recall(video) is not None) == is_kept


@pytest.mark.usefixtures("settled")
def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path) -> None:
    (video,), store = videos_in(tmp_path, 1), tmp_path / VIDEO_HASHES

    def change(count: int) -> None:
        time.sleep(0.02)
        with video.open("r+b") as file:
            file.write(b"other")

    VideoHashes(store).sha256(video, change)
    assert not store.exists()


@pytest.mark.usefixtures("settled")
def test_damage_is_never_believed(tmp_path: Path) -> None:
    videos, store = videos_in(tmp_path), tmp_path / VIDEO_HASHES
    truth = [sha256(video) for video in videos]
    hashes = VideoHashes(store)
    for video in videos:
        hashes.sha256(video)
    whole = store.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(1, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        store.write_bytes(damaged)
        recalled = [VideoHashes(store).recall(video) for video in videos]
        assert sum(digest is None for digest in recalled) in (1, 2), place  # two where the end of a line goes
        assert all(digest in (None, true) for digest, true in zip(recalled, truth, strict=True))
    for length in rng.integers(0, len(whole), 50):
        store.write_bytes(whole[:length])
        assert all(VideoHashes(store).recall(v) in (None, true) for v, true in zip(videos, truth, strict=True))
        assert [VideoHashes(store).sha256(video) for video in videos] == truth
        assert [VideoHashes(store).recall(video) for video in videos] == truth, "a torn line spoils no other"
    for foreign in (b"", b"\xff\xfe\x00" * 100, b"[" * 100_000, b"{}\nnull\n[]\n", whole.replace(b"\n", b"\r\n")):
        store.write_bytes(foreign)
        assert [VideoHashes(store).sha256(video) for video in videos] == truth


@pytest.mark.usefixtures("settled")
def test_a_folder_that_cannot_be_written_is_told_once_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, store = videos_in(tmp_path), tmp_path / VIDEO_HASHES
    VideoHashes(store).sha256(videos[0])
    opened = Path.open

    def read_only(self: Path, mode: str = "r", *given, **named):
        if self == store and mode != "rb":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(self, mode, *given, **named)

    monkeypatch.setattr(Path, "open", read_only)
    hashes = VideoHashes(store)
    assert hashes.recall(videos[0]) == sha256(videos[0])
    assert [hashes.sha256(video) for video in videos] == [sha256(video) for video in videos]
    assert capsys.readouterr().out.count("Read-only file system") == 1
    store.unlink()
    store.mkdir()
    hashes = VideoHashes(store)
    assert [hashes.sha256(video) for video in videos] == [sha256(video) for video in videos]
    assert hashes.forget(dry_run=False) == Forgotten(0, 0)


@pytest.mark.usefixtures("settled")
def test_what_another_process_read_meanwhile_is_not_read_again(tmp_path: Path, read: list[str]) -> None:
    videos, store = videos_in(tmp_path), tmp_path / VIDEO_HASHES
    hashes, others = VideoHashes(store), VideoHashes(store)
    assert hashes.recall(videos[0]) is None
    others.sha256(videos[0])
    assert hashes.recall(videos[0]) == sha256(videos[0])
    others.sha256(videos[1])
    assert hashes.sha256(videos[1]) == sha256(videos[1])
    assert read == ["v0.mp4", "v1.mp4"]
    videos[0].unlink()
    videos[1].unlink()
    assert others.forget(dry_run=False) == Forgotten(2, 0)
    others.sha256(videos[2])  # the file is shorter than it was
    assert hashes.recall(videos[2]) == sha256(videos[2])


@pytest.mark.usefixtures("settled")
def test_processes_that_start_at_once_share_the_reading(tmp_path: Path, read: list[str]) -> None:
    videos, grid = videos_in(tmp_path, 12), TimeGrid(4.0, "frame", 64, None)
    first, second = (TokenCache(tmp_path / "tokens", grid, {"encoder": "0"}) for _ in range(2))
    told: list[int] = []

    def other_goes_on(count: int) -> None:
        if not told:
            second.hash_videos(videos, lambda count: None)
        told.append(count)

    first.hash_videos(videos, other_goes_on)
    assert sorted(read) == sorted([read[0], *(video.name for video in videos)]), (
        "only the one that both were at is twice"
    )
    assert sum(told) == 12 * 1000
    assert first._digests == second._digests == {str(video): sha256(video) for video in videos}
    assert read[1:] != [video.name for video in videos], "each in an order of its own"


def _hash_all(store: str, videos: list[str], barrier) -> None:
    video_hashes.SETTLED_NS = -SETTLED_NS
    barrier.wait()
    hashes = VideoHashes(Path(store))
    for video in videos:
        hashes.sha256(Path(video))


@pytest.mark.usefixtures("settled")
def test_processes_that_write_at_once_lose_no_line(tmp_path: Path, read: list[str]) -> None:
    videos, store = videos_in(tmp_path, 200), tmp_path / VIDEO_HASHES
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    parts = [[str(video) for video in part] for part in (videos[:120], videos[80:])]
    pair = [context.Process(target=_hash_all, args=(str(store), part, barrier)) for part in parts]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
        assert process.exitcode == 0
    hashes = VideoHashes(store)
    assert [hashes.sha256(video) for video in videos] == [sha256(video) for video in videos]
    assert read == []
    dropped, kept = hashes.forget(dry_run=True)
    assert kept == 200
    assert dropped <= 40, "those of both may be there twice"


@pytest.mark.usefixtures("settled")
def test_what_no_longer_holds_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos, store = videos_in(tmp_path, 4), tmp_path / VIDEO_HASHES
    hashes = VideoHashes(store)
    assert hashes.forget(dry_run=False) == Forgotten(0, 0)
    assert not store.exists()
    for video in videos:
        hashes.sha256(video)
    videos[0].unlink()
    videos[1].write_bytes(b"changed")
    with store.open("ab") as file:
        file.write(b"\nnonsense")
    before = store.read_bytes()
    assert VideoHashes(store).forget(dry_run=True) == Forgotten(3, 2)
    assert store.read_bytes() == before
    with monkeypatch.context() as refusing:
        refusing.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(CacheError, match=r"video_hashes\.txt cannot be written: full"):
            VideoHashes(store).forget(dry_run=False)
    assert VideoHashes(store).forget(dry_run=False) == Forgotten(3, 2)
    assert VideoHashes(store).forget(dry_run=False) == Forgotten(0, 2)
    assert [VideoHashes(store).recall(video) for video in videos[2:]] == [sha256(video) for video in videos[2:]]
    assert VideoHashes(store).sha256(videos[1]) == sha256(videos[1])
