"""A video that moves everywhere, made once a run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hwm.data.video import write_video

FPS = 30


def moving_video(path: Path, seconds: float, side: int, gop: int) -> Path:
    """A drifting texture with a little noise, H.264, `gop` frames between key frames, B frames as usual."""
    if not path.exists():
        write_video(path, _frames(round(seconds * FPS), side), FPS, g=gop, bf=2, crf=23, preset="veryfast")
    return path


def _frames(count: int, side: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (side // 16, side // 16, 3), dtype=np.uint8)
    texture = np.kron(coarse, np.ones((16, 16, 1), dtype=np.uint8))
    noise = rng.integers(0, 12, (4, side, side, 3), dtype=np.uint8)
    for index in range(count):
        yield np.minimum(np.roll(texture, (index * 2, index * 3), axis=(0, 1)), 240) + noise[index % 4]
