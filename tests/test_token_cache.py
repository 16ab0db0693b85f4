"""The token cache: whole or absent, verified, shared by processes, flat in memory; and crops read from it."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hwm.config import AugmentConfig, TokenDtype
from hwm.data.ahead import ahead
from hwm.data.clips import ClipPlan, ClipRequest, find_videos, fixed_box
from hwm.data.decoding import FrameCursor
from hwm.data.transforms import centre_square
from hwm.data.video import GRID_CHUNK_STEPS, CropBox, VideoInfo, num_grid_steps, probe_video, write_video
from hwm.errors import CacheError
from hwm.models.observer import Observer
from hwm.models.world_model import TimeGrid
from hwm.tokens import cache as cache_module
from hwm.tokens import video_hashes
from hwm.tokens.cache import FORMAT, LOCK, EntryWriter, TokenCache
from hwm.tokens.extraction import RESERVED_BYTES, Extractor, Wanted, centre_only, require_room
from hwm.tokens.maintenance import prune_cache, total_bytes, verify_cache
from hwm.tokens.observe import StepPixels, StepTokens, encode_pixels
from hwm.tokens.source import CachedSource, LiveSource
from hwm.tokens.stored import pack, unpack
from hwm.tokens.token_file import TokenWriter, read_steps, rehash
from hwm.tokens.video_hashes import VIDEO_HASHES
from hwm.weights.load import load_encoder, load_gazelle

CPU = torch.device("cpu")
GRID = TimeGrid(4.0, "frame", 64, 56)
GOLDEN = [2.99437, -0.14273, 0.17716, 1.05355, -0.29294, -1.32108, 0.32605]
FACTS = {"identity": "me", "crop": "[0]"}


@pytest.fixture(scope="module")
def observer(tiny_weights: Path) -> Observer:
    return Observer(load_encoder(tiny_weights / "encoder"), load_gazelle(tiny_weights / "gazelle"))


@pytest.fixture(scope="module")
def videos(toy_world: Path) -> tuple[VideoInfo, ...]:
    return find_videos([toy_world / "lists" / "train_cam01.txt"], "**/*", 1.0, None).videos


def cache_in(folder: Path, dtype: TokenDtype = "float16", encoder: str = "e") -> TokenCache:
    return TokenCache(folder, GRID, {"encoder": encoder, "gazelle": "g"}, dtype)


def extractor(observer: Observer, cache: TokenCache) -> Extractor:
    return Extractor(observer, GRID, CPU, cache)


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def write(path: Path, chunks: Sequence[dict[str, torch.Tensor]], num_steps: int) -> None:
    with TokenWriter(path, num_steps, FACTS) as file:
        for chunk in chunks:
            file.append(chunk)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_a_file_is_safetensors_and_gives_its_steps_back(tmp_path: Path, dtype: TokenDtype) -> None:
    z = torch.randn(7, 5, 8)
    stored = pack("z", z, dtype) | {"times": torch.arange(7, dtype=torch.float64)}
    path = tmp_path / "x" / "a.safetensors"
    with TokenWriter(path, 7, FACTS) as file:
        for first in (0, 3, 6):
            file.append({name: tensor[first : first + 3] for name, tensor in stored.items()})
    whole = load_file(path)  # safetensors' own reader agrees
    assert whole.keys() == stored.keys()
    assert all(torch.equal(whole[name], stored[name]) for name in stored)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    places = {
        name: start + entry["data_offsets"][0] for name, entry in json.loads(raw[8:start]).items() if name in whole
    }
    assert all(place % whole[name].element_size() == 0 for name, place in places.items()), "mapped numbers are aligned"
    part = read_steps(path, FACTS, slice(2, 5))
    assert torch.equal(unpack("z", part), unpack("z", stored)[2:5])
    assert part["times"].tolist() == [2.0, 3.0, 4.0]
    assert rehash(path) is None
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_int8_keeps_tokens_of_any_scale_to_half_a_level() -> None:
    z = torch.randn(3, 4, 16) * torch.tensor([1e-30, 1.0, 1e4, 0.0])[:, None]
    error = (unpack("z", pack("z", z, "int8")) - z).abs().amax(dim=-1)
    level = z.abs().amax(dim=-1) / 127
    assert torch.all(error <= 0.5001 * level)
    assert torch.all(unpack("z", pack("z", z, "int8"))[:, 3] == 0)


def test_what_each_precision_does_to_the_mini_latents(toy_world: Path) -> None:
    video = probe_video(toy_world / "takes" / first_take(toy_world) / "frame_aligned_videos" / "cam01.mp4")
    seen = Observer(load_encoder("mini"), load_gazelle("mini"))
    grid = TimeGrid(4.0, "frame", 128, 112)
    clip = ClipRequest(video, 0, 16, centre_square(video))
    tokens = next(iter(LiveSource(seen, grid, CPU, 0).batches([[clip]])))
    assert tokens.scene_BTNG is not None
    for name, exact in (("z", tokens.z_BTND[0]), ("scene", tokens.scene_BTNG[0])):
        errors = {
            dtype: float((unpack(name, pack(name, exact, dtype)) - exact).norm() / exact.norm())
            for dtype in ("float16", "bfloat16", "int8")
        }
        assert errors["float16"] < 3e-4, errors
        assert errors["bfloat16"] < 2.5e-3, errors
        assert 1e-3 < errors["int8"] < 1.5e-2, errors


def first_take(world: Path) -> str:
    return next(path.name for path in sorted((world / "takes").iterdir()) if (path / "frame_aligned_videos").is_dir())


def test_the_numbers_in_a_cache_are_those_of_its_format() -> None:
    """Where this fails, what is computed has changed: raise FORMAT in hwm.tokens.cache, and then these numbers."""
    down, right = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    picture = torch.stack([down, right, (down * right // 37) % 128], dim=-1).to(torch.uint8)
    pixels = StepPixels(picture[None, None], picture[None, 8:120, 8:120])
    tokens = encode_pixels(Observer(load_encoder("mini"), load_gazelle("mini")), pixels, CPU)
    assert tokens.scene_SNG is not None
    assert tokens.gaze_SN is not None
    found = [*tokens.z_SND[0, 0, :3], *tokens.scene_SNG[0, 9, :3], tokens.gaze_SN.max()]
    assert FORMAT == 3
    torch.testing.assert_close(torch.stack(found), torch.tensor(GOLDEN), atol=2e-3, rtol=0)


def test_whatever_changes_the_numbers_changes_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else tokens of an earlier recipe would be read as those of this one, and nothing could tell."""
    weights = {"encoder": "e", "gazelle": "g"}

    def folders(grid: TimeGrid = GRID, weights: dict[str, str] = weights, dtype: TokenDtype = "float16") -> set[Path]:
        return set(TokenCache(Path("tokens"), grid, weights, dtype).folders)

    latents, scene = TokenCache(Path("tokens"), GRID, weights).folders
    of_both = (
        folders(replace(GRID, fps=8.0)),
        folders(replace(GRID, step="tubelet")),
        folders(replace(GRID, encoder_resolution=128)),
        folders(weights=weights | {"encoder": "other"}),
        folders(dtype="bfloat16"),
        folders(dtype="int8"),
    )
    assert all(changed.isdisjoint({latents, scene}) for changed in of_both)
    assert len(set.union(*of_both)) == 2 * len(of_both)
    for changed in (folders(replace(GRID, gazelle_resolution=112)), folders(weights=weights | {"gazelle": "other"})):
        assert changed & {latents, scene} == {latents}, "latents know no Gazelle"
    monkeypatch.setattr(cache_module, "FORMAT", FORMAT + 1)
    assert folders().isdisjoint({latents, scene})


def test_crops_of_one_size_at_other_places_have_files_of_their_own(
    observer: Observer, videos: tuple[VideoInfo, ...], tmp_path: Path
) -> None:
    video, box = videos[0], centre_square(videos[0])
    moved = box._replace(left=0.0)
    assert moved != box
    cache, other = cache_in(tmp_path), cache_in(tmp_path, encoder="other")
    extractor(observer, cache).fill([Wanted(video, (box, moved))])
    tokens = [cache.read(video.path, each, 0, 3).z_SND for each in (box, moved)]
    assert not torch.equal(*tokens)
    # Names hold a few digits of the hashes. Files tell all that they are of, and one of something else is not read.
    extractor(observer, other).fill([Wanted(video, (box,))])
    for foreign, what in ((cache.path("z", video.path, moved), "crop"), (other.path("z", video.path, box), "identity")):
        shutil.copy(foreign, cache.path("z", video.path, box))
        with pytest.raises(CacheError, match=f"belongs to another {what}"):
            cache.read(video.path, box, 0, 3)


def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(AssertionError, match="same steps"):
        write(path, [{"z": torch.zeros(2, 3), "times": torch.zeros(1)}], 4)
    with pytest.raises(CacheError, match="would lack steps"):
        write(path, [{"z": torch.zeros(2, 3)}], 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails_at", range(6))
def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    calls = iter(range(100))

    def failing(name: str):
        real = getattr(os, name)

        def call(*arguments: object) -> object:
            if next(calls) == fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        return call

    for name in ("pwrite", "fsync", "replace"):
        monkeypatch.setattr(os, name, failing(name))
    path = tmp_path / "a.safetensors"
    with pytest.raises(CacheError, match=r"a\.safetensors could not be written: No space left"):
        write(path, [{"z": torch.full((1, 3), float(step))} for step in range(2)], 2)
    # The last two fail after the rename: what is there is whole.
    assert [p.name for p in tmp_path.iterdir()] == (["a.safetensors"] if fails_at == 5 else [])
    assert fails_at < 5 or rehash(path) is None


def test_a_write_that_the_system_takes_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: pwrite(handle, data[:7], offset))
    z = torch.randn(4, 3, 5)
    write(tmp_path / "a.safetensors", [{"z": z[:3]}, {"z": z[3:]}], 4)
    assert rehash(tmp_path / "a.safetensors") is None
    assert torch.equal(read_steps(tmp_path / "a.safetensors", FACTS, slice(0, 4))["z"], z)


def test_steps_that_a_file_does_not_have_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, [{"z": torch.zeros(4, 3)}], 4)
    for steps in (slice(-1, 2), slice(-2, 4), slice(2, 5), slice(5, 6), slice(3, 2)):
        with pytest.raises(CacheError, match=r"were asked for\n(.|\n)*0\.\.3"):
            read_steps(path, FACTS, steps)


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float16"), (1e6, "float16"), (float("nan"), "int8")])
def test_tokens_that_are_not_finite_are_not_kept(tmp_path: Path, value: float, dtype: TokenDtype) -> None:
    z = torch.zeros(2, 5, 8)
    z[1, 2, 3] = value
    with pytest.raises(CacheError, match="cannot be kept"), TokenWriter(tmp_path / "a.safetensors", 2, FACTS) as file:
        EntryWriter({"z": file}, dtype).append(StepTokens(z, None, None), np.arange(2.0))
    assert not list(tmp_path.iterdir())


def test_every_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    z = torch.randn(6, 5, 8)
    with TokenWriter(path, 6, FACTS) as file:
        file.append(pack("z", z, "int8") | {"times": torch.arange(6, dtype=torch.float64)})
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, header, 300), *rng.integers(header, len(whole), 300)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        said = rehash(path)
        # Spaces that fill up the header carry nothing; a flip there that is still JSON changes nothing.
        assert said is not None or damaged[:header].split(b"}}")[0] == whole[:header].split(b"}}")[0], place
        if place < header and said is not None:
            with pytest.raises(CacheError, match=r"(.|\n)*(--prune|rm )"):
                read_steps(path, FACTS, slice(0, 6))
    for length in rng.integers(0, len(whole), 50):
        path.write_bytes(whole[:length])
        assert rehash(path) is not None
        with pytest.raises(CacheError, match="--prune"):
            read_steps(path, FACTS, slice(0, 6))
    path.write_bytes(whole + b"x")
    assert rehash(path) is not None


def test_a_file_of_other_facts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with TokenWriter(path, 1, FACTS) as file:
        file.append({"z": torch.zeros(1, 2)})
    with pytest.raises(CacheError, match="belongs to another crop"):
        read_steps(path, FACTS | {"crop": "[1]"}, slice(0, 1))


def test_the_estimate_is_what_is_written(observer: Observer, videos: tuple[VideoInfo, ...], tmp_path: Path) -> None:
    for dtype in ("float16", "int8"):
        folder = tmp_path / dtype
        made = extractor(observer, cache_in(folder, dtype))
        wanted = [
            Wanted(video, (centre_square(video), fixed_box(video, AugmentConfig(), 0, 0))) for video in videos[:2]
        ]
        survey = made.survey(wanted)
        steps = sum(num_grid_steps(video.duration_sec, 4.0) for video in videos[:2])
        assert (survey.num_videos, survey.num_crops, survey.crops_held, survey.steps_missing) == (2, 4, 0, 2 * steps)
        assert made.fill(wanted) == ()
        headers = total_bytes(folder) - survey.bytes_missing
        assert 0 < headers < 2048 * len(files_of(folder))
        assert survey.bytes_per_hour == round(survey.bytes_missing / (2 * steps) * 4 * 3600)
        again = made.survey(wanted)
        assert (again.crops_held, again.bytes_missing) == (4, 0)


def test_no_video_is_read_twice_for_its_hash(
    observer: Observer, videos: tuple[VideoInfo, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_hashes, "SETTLED_NS", 0)
    wanted, asked = [Wanted(video, centre_only(video)) for video in videos], list[int]()
    first = extractor(observer, cache_in(tmp_path)).survey(wanted)

    def unread(path: Path, *given: object) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(video_hashes, "content_sha256", unread)
    for encoder in ("e", "other"):
        cache = cache_in(tmp_path, encoder=encoder)
        assert extractor(observer, cache).survey(wanted, lambda: asked.append(1)) == first
        assert cache.path("z", videos[0].path, centre_square(videos[0])).name.startswith(
            hashlib.sha256(videos[0].path.read_bytes()).hexdigest()[:32]
        )
    assert len(asked) == 2 * 2 * len(videos), "it may be stopped at each video"


def test_what_does_not_fit_is_refused_before_it_starts(
    observer: Observer, videos: tuple[VideoInfo, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_in(tmp_path / "not" / "there")
    survey = extractor(observer, cache).survey([Wanted(videos[0], centre_only(videos[0]))])
    assert require_room(survey, cache.folder) > 0
    usage = shutil.disk_usage(tmp_path)
    room = survey.bytes_missing + RESERVED_BYTES
    for free, fits in ((room, True), (room - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if fits:
            assert require_room(survey, cache.folder) == room
        else:
            with pytest.raises(CacheError, match=r"do not fit(.|\n)*int8"):
                CachedSource(observer, GRID, CPU, cache).prepare(videos[:1], lambda done: None)
    assert files_of(tmp_path) == []


def test_a_video_is_decoded_once_for_all_its_crops(
    observer: Observer, videos: tuple[VideoInfo, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    original = FrameCursor._decode_next

    def counted(self: FrameCursor) -> object:
        decoded.append(self.path)
        return original(self)

    monkeypatch.setattr(FrameCursor, "_decode_next", counted)
    video = videos[0]
    boxes = tuple(fixed_box(video, AugmentConfig(), 0, view) for view in range(3))
    extractor(observer, cache_in(tmp_path)).fill([Wanted(video, boxes)])
    frames = round(video.duration_sec * video.fps)
    assert len(decoded) <= frames + 8  # opening it to ask for its length decodes a few more
    for box in boxes:
        clip = ClipRequest(video, 2, 5, box)
        live = next(iter(LiveSource(observer, GRID, CPU, 0).batches([[clip]])))
        stored = next(iter(CachedSource(observer, GRID, CPU, cache_in(tmp_path)).batches([[clip]])))
        torch.testing.assert_close(live.z_BTND, stored.z_BTND, atol=4e-3, rtol=1e-3)


def test_steps_are_never_later_than_their_grid_time(
    observer: Observer, videos: tuple[VideoInfo, ...], tmp_path: Path
) -> None:
    video = videos[0]
    for step in ("frame", "tubelet"):
        grid = TimeGrid(4.0, step, 64, 56)  # type: ignore[arg-type]
        cache = TokenCache(tmp_path / step, grid, {"encoder": "e", "gazelle": "g"})
        Extractor(observer, grid, CPU, cache).fill([Wanted(video, centre_only(video))])
        num_steps = num_grid_steps(video.duration_sec, 4.0)
        late = cache.times(video.path, centre_square(video), 0, num_steps) - np.arange(num_steps) / 4.0
        assert np.all(late <= 1e-6)
        assert np.all(late > -1 / video.fps - 1e-6)


def test_a_last_chunk_of_one_step_of_two_frames_is_kept(observer: Observer, tmp_path: Path) -> None:
    num_steps = GRID_CHUNK_STEPS + 1
    frames = np.random.default_rng(0).integers(0, 255, (num_steps, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "v.mp4", frames, 4.0, preset="ultrafast")
    video = probe_video(tmp_path / "v.mp4")
    grid = TimeGrid(4.0, "tubelet", 64, 56)
    cache = TokenCache(tmp_path / "tokens", grid, {"encoder": "e", "gazelle": "g"})
    Extractor(observer, grid, CPU, cache).fill([Wanted(video, centre_only(video))])
    times = cache.times(video.path, centre_square(video), 0, num_steps)
    assert times == pytest.approx(np.arange(num_steps) / 4.0, abs=1e-4)
    assert np.array_equal(cache.times(video.path, centre_square(video), 3, 2), times[3:5])


def test_each_view_is_fixed_and_views_differ(videos: tuple[VideoInfo, ...]) -> None:
    plan, again = (ClipPlan(videos, 4.0, 5, AugmentConfig(), 7, num_views=3) for _ in range(2))
    fixed = {video.path: [fixed_box(video, AugmentConfig(), 7, view) for view in range(3)] for video in videos}
    # Where no drawn shape fits, two views may be the same largest box.
    assert len({box for boxes in fixed.values() for box in boxes}) > 6
    assert [fixed_box(video, AugmentConfig(), 8, 0) for video in videos] != [boxes[0] for boxes in fixed.values()]
    moved = videos[0]._replace(path=Path("elsewhere") / videos[0].path.name)
    assert fixed_box(moved, AugmentConfig(), 7, 0) == fixed[videos[0].path][0]
    drawn = [plan.request(epoch, 0) for epoch in range(40)]
    assert drawn == [again.request(epoch, 0) for epoch in range(40)]
    assert {request.box for request in drawn} == set(fixed[videos[0].path])
    assert {request.box for request in plan.validation()} == {centre_square(video) for video in videos}


def _extract(weights: str, folder: str, paths: list[str], barrier, made) -> None:
    observer = Observer(load_encoder(f"{weights}/encoder"), load_gazelle(f"{weights}/gazelle"))
    cache = cache_in(Path(folder))
    wanted = [Wanted(video, centre_only(video)) for video in map(probe_video, map(Path, paths))]
    making = extractor(observer, cache)
    original = making._make

    def noted(item: Wanted, on_steps) -> None:
        before = cache.missing(item.video.path, item.boxes[0])
        original(item, on_steps)
        if before:
            made.put(str(item.video.path))

    making._make = noted  # type: ignore[method-assign]
    barrier.wait()
    assert making.fill(wanted) == ()
    assert not any(making.lacks(item) for item in wanted)


def test_two_processes_share_the_work(
    tiny_weights: Path, videos: tuple[VideoInfo, ...], observer: Observer, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, made = context.Barrier(2), context.Queue()
    videos = videos[:4]
    paths = [str(video.path) for video in videos]
    pair = [
        context.Process(target=_extract, args=(str(tiny_weights), str(tmp_path / "two"), paths, barrier, made))
        for _ in range(2)
    ]
    for process in pair:
        process.start()
    names = sorted(made.get(timeout=120) for _ in paths)
    for process in pair:
        process.join(120)
        assert process.exitcode == 0
    assert names == sorted(paths)  # each video by one process
    assert made.empty()
    assert verify_cache(tmp_path / "two").bad == ()
    extractor(observer, cache_in(tmp_path / "one")).fill([Wanted(video, centre_only(video)) for video in videos])
    one, two = (files_of(tmp_path / name) for name in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]
    left = [path.name for path in (tmp_path / "two").rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert set(left) <= {VIDEO_HASHES}


def test_a_claim_that_is_waited_for_is_given_to_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"any bytes")
    first, second, third = (cache_in(tmp_path / "tokens") for _ in range(3))  # as three processes
    has_it, may_end, between = threading.Event(), threading.Event(), list[bool]()

    def wait_for_it() -> None:
        with second.claim(video, wait=True) as mine:
            assert mine
            has_it.set()
            may_end.wait(60)

    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == LOCK and threading.current_thread() is threading.main_thread() and not between:
            between.append(False)
            with third.claim(video, wait=False) as got:
                between[0] = got
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    waiter = threading.Thread(target=wait_for_it)
    with first.claim(video, wait=False) as mine:
        assert mine
        waiter.start()
        time.sleep(0.2)  # it waits for the lock on a file that will be gone when it gets it
        assert not has_it.is_set()
    assert between == [False], "the lock is not given back before its file is gone"
    assert has_it.wait(60)
    with third.claim(video, wait=False) as got:
        assert not got, "the one that waited holds the file that is there"
    may_end.set()
    waiter.join(60)
    with third.claim(video, wait=False) as got:
        assert got


def test_a_killed_process_is_taken_over(
    tiny_weights: Path, videos: tuple[VideoInfo, ...], observer: Observer, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    paths = [str(video.path) for video in videos]
    arguments = (str(tiny_weights), str(tmp_path), paths, context.Barrier(1), context.Queue())
    process = context.Process(target=_extract, args=arguments)
    process.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()
    cache = cache_in(tmp_path)
    wanted = [Wanted(video, centre_only(video)) for video in videos]
    assert extractor(observer, cache).fill(wanted) == ()
    assert verify_cache(tmp_path).bad == ()
    assert not list(tmp_path.rglob("*.partial")), "what the kill left takes no room for ever"
    prune_cache(tmp_path, cache.folders, dry_run=False)
    assert len(files_of(tmp_path)) == 2 * len(videos)
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_what_a_killed_process_left_of_a_video_goes_and_nothing_of_others(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"any bytes")
    cache = cache_in(tmp_path / "tokens")
    digest = cache.path("z", video, CropBox(0, 0, 64, 64)).name[:32]
    remains = [part / f".{digest}-01234567.0badcafe.partial" for part in cache.folders]
    of_others = [part / f".{'0' * 32}-01234567.0badcafe.partial" for part in cache.folders]
    for path in (*remains, *of_others, cache.folders[0] / f".{digest}{LOCK}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with cache.claim(video, wait=False) as mine:
        assert mine
        assert not any(path.exists() for path in remains)
        assert all(path.exists() for path in of_others), "another process may be writing them"


def test_the_folder_is_not_listed_for_each_video(
    observer: Observer, videos: tuple[VideoInfo, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many videos that took longer than some of them take to encode."""
    monkeypatch.setattr(Path, "glob", lambda self, pattern: pytest.fail(f"{self} was listed"))
    monkeypatch.setattr(Path, "iterdir", lambda self: pytest.fail(f"{self} was listed"))
    assert extractor(observer, cache_in(tmp_path)).fill([Wanted(video, centre_only(video)) for video in videos]) == ()


def test_prune_removes_what_is_of_no_use_and_nothing_else(
    observer: Observer, videos: tuple[VideoInfo, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "tokens"
    wanted = [Wanted(video, centre_only(video)) for video in videos[:2]]
    cache, other = cache_in(folder), cache_in(folder, encoder="other")
    for each in (cache, other):
        extractor(observer, each).fill(wanted)
    part = cache.path("z", videos[0].path, centre_square(videos[0])).parent
    damaged = cache.path("z", videos[0].path, centre_square(videos[0]))
    raw = bytearray(damaged.read_bytes())
    raw[-3] ^= 1
    damaged.write_bytes(raw)
    remains = part / f".{'0' * 32}-00000000.0badcafe.partial"
    remains.write_bytes(b"half")
    strangers = [folder / "notes.txt", part / "notes.safetensors", folder / "z-mine" / f"{'0' * 32}.safetensors"]
    for stranger in strangers:
        stranger.parent.mkdir(exist_ok=True)
        stranger.write_bytes(b"mine")
    outside = tmp_path / "outside" / f"{'a' * 32}-00000000.safetensors"
    outside.parent.mkdir()
    outside.write_bytes(b"precious")
    (folder / f"z-{'1' * 16}").symlink_to(outside.parent)
    (part / f"{'b' * 32}-00000000.safetensors").symlink_to(outside)

    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    said = prune_cache(folder, cache.folders, dry_run=True)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    doomed = {file.path for file in said.bad}
    assert doomed == {damaged, remains, *(path for each in other.folders for path in each.iterdir())}
    assert prune_cache(folder, cache.folders, dry_run=False) == said
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before - doomed
    assert not any(each.exists() for each in other.folders)
    assert outside.read_bytes() == b"precious"
    assert extractor(observer, cache).fill(wanted) == ()
    assert len(verify_cache(folder).files) == 4
    assert verify_cache(folder).bad == ()


def test_a_file_that_is_being_written_is_not_pruned(tmp_path: Path) -> None:
    part = tmp_path / f"z-{'1' * 16}"
    path = part / f"{'0' * 32}-00000000.safetensors"
    with TokenWriter(path, 1, FACTS) as file:
        file.append({"z": torch.zeros(1, 2)})
        assert prune_cache(tmp_path, [part], dry_run=False).bad == ()
    assert rehash(path) is None


MEMORY = """
import resource, sys, torch
from pathlib import Path
from hwm.data.video import probe_video
from hwm.models.observer import Observer
from hwm.models.world_model import TimeGrid
from hwm.tokens.cache import FORMAT, TokenCache
from hwm.tokens.extraction import RESERVED_BYTES, Extractor, Wanted, centre_only
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
torch.set_num_threads(1)
torch.manual_seed(0)
grid = TimeGrid(8.0, "frame", 128, None)
observer = Observer(VJEPA2Encoder(EncoderSpec(256, 1, 4)), None)
video = probe_video(Path(sys.argv[1]))
cache = TokenCache(Path(sys.argv[2]), grid, {"encoder": "e"})
assert Extractor(observer, grid, torch.device("cpu"), cache).fill([Wanted(video, centre_only(video))]) == ()
size = sum(path.stat().st_size for path in Path(sys.argv[2]).rglob("*.safetensors"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, size / 2**20)
"""


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    peaks, sizes = [], []
    for seconds in (30, 240):
        path = tmp_path / f"{seconds}.mp4"
        write_video(path, (np.roll(frame, i, 0) for i in range(seconds * 8)), 8.0, preset="ultrafast")
        run = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / str(seconds))]
        done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=280)
        peak, size = map(float, done.stdout.split())
        peaks.append(peak)
        sizes.append(size)
    assert sizes[1] > 58  # MiB: growth by the tokens of the longer video would be seen
    assert peaks[1] - peaks[0] < 25, peaks


def test_values_made_ahead_come_in_order_and_bounded() -> None:
    alive: list[int] = []

    def values() -> Generator[int, None, None]:
        for i in range(20):
            alive.append(i)
            yield i

    taken = []
    stream = ahead(values(), depth=2)
    for value in stream:
        time.sleep(0.005)
        taken.append(value)
        assert len(alive) - len(taken) <= 2 + 2
    assert taken == list(range(20))


def test_an_error_ahead_arrives_in_its_place_and_an_early_stop_ends_the_thread() -> None:
    closed = []

    def values() -> Generator[int, None, None]:
        try:
            yield 1
            yield 2
            raise ValueError("third")
        finally:
            closed.append(True)

    stream = ahead(values(), depth=1)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(stream)
    stream = ahead(values(), depth=1)
    assert next(stream) == 1
    stream.close()
    assert closed == [True, True]
