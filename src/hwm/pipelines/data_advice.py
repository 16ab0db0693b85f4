"""What to do about each reason for which data are left out: one list, for the summary and for docs/data.md."""

from typing import NamedTuple


class Advice(NamedTuple):
    """Reasons that contain `words`, what they mean, and what to do."""

    words: str
    meaning: str
    cure: str


ADVICE = (
    Advice("the take is not on disk", "no folder of that name below takes/", "download it, or go on without it"),
    Advice(
        "the video file is not on disk", "takes.json names a file that is not there", "download it, or go on without"
    ),
    Advice(
        "the file does not exist",
        "a list names a file that is not there",
        "correct the list (relative paths start at its folder), or download the file",
    ),
    Advice(
        "no video named after the take", "a plain folder has no such file", "name the file after the take or its uid"
    ),
    Advice("the take is not in takes.json", "annotation and metadata are of two releases", "fetch both of one release"),
    Advice(
        "has no video of the view", "the take lacks this camera", "choose another annotations.view, or go on without"
    ),
    Advice("has neither a root_dir nor a name", "a damaged row of takes.json", "fetch takes.json again"),
    Advice("leaves the dataset's folder", "a path in takes.json is absolute or climbs out", "fetch takes.json again"),
    Advice("its 448 copy cannot be found", "its path has no frame_aligned_videos/", "set annotations.resolution=full"),
    Advice("the take's name is not a file name", "a name with a slash", "correct the annotation file"),
    Advice("0 bytes", "an empty file: a download that did not begin", "download it again"),
    Advice("Invalid data", "no video, or a cut download without its index", "download it again"),
    Advice("it is cut off before its end", "a cut download, or a damaged file", "download it again"),
    Advice("frame cannot be decoded", "damaged data at that place", "download or encode it again"),
    Advice(
        "did not answer within", "the decoder or the disk hangs", "check the disk; run again with a longer --timeout"
    ),
    Advice("the decoder ended with code", "the decoder crashed", "download or encode it again"),
    Advice("not a regular file", "a folder, a pipe or a device", "take it out of the list"),
    Advice("Permission denied", "the file may not be read", "change its permissions"),
    Advice("no video stream", "sound only", "take it out of the list"),
    Advice("no frame that can be decoded", "the stream is empty", "download or encode it again"),
    Advice("timestamp", "frames without times", "remux it: ffmpeg -i OLD -c copy NEW.mp4"),
    Advice("marked as rotated", "not a multiple of 90 degrees", "encode it again, upright"),
    Advice("named more than once", "the same file by two names", "nothing: it is used once"),
    Advice("not longer than", "too short for one clip", "nothing, or lower data.num_steps"),
    Advice("class not in training", "a key step that no training take shows", "nothing: it cannot be learned"),
    Advice("starts after the end of the video", "annotation and video do not belong together", "fetch both again"),
    Advice("end_time is not after start_time", "an empty segment in the dataset", "nothing: the dataset has a few"),
    Advice("start_time is negative", "a wrong segment in the dataset", "nothing, or correct the annotation file"),
    Advice("annotated twice", "one take stands twice in a file", "remove one of the two"),
    Advice("the take has no list of segments", "an entry without annotations", "nothing, or fetch the file again"),
    Advice("the segment names no take", "a segment without take_uid and take_name", "correct the annotation file"),
    Advice("is not an object", "an entry of the wrong kind", "correct the annotation file"),
    Advice("is not a number", "a time of the wrong kind", "correct the annotation file"),
    Advice("is not an integer", "a class of the wrong kind", "correct the annotation file"),
    Advice("step_unique_id is negative", "classes count from 0", "correct the annotation file"),
    Advice("no start_time", "a segment without its start", "nothing, or correct the annotation file"),
    Advice("no end_time", "a segment without its end", "nothing, or correct the annotation file"),
    Advice("no step_unique_id", "a segment without its class", "nothing, or correct the annotation file"),
)
"""The first that fits counts."""


def advice_for(reason: str) -> Advice | None:
    """Meaning and cure of a reason; None for one that is not foreseen (an error of the disk, in its own words)."""
    return next((advice for advice in ADVICE if advice.words in reason), None)
