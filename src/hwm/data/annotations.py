"""Annotations of any supported data set, read into one kind of table.

In: an annotation file and the configuration that names its data set. Out: a `SegmentTable`. Reading one more data set
means one more file beside `hwm.data.keystep`, a reader, and its line here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from hwm.config import AnnotationConfig
from hwm.data.ego4d_goalstep import read_goalstep
from hwm.data.ego4d_lta import read_ego4d_lta
from hwm.data.epic_kitchens import read_epic_kitchens
from hwm.data.keystep import read_keystep
from hwm.data.rows import Annotation, build_table
from hwm.data.segments import SegmentTable, Task

TRAIN, VAL = "train", "val"

READERS: dict[str, Callable[[Path, AnnotationConfig, str], Annotation]] = {
    "keystep": read_keystep,
    "ego4d-goalstep": read_goalstep,
    "ego4d-lta": read_ego4d_lta,
    "epic-kitchens-100": read_epic_kitchens,
}
"""By the names of `annotations.dataset`."""


def parse_annotations(annotation: Path, config: AnnotationConfig, split: str) -> Annotation:
    """What one annotation file says, and where its videos are; no video is opened.

    Args:
        annotation: the file.
        config: its data set, and where the videos are.
        split: `train` or `val`, for metadata that tell them apart.

    Raises:
        DataError: a file is malformed or has no labels; two videos fit one name.
    """
    return READERS[config.dataset](annotation, config, split)


def read_annotations(
    annotation: Path,
    config: AnnotationConfig,
    tasks: Sequence[Task] | None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SegmentTable:
    """Read one annotation file.

    Args:
        annotation: the file.
        config: its data set, and where the videos are.
        tasks: those of the training file, for validation; None (training) builds class tables from the usable segments.
        on_progress: called with how many videos were opened, of how many; what it raises ends the reading.

    Returns:
        The usable segments in the file's order, the tasks, and an exclusion for each annotated segment not used.

    Raises:
        DataError: a file is malformed, has no labels, or has no usable segment; two videos fit one name.
    """
    split = TRAIN if tasks is None else VAL
    return build_table(parse_annotations(annotation, config, split), tasks, config.manifest, on_progress)
