"""A video that moves everywhere, made once a run, and one that repeats it for an hour."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from hwm.data.video import write_video

FPS = 30


def moving_video(path: Path, seconds: float, side: int, gop: int, fps: int = FPS) -> Path:
    """A drifting texture with a little noise, H.264, `gop` frames between key frames, B frames as usual."""
    if not path.exists():
        write_video(path, _frames(round(seconds * fps), side), fps, g=gop, bf=2, crf=23, preset="veryfast")
    return path


def looped_video(path: Path, source: Path, loops: int) -> Path:
    """The same coded pictures `loops` times over, one after another in time: a long video in no time."""
    with av.open(str(source)) as given:
        length = sum(packet.duration or 0 for packet in given.demux(given.streams.video[0]))
    with av.open(str(path), "w") as longer:
        copied = None
        for loop in range(loops):
            with av.open(str(source)) as given:
                stream = given.streams.video[0]
                if copied is None:
                    copied = longer.add_stream_from_template(stream)
                for packet in given.demux(stream):
                    if packet.pts is None or packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + loop * length, packet.dts + loop * length
                    packet.stream = copied
                    longer.mux(packet)
    return path


def _frames(count: int, side: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (side // 16, side // 16, 3), dtype=np.uint8)
    texture = np.kron(coarse, np.ones((16, 16, 1), dtype=np.uint8))
    noise = rng.integers(0, 12, (4, side, side, 3), dtype=np.uint8)
    for index in range(count):
        yield np.minimum(np.roll(texture, (index * 2, index * 3), axis=(0, 1)), 240) + noise[index % 4]
