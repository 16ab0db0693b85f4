"""`hwm data check`: what it finds in a set with every kind of damage, what it remembers, and what a run is held to."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwm.cli import main
from hwm.config import AdaptConfig, AnticipateConfig, GazeFilesConfig, PretrainConfig
from hwm.data.check_log import CheckLog
from hwm.data.checking import VideoCheck
from hwm.data.clips import find_videos
from hwm.data.gaze_check import GazeFacts
from hwm.data.manifest import Coverage, ExcludedItem, known_videos, read_manifest, require_unchanged
from hwm.data.seen_videos import take_name
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import StopFlag
from hwm.errors import DataError
from hwm.pipelines import anticipate, data_check, pretrain
from hwm.pipelines.data_advice import ADVICE, advice_for
from hwm.pipelines.data_check import DataCheckResult, run
from hwm.pipelines.data_summary import closing, tables

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data.md"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data check")


@pytest.fixture
def world(toy_world: Path, workshop: Path) -> Path:
    """A copy to damage, at the same place and with the same times for every test."""
    shutil.rmtree(workshop / "world", ignore_errors=True)
    return Path(shutil.copytree(toy_world, workshop / "world"))


@pytest.fixture
def recipe(world: Path, tmp_path: Path) -> AnticipateConfig:
    return recipe_of(world, tmp_path)


def recipe_of(world: Path, tmp_path: Path) -> AnticipateConfig:
    return AnticipateConfig.model_validate(
        {
            "name": "check",
            "folder": tmp_path / "runs",
            "annotations": {
                "train": world / "annotations" / "keystep_train.json",
                "val": world / "annotations" / "keystep_val.json",
                "videos": world,
                "takes": world / "takes.json",
            },
        }
    )


def ego_videos(world: Path) -> list[Path]:
    return sorted((world / "takes").glob("*/frame_aligned_videos/*_214-1.mp4"))


def train_names(world: Path) -> list[str]:
    annotations = json.loads((world / "annotations" / "keystep_train.json").read_text())["annotations"]
    return [entry["take_name"] for entry in annotations.values()]


def ego_of(world: Path, take: str) -> Path:
    return next((world / "takes" / take / "frame_aligned_videos").glob("*_214-1.mp4"))


def reasons(result: DataCheckResult, part: str) -> list[str]:
    return sorted(item.reason for item in result.manifest.coverage[part].excluded)


def test_a_whole_set_is_whole(recipe: AnticipateConfig, world: Path) -> None:
    result = run(recipe)
    manifest = result.manifest
    assert result.path == recipe.folder / "check" / "data_manifest.json"
    assert manifest == read_manifest(result.path)
    assert manifest.counts["train takes"] == {
        "annotated": 6, "takes in takes.json": 6, "on disk": 6, "usable": 6,
    }  # fmt: skip
    assert set(manifest.videos) == {str(path) for path in ego_videos(world)}
    assert not manifest.unusable
    assert all(not part.excluded for part in manifest.coverage.values())
    for path, record in manifest.videos.items():
        assert record.facts is not None
        assert record.notes == ()
        assert record.size == Path(path).stat().st_size
        assert record.facts.frames == round(record.facts.duration_sec * 8)
        assert record.chosen_as == f"rgb stream of {Path(path).stem.removesuffix('_214-1')} in takes.json"
        assert not isinstance(record.gaze, str)
        assert record.gaze is not None
        assert record.gaze.period_error_ms == 0.0
    assert list(result.path.parent.iterdir()) != []
    assert not list(result.path.parent.glob(".*"))  # no draft is left


def test_adapt_may_name_videos_to_train_on_alone(world: Path, tmp_path: Path) -> None:
    lists = world / "lists"
    settings = {"name": "check", "folder": tmp_path / "runs", "data": {"train": [str(lists / "train_ego.txt")]}}
    manifest = run(AdaptConfig.model_validate(settings)).manifest
    assert set(manifest.coverage) == {"train videos"}
    assert not manifest.unusable


def test_every_kind_of_damage_is_counted_by_its_reason(recipe: AnticipateConfig, world: Path) -> None:
    cut, empty, absent, unread, longer, lacks_gaze = train_names(world)
    path = ego_of(world, cut)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    ego_of(world, empty).write_bytes(b"")
    shutil.rmtree(world / "takes" / absent)
    path = ego_of(world, unread)
    path.unlink()
    os.mkfifo(path)
    (world / "takes" / lacks_gaze / "eye_gaze" / "general_eye_gaze_2d.csv").unlink()
    rows = json.loads((world / "takes.json").read_text())
    for row in rows:
        row["duration_sec"] += 5.0 * (row["take_name"] == longer)
    (world / "takes.json").write_text(json.dumps(rows))
    result = run(recipe)
    assert reasons(result, "train takes") == [
        "it is cut off before its end", "not a regular file", "the file is empty (0 bytes)",
        "the video file is not on disk",
    ]  # fmt: skip
    assert result.manifest.counts["train takes"]["on disk"] == 5
    assert result.manifest.counts["train takes"]["usable"] == 2
    segments = result.manifest.coverage["train segments"]
    lost = {reason.removeprefix("unreadable video: ") for reason in reasons(result, "train segments")}
    assert lost == set(reasons(result, "train takes"))
    assert segments.expected == segments.used + len(segments.excluded)
    notes = {Path(path).parts[-3]: record.notes for path, record in result.manifest.videos.items()}
    assert notes[lacks_gaze] == ("gaze file: there is none",)
    assert notes[longer] == ("the duration in takes.json is not that of the frames",)
    shown = {table.title: table for table in tables(result.manifest)}
    left_out = shown["left out"].rows
    assert ("train takes", "1", "the file is empty (0 bytes)", "download it again") in left_out
    assert any("annotations.manifest=" in line for line in closing(result, "RECIPE"))


@pytest.mark.parametrize("folder", ["gaze", None])
def test_the_gaze_files_that_a_run_would_read_are_read(
    recipe: AnticipateConfig, world: Path, tmp_path: Path, folder: str | None
) -> None:
    """Also where they do not lie beside the takes; and the one of a take is not told for another."""
    videos = [ego_of(world, take) for take in train_names(world)]
    flat, apart = tmp_path / "videos", tmp_path / "gaze"
    for path in (flat, apart):
        path.mkdir()
    for part in ("train", "val"):
        for take in json.loads((world / f"annotations/keystep_{part}.json").read_text())["annotations"].values():
            shutil.copyfile(ego_of(world, take["take_name"]), flat / f"{take['take_name']}.mp4")
    whole, pausing, ego4d, *others = (take_name(video) for video in videos)
    csv = (world / "takes" / whole / "eye_gaze" / "general_eye_gaze_2d.csv").read_text().splitlines()
    gaze_of = apart if folder else flat
    (gaze_of / f"{whole}.csv").write_text("\n".join(csv))
    (gaze_of / f"{pausing}.csv").write_text("\n".join(csv[:20] + csv[30:]))
    header = "world_index,confidence,norm_pos_x,norm_pos_y"
    (gaze_of / f"{ego4d}.csv").write_text("\n".join([header, "0,1,.5,.5", "1,.1,.5,.5", "2,1,.5,.5", "9,1,.5,.5"]))
    settings = {
        "annotations": recipe.annotations.model_copy(update={"videos": flat, "takes": None}),
        "gaze_files": GazeFilesConfig(folder=apart if folder else None),
        "probe": recipe.probe.model_copy(update={"gaze_point": "measured"}),
    }
    found = {Path(path).stem: of for path, of in run(recipe.model_copy(update=settings)).manifest.videos.items()}
    assert [found[take].notes for take in (whole, pausing)] == [(), ("gaze file: pauses longer than 0.15 s",)]
    assert {found[take].notes for take in others} == {("gaze file: there is none",)}
    of_ego4d = found[ego4d].gaze
    assert isinstance(of_ego4d, GazeFacts)
    assert (of_ego4d.rows, of_ego4d.share_without_point, of_ego4d.gaps, of_ego4d.period_error_ms) == (4, 0.25, 1, None)
    settings["gaze_files"] = GazeFilesConfig(folder=tmp_path / "nowhere")
    with pytest.raises(DataError, match="folder of gaze files"):
        run(recipe.model_copy(update=settings))


def test_gaze_that_is_not_at_ten_hertz_is_told(recipe: AnticipateConfig, world: Path) -> None:
    gaze = world / "takes" / train_names(world)[0] / "eye_gaze" / "general_eye_gaze_2d.csv"
    header, *rows = gaze.read_text().splitlines()
    cells = [row.split(",") for row in rows]
    slow = [",".join([n, str(int(t) + 12_000 * i), x, y]) for i, (n, t, x, y) in enumerate(cells)]
    gaze.write_text("\n".join([header, *slow]) + "\n")
    other = world / "takes" / train_names(world)[1] / "eye_gaze" / "general_eye_gaze_2d.csv"
    header, *rows = other.read_text().splitlines()
    outside = [",".join([*row.split(",")[:2], "-5", "9999"]) for row in rows[:10] + rows[20:]]
    other.write_text("\n".join([header, *outside]) + "\n")
    videos = run(recipe).manifest.videos
    assert videos[str(ego_of(world, train_names(world)[0]))].notes == ("gaze file: not 10 rows a second",)
    record = videos[str(ego_of(world, train_names(world)[1]))]
    assert set(record.notes) == {
        "gaze file: pauses longer than 0.15 s", "gaze file: half of the points and more are outside the picture",
    }  # fmt: skip
    assert record.gaze is not None
    assert not isinstance(record.gaze, str)
    assert (record.gaze.gaps, record.gaze.longest_gap_sec, record.gaze.share_without_point) == (1, 1.1, 1.0)


def test_nothing_on_disk_is_a_report_and_not_a_crash(
    recipe: AnticipateConfig,
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shutil.rmtree(world / "takes")
    (world / "takes").mkdir()
    text = {"name": "x", "folder": str(tmp_path / "runs"), "annotations": recipe.annotations.model_dump(mode="json")}
    (tmp_path / "x.yaml").write_text(json.dumps(text))
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(tmp_path / "x.yaml")])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "a run would refuse train: no usable segment" in out
    assert "the video file is not on disk" in out


def test_a_second_check_opens_only_what_changed(
    recipe: AnticipateConfig, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    check = data_check.check_videos

    def watched(paths: list[Path], *rest: Any) -> Any:
        opened.extend(paths)
        return check(paths, *rest)

    monkeypatch.setattr(data_check, "check_videos", watched)
    first = run(recipe)
    assert sorted(opened) == ego_videos(world)
    opened.clear()
    second = run(recipe)
    assert opened == []
    assert second.num_checked == 0
    assert second.manifest.videos == first.manifest.videos
    changed = ego_videos(world)[2]
    changed.write_bytes(changed.read_bytes() + b"\0")
    third = run(recipe)
    assert opened == [changed]
    record = third.manifest.videos[str(changed)]
    assert record.facts is not None
    before = first.manifest.videos[str(changed)].facts
    assert before is not None
    assert record.facts.sha256 != before.sha256


def test_an_interrupted_check_keeps_what_it_did(recipe: AnticipateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    check = data_check.check_videos

    def broken(*arguments: Any) -> Any:
        for number, answer in enumerate(check(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(data_check, "check_videos", broken)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    assert not (recipe.folder / "check" / "data_manifest.json").exists()
    monkeypatch.setattr(data_check, "check_videos", check)
    assert run(recipe).num_checked == 5


def test_torn_and_foreign_lines_are_checked_again_and_timeouts_are_not_kept(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"x")
    log = CheckLog(tmp_path / "data_manifest.json")
    log.add(video, video.stat(), VideoCheck(None, "the decoder did not answer within 1 s", None, is_final=False))
    assert not log.path.exists()
    final = VideoCheck(None, "it has no video stream", None, is_final=True)
    log.path.write_text('{"key": "half a li')
    log.add(video, video.stat(), final)
    again = CheckLog(tmp_path / "data_manifest.json")
    assert again.get(video, video.stat()) == final
    with log.path.open("ab") as file:
        file.write(b"\xff\n")
    again = CheckLog(tmp_path / "data_manifest.json")
    assert again.get(video, video.stat()) == final
    again.keep_only([(video, video.stat())])
    assert CheckLog(tmp_path / "data_manifest.json").get(video, video.stat()) == final
    log.path.write_text(
        log.path.read_text().replace("null, ", '{"sha256": 3}, ', 1).replace('"facts": null', '"facts": {}')
    )
    assert CheckLog(tmp_path / "data_manifest.json").get(video, video.stat()) is None


# What a run is held to


@pytest.fixture
def remembered(recipe: AnticipateConfig, workshop: Path) -> AnticipateConfig:
    """The recipe, with the results of an earlier check of the same files beside its manifest."""
    log = workshop / "data_manifest.checked.jsonl"
    if not log.exists():
        shutil.copy(run(recipe).path.with_suffix(".checked.jsonl"), log)
    (recipe.folder / "check").mkdir(parents=True, exist_ok=True)
    shutil.copy(log, recipe.folder / "check")
    return recipe


def touch_later(path: Path) -> None:
    os.utime(path, (1, path.stat().st_mtime + 60))


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    touch_later(path)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("change", "words"), [(flip_a_byte, "has other content"), (grow, "bytes (was"), (Path.unlink, "is gone")]
)
def test_a_changed_video_is_refused(
    remembered: AnticipateConfig, world: Path, change: Callable[[Path], None], words: str
) -> None:
    path = run(remembered).path
    require_unchanged(path)
    video = ego_videos(world)[1]
    change(video)
    with pytest.raises(DataError, match="not those of") as raised:
        require_unchanged(path)
    assert str(video) in str(raised.value.found)
    assert words in str(raised.value.found)


def test_a_copy_with_another_time_is_the_same_video(remembered: AnticipateConfig, world: Path) -> None:
    path = run(remembered).path
    for video in ego_videos(world):
        touch_later(video)
    require_unchanged(path)


def test_a_changed_annotation_file_is_refused(remembered: AnticipateConfig, world: Path) -> None:
    path = run(remembered).path
    (world / "takes.json").write_text((world / "takes.json").read_text() + " ")
    with pytest.raises(DataError, match="not those of") as raised:
        require_unchanged(path)
    assert "annotations.takes" in str(raised.value.found)


def test_what_the_manifest_leaves_out_stays_out_and_new_videos_are_refused(
    remembered: AnticipateConfig, world: Path
) -> None:
    broken, other = ego_videos(world)[:2]
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    path = run(remembered).path
    broken.write_bytes(whole)  # mended, and not checked since
    assert known_videos([broken], path) == ["the file is empty (0 bytes)"]
    (info,) = known_videos([other], path)
    assert info == known_videos([other], None)[0]
    with pytest.raises(DataError, match="lacks 1 video"):
        known_videos([other, other.with_name("cam01.mp4")], path)


def test_a_manifest_whose_numbers_do_not_add_up_is_refused(remembered: AnticipateConfig) -> None:
    path = run(remembered).path
    tree = json.loads(path.read_text())
    tree["coverage"]["val segments"]["used"] -= 1
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="damaged at coverage"):
        read_manifest(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="no data manifest"):
        read_manifest(path)
    with pytest.raises(ValueError, match="lost track"):
        Coverage(expected=2, used=0, excluded=(ExcludedItem(item="a", reason="b"),))


def test_stage_1_is_held_to_its_manifest_and_says_so(stage1_settings: dict[str, Any], toy_world: Path) -> None:
    config = PretrainConfig.model_validate(stage1_settings)
    result = run(config)
    assert result.setting == "data.manifest"
    assert result.manifest.coverage["train videos"].used == 6
    assert result.manifest.counts["val videos"] == {"named": 2, "on disk": 2, "usable": 2}
    data = stage1_settings["data"] | {"manifest": result.path}
    pretrain.run(PretrainConfig.model_validate(stage1_settings | {"data": data, "name": "held"}), resume=False)
    record = json.loads((config.folder / "held" / "run.json").read_text())["data_manifest"]
    assert record["counts"] == {"videos used": 8, "videos excluded": 0}
    assert len(record["sha256"]) == 64
    pretrain.run(PretrainConfig.model_validate(stage1_settings | {"name": "free"}), resume=False)
    assert json.loads((config.folder / "free" / "run.json").read_text())["data_manifest"] is None


def test_stage_2_is_held_to_its_manifest(remembered: AnticipateConfig, world: Path) -> None:
    annotations = remembered.annotations.model_copy(update={"manifest": run(remembered).path})
    config = remembered.model_copy(update={"annotations": annotations, "name": "held"})
    with RunLog.open(config, "anticipate", resume=False) as log:
        train, _ = anticipate.read_tables(config, log, StopFlag())
        assert train.expected == len(train.segments)
        assert json.loads((log.folder / "run.json").read_text())["data_manifest"]["counts"]["videos used"] == 8
        flip_a_byte(ego_videos(world)[0])
        with pytest.raises(DataError, match="not those of"):
            anticipate.read_tables(config, log, StopFlag())


def test_a_run_with_a_changed_video_does_not_start(stage1_settings: dict[str, Any], world: Path) -> None:
    lists = {part: [str(world / "lists" / f"{part}_cam01.txt")] for part in ("train", "val")}
    settings = stage1_settings | {"data": stage1_settings["data"] | lists}
    path = run(PretrainConfig.model_validate(settings)).path
    flip_a_byte(sorted((world / "takes").glob("*/frame_aligned_videos/cam01.mp4"))[0])
    held_to = settings | {"name": "held", "data": settings["data"] | {"manifest": path}}
    with pytest.raises(DataError, match="not those of"):
        pretrain.run(PretrainConfig.model_validate(held_to), resume=False)


def test_videos_too_short_and_named_twice_are_counted(stage1_settings: dict[str, Any], toy_world: Path) -> None:
    names = [str(toy_world / "lists" / "train_cam01.txt")] * 2
    data = stage1_settings["data"] | {"train": names}
    result = run(PretrainConfig.model_validate(stage1_settings | {"data": data}))
    assert reasons(result, "train videos") == ["named more than once"] * 6
    found = find_videos(names, "**/*", 0.0, result.path)
    assert len(found.videos) == 6
    long = stage1_settings["data"] | {"num_steps": 4000}
    refused = run(PretrainConfig.model_validate(stage1_settings | {"data": long}))
    assert set(refused.manifest.unusable) == {"train", "val"}
    assert not any("hold a run to it" in line for line in closing(refused, "RECIPE"))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take text alone")
def test_a_name_that_is_no_text_is_named_with_a_way_out(stage1_settings: dict[str, Any], toy_world: Path) -> None:
    folder = stage1_settings["folder"].parent / "odd"
    folder.mkdir()
    video = sorted((toy_world / "takes").glob("*/frame_aligned_videos/cam01.mp4"))[0]
    (folder / os.fsdecode(b"caf\xe9.mp4")).symlink_to(video)
    data = stage1_settings["data"] | {"train": [str(folder)]}
    with pytest.raises(DataError, match="1 video is not text") as caught:
        run(PretrainConfig.model_validate(stage1_settings | {"data": data}))
    assert "caf" in f"{caught.value.found}"
    assert "rename" in f"{caught.value.fix}"


def test_a_manifest_that_cannot_be_written_says_where_else(stage1_settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = stage1_settings | {"folder": tmp_path / "file" / "runs"}
    with pytest.raises(DataError, match="a place that can be written"):
        run(PretrainConfig.model_validate(settings))


def test_the_next_command_has_what_was_changed_and_missing_files_are_not_called_unchanged(
    toy_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = sorted((toy_world / "takes").glob("*/frame_aligned_videos/cam01.mp4"))[0]
    (tmp_path / "list.txt").write_text(f"{video}\ngone.mp4\n")
    (tmp_path / "x.yaml").write_text(json.dumps({"name": "x", "encoder": {"weights": "mini", "resolution": 128}}))
    changed = [f"folder={tmp_path}/my runs", f"data.train=[{tmp_path}/list.txt]", f"data.val=[{tmp_path}/list.txt]"]
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(tmp_path / "x.yaml"), *changed])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("1 video checked") and line.endswith("0 unchanged since the last check, 1 not there")
        for line in lines
    )
    (said,) = [line.removeprefix("hold a run to it: ") for line in lines if line.startswith("hold a run")]
    manifest = f"data.manifest={tmp_path}/my runs/x/data_manifest.json"
    assert shlex.split(said) == [str(tmp_path / "x.yaml"), *changed, manifest]


def test_every_reason_has_its_cure_and_the_page_says_the_same() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for advice in ADVICE:
        assert f"| {advice.words} | {advice.meaning} | {advice.cure} |" in page, advice.words
    found = advice_for("unreadable video: the decoder did not answer within 60 s and was ended")
    assert found is not None
    assert "--timeout" in found.cure
    assert advice_for("Stale file handle") is None
