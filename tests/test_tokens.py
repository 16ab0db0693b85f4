"""Tokens are the same live and cached, depend on nothing later, and a damaged or foreign cache is never read."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from hwm.data.clips import ClipRequest
from hwm.data.open_readers import OpenReaders
from hwm.data.transforms import centre_square
from hwm.data.video import VideoReader, probe_video, write_video
from hwm.errors import CacheError, DataError, RunError
from hwm.models.observer import Observer, resample_scene
from hwm.models.world_model import TimeGrid
from hwm.tokens.cache import TokenCache
from hwm.tokens.features import FeaturePart, store_features
from hwm.tokens.observe import read_pixels
from hwm.tokens.source import CachedSource, LiveSource, TokenBatch
from hwm.weights.load import load_encoder, load_gazelle

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def observer(tiny_weights: Path) -> Observer:
    return Observer(load_encoder(tiny_weights / "encoder"), load_gazelle(tiny_weights / "gazelle"))


def first_video(world: Path) -> Path:
    return Path((world / "lists" / "train_cam01.txt").read_text().split()[0])


def request(world: Path, first_step: int, num_steps: int = 5) -> ClipRequest:
    path = first_video(world)
    info = probe_video(path if path.is_absolute() else world / "lists" / path)
    return ClipRequest(info, first_step, num_steps, centre_square(info))


def grid(step: str = "frame") -> TimeGrid:
    return TimeGrid(4.0, step, 64, 56)  # type: ignore[arg-type]


def cached(observer: Observer, folder: Path, step: str = "frame", **weights: str) -> CachedSource:
    named = {"encoder": "e", "gazelle": "g"} | weights
    return CachedSource(observer, grid(step), CPU, TokenCache(folder, grid(step), named))


def only(source: LiveSource | CachedSource, clip: ClipRequest) -> TokenBatch:
    return next(iter(source.batches([[clip]])))


@pytest.mark.parametrize("step", ["frame", "tubelet"])
@pytest.mark.parametrize("first_step", [-2, 0, 7])
def test_cached_tokens_are_the_live_ones(
    observer: Observer, toy_world: Path, tmp_path: Path, step: str, first_step: int
) -> None:
    clip = request(toy_world, first_step)
    live = only(LiveSource(observer, grid(step), CPU, num_workers=0), clip)
    source = cached(observer, tmp_path, step)
    assert source.prepare([clip.video], lambda done: None) == ()
    stored = only(source, clip)
    assert torch.equal(live.valid_BT, stored.valid_BT)
    assert live.valid_BT.sum() == 5 - max(0, -first_step)
    for one, other in zip(live[:3], stored[:3], strict=True):  # latents, scene tokens, gaze weights
        torch.testing.assert_close(one, other, atol=4e-3, rtol=1e-3)  # float16 on disk
        assert one is not None
        assert other is not None
        assert one.dtype == torch.float32
        assert not one[~live.valid_BT].any()
        assert not other[~live.valid_BT].any()
        assert one[live.valid_BT].any()


def test_a_step_is_the_frame_of_its_time_and_the_one_half_a_step_before(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    brightness = range(0, 240, 10)
    write_video(path, (np.full((64, 64, 3), value, np.uint8) for value in brightness), 8, codec="ffv1", pix_fmt="bgr0")
    info = probe_video(path)
    clip = ClipRequest(info, -1, 5, centre_square(info))
    seen = {}
    for step in ("frame", "tubelet"):
        pixels, valid = read_pixels(clip, grid(step), OpenReaders())
        assert valid.tolist() == [False, True, True, True, True]
        assert pixels.gaze_frames_SYXR is not None
        assert pixels.gaze_frames_SYXR[:, 0, 0, 0].tolist() == [0, 0, 20, 40, 60], "what Gazelle sees is never older"
        seen[step] = pixels.frames_SFYXR[:, :, 0, 0, 0].tolist()
    assert seen["frame"] == [[0], [0], [20], [40], [60]]
    assert seen["tubelet"] == [[0, 0], [0, 0], [10, 20], [30, 40], [50, 60]]


def test_a_reader_that_failed_is_not_used_again(toy_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, readers = request(toy_world, 0), OpenReaders()

    def torn(*given: object) -> None:
        raise DataError("a frame is missing")

    monkeypatch.setattr(readers.get(clip.video.path), "read", torn)
    with pytest.raises(DataError, match="a frame is missing"):
        read_pixels(clip, grid(), readers)
    assert read_pixels(clip, grid(), readers)[1].all()


def test_a_step_does_not_see_later_frames(observer: Observer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
    changed = frames.copy()
    changed[13:] = rng.integers(0, 255, changed[13:].shape, dtype=np.uint8)
    tokens = []
    for name, pixels in (("a", frames), ("b", changed)):
        path = tmp_path / f"{name}.mkv"
        write_video(path, iter(pixels), 12, codec="ffv1", pix_fmt="bgr0")
        info = probe_video(path)
        clip = ClipRequest(info, 0, 8, centre_square(info))
        tokens.append(only(LiveSource(observer, grid("tubelet"), CPU, 0), clip))
    # Frame 13 starts at 13/12 s, so the steps up to 1 s (index 4) must not have changed.
    assert torch.equal(tokens[0].z_BTND[:, :5], tokens[1].z_BTND[:, :5])
    assert torch.equal(tokens[0].scene_BTNG[:, :5], tokens[1].scene_BTNG[:, :5])
    assert not torch.equal(tokens[0].z_BTND[:, 5:], tokens[1].z_BTND[:, 5:])


def test_models_without_gaze_share_the_latents(observer: Observer, toy_world: Path, tmp_path: Path) -> None:
    clip = request(toy_world, 0)
    cached(observer, tmp_path).prepare([clip.video], lambda done: None)
    blind_grid = TimeGrid(4.0, "frame", 64, None)
    blind = TokenCache(tmp_path, blind_grid, {"encoder": "e"})
    assert not blind.missing(clip.video.path, clip.box)
    assert TokenCache(tmp_path, blind_grid, {"encoder": "other"}).missing(clip.video.path, clip.box) == ("z",)
    other_gazelle = TokenCache(tmp_path, grid(), {"encoder": "e", "gazelle": "other"})
    assert other_gazelle.missing(clip.video.path, clip.box) == ("scene",)


def test_a_damaged_token_file_is_refused(observer: Observer, toy_world: Path, tmp_path: Path) -> None:
    clip = request(toy_world, 0)
    source = cached(observer, tmp_path)
    source.prepare([clip.video], lambda done: None)
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CacheError, match="cannot read token file"):
        only(source, clip)


def test_steps_outside_the_video_are_refused(observer: Observer, toy_world: Path, tmp_path: Path) -> None:
    clip = request(toy_world, 10_000)
    source = cached(observer, tmp_path)
    source.prepare([clip.video], lambda done: None)
    with pytest.raises(CacheError, match="were asked for"):
        only(source, clip)
    with pytest.raises(DataError, match="has no frame at"):
        only(LiveSource(observer, grid(), CPU, 0), clip)


def test_random_crops_are_refused_by_the_cache(observer: Observer, toy_world: Path, tmp_path: Path) -> None:
    clip = request(toy_world, 0)
    with pytest.raises(CacheError, match=r"there is no token file(.|\n)*hwm extract"):
        only(cached(observer, tmp_path), clip._replace(box=clip.box._replace(left=0.0)))


def test_the_crops_that_are_asked_for_are_made_and_read(observer: Observer, toy_world: Path, tmp_path: Path) -> None:
    centre = request(toy_world, 0)
    aside = centre._replace(box=centre.box._replace(left=0.0))
    source = cached(observer, tmp_path)
    assert source.prepare([aside.video], lambda done: None, lambda video: (aside.box,)) == ()
    live = LiveSource(observer, grid(), CPU, num_workers=0)
    torch.testing.assert_close(only(live, aside).z_BTND, only(source, aside).z_BTND, atol=4e-3, rtol=1e-3)
    assert not torch.allclose(only(live, aside).z_BTND, only(live, centre).z_BTND, atol=0.1)
    with pytest.raises(CacheError, match="there is no token file"):
        only(source, centre)


def test_each_clip_of_a_batch_has_its_own_tokens(observer: Observer, toy_world: Path, tmp_path: Path) -> None:
    clips = [request(toy_world, first_step) for first_step in (3, -2, 0)]
    filled = cached(observer, tmp_path, "tubelet")
    assert filled.prepare([clips[0].video], lambda done: None) == ()
    for source in (LiveSource(observer, grid("tubelet"), CPU, num_workers=0), filled):
        together = next(iter(source.batches([clips])))
        for row, clip in enumerate(clips):
            for of_all, alone in zip(together, only(source, clip), strict=True):
                assert of_all is not None
                assert alone is not None
                torch.testing.assert_close(of_all[row], alone[0], atol=1e-4, rtol=1e-4)


def test_a_video_that_breaks_off_is_one_exclusion(observer: Observer, toy_world: Path, tmp_path: Path) -> None:
    clip = request(toy_world, 0)
    whole = clip.video.path.read_bytes()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(whole[: len(whole) // 2])
    excluded = cached(observer, tmp_path / "t").prepare(
        [clip.video._replace(path=broken), clip.video], lambda done: None
    )
    assert [Path(exclusion.item).name for exclusion in excluded] == ["broken.mp4"]
    assert excluded[0].reason.startswith("cannot be decoded whole")


def test_a_video_that_breaks_off_says_how_to_leave_it_out(observer: Observer, toy_world: Path, tmp_path: Path) -> None:
    clip = request(toy_world, 0)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.video.path.read_bytes()[:1000])
    clip = clip._replace(video=clip.video._replace(path=broken))
    said = []
    for num_workers in (0, 1):  # in a process of their own, as here
        with pytest.raises(DataError, match=r"broken\.mp4") as raised:
            only(LiveSource(observer, grid(), CPU, num_workers), clip)
        said.append(str(raised.value))
    assert said[0] == said[1]
    for way in ("hwm data check CONFIG", "data.manifest=", "annotations.manifest=", "tokens.source=cached"):
        assert way in str(raised.value)
    assert str(raised.value).index("fetch or encode") < str(raised.value).index("or leave it out")


def test_workers_and_the_main_process_decode_alike(observer: Observer, toy_world: Path) -> None:
    clips = [[request(toy_world, 3), request(toy_world, 9)], [request(toy_world, 1)]]
    alone, helped = (list(LiveSource(observer, grid(), CPU, n).batches(clips)) for n in (0, 1))
    assert all(torch.equal(a.z_BTND, b.z_BTND) for a, b in zip(alone, helped, strict=True))


def test_a_killed_worker_is_told_where_its_batch_would_have_come(observer: Observer, toy_world: Path) -> None:
    batches = LiveSource(observer, grid(), CPU, num_workers=2).batches([[request(toy_world, 1)]] * 50)
    others, before = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
    next(batches)
    for worker in multiprocessing.active_children():
        if worker not in others:
            worker.kill()
            worker.join()
    assert signal.getsignal(signal.SIGCHLD) is before, "it would interrupt whatever the main thread is at"
    with pytest.raises(RunError, match=r"found: SIGKILL\n.*runtime\.num_workers"):
        list(batches)


def test_features_that_find_no_room_are_an_error_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    part = FeaturePart([0, 1], torch.ones(2, 3, 4, 5), *(torch.ones(2, 3, dtype=torch.bool) for _ in "vk"))
    stored = store_features(tmp_path / "whole.npy", 2, [part], lambda done: None)
    assert np.array_equal(stored.tokens_STND, np.ones((2, 3, 4, 5)))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"No space left on device(?s:.*)expected: 368 B free"):
        store_features(tmp_path / "full.npy", 2, [part], lambda done: None)
    assert not (tmp_path / "full.npy").exists()


def test_scene_tokens_land_in_the_cell_of_their_place() -> None:
    scene = torch.zeros(1, 1, 8, 8)
    scene[0, 0, 2:4, 6:8] = 1.0
    averaged = resample_scene(scene, (4, 4)).reshape(4, 4)
    assert averaged[1, 3] == 1.0
    assert averaged.sum() == 1.0
    stretched = resample_scene(torch.eye(6)[None, None], (4, 4)).reshape(4, 4)
    assert torch.all(stretched.argmax(dim=1) == torch.arange(4))
    ramp = resample_scene(torch.arange(12.0).expand(1, 1, 12, 12), (8, 8)).reshape(8, 8)[0]
    assert ramp[2:6].tolist() == pytest.approx([(i + 0.5) * 1.5 - 0.5 for i in range(2, 6)], abs=0.05)  # cells' middles
    each = torch.eye(100).reshape(100, 1, 10, 10)  # one cell at a time
    assert torch.all(resample_scene(each, (4, 4)).sum(dim=1) > 0), "no cell is passed over"


def test_the_reader_gives_both_views_of_one_crop(toy_world: Path) -> None:
    clip = request(toy_world, 0)
    with VideoReader(clip.video.path) as reader:
        views = reader.read([1.0], [(64, 64), (56, 56)], clip.box).views
    assert [view.shape for view in views] == [(1, 64, 64, 3), (1, 56, 56, 3)]
