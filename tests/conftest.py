"""What holds for all tests: no network, and devices that are not there are skipped by name."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_LOCAL = ("127.0.0.1", "::1", "localhost")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = config.getoption("markexpr")
    for item in items:
        if "network" in item.keywords and "network" not in chosen:
            item.add_marker(pytest.mark.skip(reason="needs the internet; choose with -m network"))
        if "known_answers" in item.keywords and "known_answers" not in chosen:
            item.add_marker(pytest.mark.skip(reason="takes an hour and a half; choose with -m known_answers"))
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that reaches out fails at once, and says where it wanted to go."""
    if "network" in request.keywords:
        yield
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in _LOCAL:
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small takes in the real formats, six to train on and two to validate on."""
    from hwm.config import ToyWorldConfig
    from hwm.data.toyworld import generate

    folder = tmp_path_factory.mktemp("toy") / "world"
    generate(folder, ToyWorldConfig(num_takes=8, height=64, fps=8), num_processes=1)
    return folder


@pytest.fixture(scope="session")
def trap_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen small takes in all formats, with all traps."""
    from hwm.config import ToyWorldConfig
    from hwm.data.toyworld import generate

    folder = tmp_path_factory.mktemp("traps") / "world"
    formats = ("keystep", "lta", "goalstep", "epic")
    config = ToyWorldConfig(num_takes=16, height=64, fps=6, formats=formats, traps=True)
    generate(folder, config, num_processes=1)
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an `encoder` (4 × 4 patches of 64 px) and a `gazelle` (4 × 4 of 56 px), random, in our format."""
    import torch

    from hwm.models.dinov2 import DINOv2, DINOv2Spec
    from hwm.models.gazelle import GazeLLE, GazelleSpec
    from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
    from hwm.weights.load import save_model

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    encoder = VJEPA2Encoder(EncoderSpec(32, 2, 2))
    gazelle = GazeLLE(
        DINOv2(DINOv2Spec(24, 1, 2, position_side=4)), GazelleSpec(16, depth=1, num_heads=2, position_grid=(4, 4))
    )
    save_model(encoder, folder / "encoder")
    save_model(gazelle, folder / "gazelle")
    return folder


@pytest.fixture(scope="session")
def noisy_copy() -> Callable[[Path, Path, float, int | None], None]:
    """Writes a lossless copy of a video in which everything after a time is noise (`seed` None: an unchanged copy)."""
    import numpy as np

    from hwm.data.video import VideoReader, probe_video, write_video

    def write(source: Path, path: Path, from_sec: float, seed: int | None) -> None:
        info = probe_video(source)
        times = [i / info.fps for i in range(round(info.duration_sec * info.fps))]
        with VideoReader(source) as reader:
            frames = reader.read(times, [(info.height, info.width)]).views[0].copy()
        if seed is not None:
            late = np.array(times) > from_sec
            frames[late] = np.random.default_rng(seed).integers(0, 255, frames[late].shape, dtype=np.uint8)
        write_video(path, iter(frames), info.fps, codec="ffv1", pix_fmt="bgr0")

    return write


@pytest.fixture
def stage1_settings(toy_world: Path, tiny_weights: Path, tmp_path: Path) -> dict[str, Any]:
    """A stage-1 configuration that runs in seconds; change it and hand it to `PretrainConfig`."""
    return {
        "name": "stage1",
        "folder": tmp_path / "runs",
        "encoder": {"weights": str(tiny_weights / "encoder"), "resolution": 64},
        "gazelle": {"weights": str(tiny_weights / "gazelle"), "resolution": 56},
        "data": {
            "train": [str(toy_world / "lists" / "train_cam01.txt")],
            "val": [str(toy_world / "lists" / "val_cam01.txt")],
            "num_steps": 5,
        },
        "tokens": {"source": "cached", "folder": tmp_path / "tokens"},
        "predictor": {"width": 24, "depth": 2, "num_heads": 2},
        "optim": {"lr": 2e-3, "num_steps": 8, "warmup_steps": 2, "batch_size": 4},
        "log_every": 2,
        "validate_every": 4,
        "save_every": 4,
    }


@pytest.fixture
def stage2_settings(toy_world: Path, tmp_path: Path) -> dict[str, Any]:
    """A stage-2 configuration that runs in seconds; add `checkpoint`."""
    return {
        "name": "stage2",
        "folder": tmp_path / "runs",
        "annotations": {
            "train": toy_world / "annotations" / "keystep_train.json",
            "val": toy_world / "annotations" / "keystep_val.json",
            "videos": toy_world,
            "takes": toy_world / "takes.json",
            "view": "cam01",
        },
        "tokens": {"source": "cached", "folder": tmp_path / "tokens"},
        "protocol": {"num_steps": 4},
        "probe": {"num_heads": 2, "num_epochs": 2, "num_views": 1, "lrs": [1e-3], "batch_size": 16},
    }


@pytest.fixture(scope="session")
def ten_seconds(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of an mp4 of 10 s, 2 frames a second."""
    import numpy as np

    from hwm.data.video import write_video

    path = tmp_path_factory.mktemp("video") / "v.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
    write_video(path, frames, 2.0, preset="ultrafast")
    return path.read_bytes()
