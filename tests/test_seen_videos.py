"""A take that the world model was trained on is not scored as new, whatever its file is called."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwm.config import AnnotationConfig, AnticipateConfig, PretrainConfig
from hwm.data.annotations import read_annotations
from hwm.data.content import content_sha256
from hwm.data.seen_videos import FILE, SeenVideos, fingerprints, read_seen, take_name, told_copies, write_seen
from hwm.engine.assemble import load_stage1
from hwm.engine.runlog import RunLog, read_facts
from hwm.engine.runtime import EXIT_STOPPED, StopFlag
from hwm.errors import DataError
from hwm.pipelines import anticipate, pretrain
from hwm.pipelines.anticipate import read_tables
from hwm.pipelines.pretrain_data import find_parts


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
    recorded = write_seen(tmp_path, [video], go_on=False, warn=pytest.fail)
    seen = read_seen(tmp_path, recorded)
    assert isinstance(seen, SeenVideos)
    assert seen.takes_among(segments) == {segments[0].take: str(video)}
    others = [segment for segment in segments if segment.take != segments[0].take]
    assert others
    assert seen.takes_among(others) == {}


def test_the_record_grows_when_a_run_goes_on_and_starts_anew_with_it(toy_world: Path, tmp_path: Path) -> None:
    first, second = videos_in(toy_world, "cam01")
    told: list[str] = []
    assert write_seen(tmp_path, [first], go_on=True, warn=pytest.fail)["count"] == 1
    assert write_seen(tmp_path, [second], go_on=True, warn=told.append)["count"] == 2
    assert len(told) == 1
    recorded = write_seen(tmp_path, [second], go_on=False, warn=pytest.fail)
    assert recorded["count"] == 1
    assert read_seen(tmp_path, None) is None
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text().replace("val", "vol") + " ")
    with pytest.raises(DataError, match=r"other content than run\.json says"):
        read_seen(tmp_path, recorded)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(DataError, match="nobody can say which videos"):
        read_seen(tmp_path, recorded)


def test_what_differs_from_the_earlier_part_is_told(tmp_path: Path) -> None:
    names = ("a", "b", "c", "moved/a")
    a, b, c, moved = (tmp_path / f"{name}.mp4" for name in names)
    moved.parent.mkdir()
    for path, content in ((a, "a"), (b, "b"), (c, "c"), (moved, "a")):
        path.write_text(content)
    told: list[str] = []

    def goes_on(*videos: Path) -> str:
        """What is told of a run that began with a and b, and goes on twice with other videos."""
        told.clear()
        write_seen(tmp_path, [a, b], go_on=False, warn=pytest.fail)
        write_seen(tmp_path, videos, go_on=True, warn=told.append)
        said = " ".join(told)
        for _ in range(2):  # told once: the same ones again are the same
            write_seen(tmp_path, videos, go_on=True, warn=pytest.fail)
        known = read_seen(tmp_path, {"sha256": content_sha256(tmp_path / FILE)})
        assert known is not None
        assert known.by_name.keys() >= {"a", "b"}, "what an earlier part was trained on is kept"
        return said

    assert goes_on(a, b) == ""
    assert goes_on(moved, b) == ""
    assert f"1 added ({c})" in goes_on(c, a, b)
    assert f"1 gone ({a})" in goes_on(b)
    write_seen(tmp_path, [a, b], go_on=True, warn=told.append)
    assert f"1 added ({a})" in told[-1], "one that comes back is new to the last part"
    assert "1 added" in goes_on(a, b, moved)  # a copy beside its original is one more clip an epoch
    assert "another order" in goes_on(b, a)
    write_seen(tmp_path, [a, b], go_on=False, warn=pytest.fail)
    b.write_text("other")
    write_seen(tmp_path, [a, b], go_on=True, warn=told.append)
    assert f"1 changed ({b}). Clips and their order differ from here on" in told[-1]


def test_a_run_that_goes_on_with_a_longer_list_says_so(
    stage1_settings: dict[str, Any], toy_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (toy_world / "lists" / "train_cam01.txt").read_text().split()
    videos = [str((toy_world / "lists" / name).resolve()) for name in names[:3]]
    listed = tmp_path / "train.txt"
    listed.write_text("\n".join(videos[:2]))
    stage1_settings["data"]["train"] = [str(listed)]
    stage1_settings["optim"] |= {"num_steps": 3, "batch_size": 2}
    stage1_settings |= {"save_every": 1, "validate_every": 2}
    config = PretrainConfig(**stage1_settings)
    with monkeypatch.context() as stopped:
        stopped.setattr(pretrain, "validate", lambda *given: sys.exit(EXIT_STOPPED))
        with pytest.raises(SystemExit):
            pretrain.run(config)
    listed.write_text("\n".join(videos))
    folder = pretrain.run(config).folder
    facts = read_facts(folder)
    assert facts["resumed"][0]["step"] == 2
    (warning,) = facts["warnings"]
    assert f"1 added ({videos[2]})" in warning
    assert facts["train_videos"]["count"] == 3


def test_copies_of_training_videos_in_validation_are_told(tmp_path: Path) -> None:
    names = ("a", "copy", "same-size", "other")
    a, copy, same_size, other = (tmp_path / f"{name}.mp4" for name in names)
    for path, content in ((a, b"1234"), (copy, b"1234"), (same_size, b"4321"), (other, b"12345")):
        path.write_bytes(content)
    assert told_copies([a, a, other], [same_size]) is None
    assert (told_copies([a, other], [same_size, copy, copy]) or "").endswith(f"flatter: 1: {copy} (of {a})")
    with pytest.raises(DataError, match="cannot read"):
        told_copies([a], [tmp_path / "gone"])


def test_both_stages_tell_of_copies_under_another_name(
    toy_world: Path, stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], tmp_path: Path
) -> None:
    """By path they are two videos, and nothing else would say that what is scored was trained on."""
    for part in ("train", "val"):
        shutil.copyfile(next(iter(videos_in(toy_world, "cam01"))), tmp_path / f"{part}-take.mp4")
        entry = {"segments": [{"start_time": 3.0, "end_time": 4.0, "step_unique_id": 1, "step_name": "Stir"}]}
        annotation = {"annotations": {f"{part}-take": entry}}
        (tmp_path / f"{part}.json").write_text(json.dumps(annotation))
    said = f"{tmp_path / 'val-take.mp4'} (of {tmp_path / 'train-take.mp4'})"
    stage1_settings["data"] |= {part: [str(tmp_path / f"{part}-take.mp4")] for part in ("train", "val")}
    config = PretrainConfig(**stage1_settings)
    for resume in (False, True):
        with RunLog.open(config, "pretrain", resume=resume) as log:
            (log.folder / "checkpoints/step-000001").mkdir(
                parents=True, exist_ok=True
            )  # there is something to go on from
            find_parts(config.data, log, StopFlag())
        (warning,) = read_facts(log.folder)["warnings"]
        assert said in warning
    stage2_settings["annotations"] = {
        "train": tmp_path / "train.json",
        "val": tmp_path / "val.json",
        "videos": tmp_path,
    }
    later = AnticipateConfig(**stage2_settings)
    with RunLog.open(later, "anticipate", resume=False) as log:
        read_tables(later, log, StopFlag())
    assert any(said in warning for warning in read_facts(log.folder)["warnings"])


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
