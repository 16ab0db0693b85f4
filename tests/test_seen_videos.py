"""A take that the world model was trained on is not scored as new, whatever its file is called."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwm.config import AnnotationConfig, AnticipateConfig, PretrainConfig
from hwm.data.annotations import read_annotations
from hwm.data.seen_videos import FILE, SeenVideos, fingerprints, read_seen, take_name, write_seen
from hwm.engine.assemble import load_stage1
from hwm.engine.runlog import read_facts
from hwm.errors import DataError
from hwm.pipelines import anticipate, pretrain


def videos_in(folder: Path, view: str) -> list[Path]:
    """The toy world's validation videos of one view."""
    return [folder / "lists" / line for line in (folder / "lists" / f"val_{view}.txt").read_text().split()]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/takes/cook_1/frame_aligned_videos/cam01.mp4", "cook_1"),
        ("takes/cook_1/frame_aligned_videos/downscaled/448/aria01_214-1.mp4", "cook_1"),
        ("/epic/P01/videos/P01_01.MP4", "P01_01"),
        ("frame_aligned_videos/cook.v1.mp4", "cook.v1"),
    ],
)
def test_the_take_of_a_video(path: str, name: str) -> None:
    assert take_name(Path(path)) == name


def test_a_fingerprint_is_of_size_start_and_end(tmp_path: Path) -> None:
    contents = [b"", b"a", b"ab", bytes(200_000), bytes(200_001), b"a" + bytes(199_999), bytes(199_999) + b"a"]
    paths = [tmp_path / str(number) for number in range(len(contents) + 1)]
    for path, content in zip(paths, [*contents, contents[3]], strict=True):
        path.write_bytes(content)
    marks = fingerprints(paths)
    assert len(set(marks)) == len(contents)
    assert marks[-1] == marks[3]
    with pytest.raises(DataError, match="cannot read"):
        fingerprints([tmp_path / "gone"])


def _the_same(video: Path, folder: Path) -> Path:
    return video


def _another_view(video: Path, folder: Path) -> Path:
    return next(video.parent.glob("*_214-1.mp4"))


def _a_renamed_copy(video: Path, folder: Path) -> Path:
    return Path(shutil.copyfile(video, folder / "holiday.mp4"))


def _of_the_takes_name(video: Path, folder: Path) -> Path:
    path = folder / f"{take_name(video)}.mp4"
    path.write_bytes(b"encoded anew")
    return path


@pytest.mark.parametrize("lead", [_the_same, _another_view, _a_renamed_copy, _of_the_takes_name])
def test_a_seen_take_is_found(lead: Callable[[Path, Path], Path], toy_world: Path, tmp_path: Path) -> None:
    annotations = AnnotationConfig(
        train=toy_world / "annotations" / "keystep_train.json",
        val=toy_world / "annotations" / "keystep_val.json",
        videos=toy_world, takes=toy_world / "takes.json", view="cam01",
    )  # fmt: skip
    segments = read_annotations(annotations.val, annotations, None).segments
    video = lead(segments[0].video.path, tmp_path)
    recorded = write_seen(tmp_path, [video], go_on=False)
    seen = read_seen(tmp_path, recorded)
    assert isinstance(seen, SeenVideos)
    assert seen.takes_among(segments) == {segments[0].take: str(video)}
    others = [segment for segment in segments if segment.take != segments[0].take]
    assert others
    assert seen.takes_among(others) == {}


def test_the_record_grows_when_a_run_goes_on_and_starts_anew_with_it(toy_world: Path, tmp_path: Path) -> None:
    first, second = videos_in(toy_world, "cam01")
    assert write_seen(tmp_path, [first], go_on=True)["count"] == 1
    assert write_seen(tmp_path, [second], go_on=True)["count"] == 2
    recorded = write_seen(tmp_path, [second], go_on=False)
    assert recorded["count"] == 1
    assert read_seen(tmp_path, None) is None
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text().replace("val", "vol") + " ")
    with pytest.raises(DataError, match=r"other content than run\.json says"):
        read_seen(tmp_path, recorded)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(DataError, match="nobody can say which videos"):
        read_seen(tmp_path, recorded)


def test_stage_2_refuses_takes_of_stage_1_unless_it_is_told_not_to(
    toy_world: Path, stage1_settings: dict[str, Any], stage2_settings: dict[str, Any]
) -> None:
    leaked = next(video for video in videos_in(toy_world, "ego"))
    stage1_settings["optim"]["num_steps"] = 1
    stage1_settings["data"]["train"] += [str(leaked)]
    stage1_settings["tokens"] = stage2_settings["tokens"] = {"source": "live"}
    folder = pretrain.run(PretrainConfig(**stage1_settings)).folder
    assert read_facts(folder)["train_videos"]["count"] == 7
    with pytest.raises(DataError, match=r"trained on 1 of the 2 validation takes(?s:.*)allow_seen_takes=true"):
        anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=folder))

    allowed = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=folder, allow_seen_takes=True))
    facts = read_facts(allowed.folder)
    assert list(facts["validation_takes_seen"].values()) == [str(leaked)]
    assert any("trained on 1 of the 2 validation takes" in warning for warning in facts["warnings"])

    # A run of before there was a record says so.
    recorded = read_facts(folder)
    del recorded["train_videos"]
    (folder / "run.json").write_text(json.dumps(recorded))
    assert load_stage1(folder).seen is None
    unknown = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=folder))
    facts = read_facts(unknown.folder)
    assert facts["validation_takes_seen"] is None
    assert any("does not say which videos" in warning for warning in facts["warnings"])
