"""Decoded frames of one stream in presentation order, without the pictures that nobody asks for and no other needs.

In H.264 a picture with `nal_ref_idc` 0 is never referred to, so it need not be decoded where it is not shown at an
expected time. The pictures that are decoded are the same, bit for bit. Other codecs are decoded whole: in HEVC a
picture of that kind may still be needed by a higher temporal layer.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

import av
import av.container
import av.video.codeccontext
import av.video.stream

LOOK_AHEAD = 8
"""Packets read before one is decoded, to know what is shown after it. Too few of them only decode more than needed."""


class FrameWalk:
    """The frames from where a container stands to its end.

    Args:
        container: the open file; only this walk may read from it.
        stream: the stream to decode, whose decoder holds nothing (at the start, or after a seek).
    """

    def __init__(self, container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> None:
        self.expected: Sequence[int] = ()
        self._stream = stream
        self._packets = container.demux(stream)
        self._ahead: deque[av.Packet] = deque()
        self._sent: deque[int] = deque(maxlen=2 * LOOK_AHEAD)
        self._frames: deque[av.VideoFrame] = deque()
        self._may_skip = stream.codec_context.codec.canonical_name == "h264"
        self._ended = False

    def expect(self, targets: Sequence[int]) -> None:
        """Time stamps, ascending, at which a picture will be asked for; before the last one others may be left out."""
        self.expected = targets

    def next_frame(self) -> av.VideoFrame | None:
        """The next frame that was decoded, None at the end.

        Raises:
            FFmpegError: the data are damaged.
        """
        while not self._frames:
            self._read_ahead()
            if not self._ahead:
                return None
            packet = self._ahead.popleft()
            if self._may_skip:
                skip = packet.pts is not None and self._unseen(packet.pts)
                self._stream.codec_context.skip_frame = "NONREF" if skip else "DEFAULT"
                if packet.pts is not None:
                    self._sent.append(packet.pts)
            self._frames.extend(frame for frame in packet.decode() if isinstance(frame, av.VideoFrame))
        return self._frames.popleft()

    def _read_ahead(self) -> None:
        while not self._ended and len(self._ahead) < LOOK_AHEAD:
            packet = next(self._packets, None)
            if packet is None:
                self._ended = True
            else:
                self._ahead.append(packet)

    def _unseen(self, pts: int) -> bool:
        """Whether a picture is shown before the last expected time and at none of them."""
        index = bisect_left(self.expected, pts)
        if index == len(self.expected):
            return False
        stamps = (*self._sent, *(packet.pts for packet in self._ahead if packet.pts is not None))
        return any(pts < stamp <= self.expected[index] for stamp in stamps)
