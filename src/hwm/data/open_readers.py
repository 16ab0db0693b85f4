"""Video readers kept open between clips, the last few used: opening costs a probe, an index and a first frame."""

from collections import OrderedDict
from pathlib import Path

from hwm.data.video import VideoReader

KEPT_OPEN = 4
"""Readers a worker keeps: each holds a file, its index, and a decoder with a few decoded frames."""


class OpenReaders:
    """The readers of one process; not to be shared between threads or processes.

    Args:
        capacity: readers kept; the one used longest ago is closed first.
    """

    def __init__(self, capacity: int = KEPT_OPEN) -> None:
        self._capacity = capacity
        self._readers: OrderedDict[Path, VideoReader] = OrderedDict()

    def get(self, path: Path) -> VideoReader:
        """An open reader of a video.

        Raises:
            DataError: the file cannot be read as a video.
        """
        if path in self._readers:
            self._readers.move_to_end(path)
            return self._readers[path]
        while len(self._readers) >= self._capacity:
            self._readers.popitem(last=False)[1].close()
        reader = self._readers[path] = VideoReader(path)
        return reader

    def forget(self, path: Path) -> None:
        """Close a reader: after an error its place in the stream is not known."""
        reader = self._readers.pop(path, None)
        if reader is not None:
            reader.close()

    def close(self) -> None:
        """Close all."""
        while self._readers:
            self._readers.popitem()[1].close()
