"""Small video sets held in memory: every video decoded once on the time grid, centre square, one size.

Made for sets such as the toy world, whose decoded frames fit in memory; larger sets decode clip by clip.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hwm.data.clips import ClipRequest
from hwm.data.transforms import centre_square
from hwm.data.video import VideoInfo, VideoReader


class FrameBank:
    """Decoded frames of many videos.

    Args:
        videos: what to decode; each is read once, from start to end.
        fps: grid steps a second.
        resolution: side of the square frames in pixels.
        offsets_sec: seconds (≤ 0) from a grid time to each frame of its step.
        on_progress: called with the number of videos done.
    """

    def __init__(
        self,
        videos: Sequence[VideoInfo],
        fps: float,
        resolution: int,
        offsets_sec: tuple[float, ...] = (0.0,),
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self._frames: dict[str, np.ndarray] = {}
        for done, video in enumerate(videos, start=1):
            with VideoReader(video.path) as reader:
                size = (resolution, resolution)
                chunks = [clip.views[0] for clip in reader.read_grid(fps, [size], centre_square(video), offsets_sec)]
            frames = np.concatenate(chunks)
            self._frames[str(video.path)] = frames.reshape(-1, len(offsets_sec), *frames.shape[1:])
            if on_progress is not None:
                on_progress(done)

    @property
    def num_bytes(self) -> int:
        """Memory held by the frames."""
        return sum(frames.nbytes for frames in self._frames.values())

    def read(self, request: ClipRequest) -> np.ndarray:
        """uint8 [T, F, Y, X, R] of a clip; its crop box is not used (see the class)."""
        return self._frames[str(request.video.path)][request.first_step : request.first_step + request.num_steps]
