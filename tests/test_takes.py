"""The one video of the wanted view in Ego-Exo4D's layout, with and without `takes.json`, and never another view."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwm.config import AnnotationConfig
from hwm.data.annotations import read_annotations
from hwm.data.segments import SegmentTable
from hwm.data.video import write_video
from hwm.errors import DataError


def segment(start: Any, end: Any, class_id: Any, **more: Any) -> dict[str, Any]:
    return {"start_time": start, "end_time": end, "step_unique_id": class_id, "step_name": f"name {class_id}"} | more


def _write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A video of 10 s."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
    write_video(path, frames, 2.0, preset="ultrafast")
    return path.read_bytes()


def _config(videos: Path, **more: Any) -> AnnotationConfig:
    return AnnotationConfig(train=Path("train.json"), val=Path("val.json"), videos=videos, **more)


def _read(videos: Path, annotation: Any, **more: Any) -> SegmentTable:
    table = read_annotations(_write_json(videos / "keystep.json", annotation), _config(videos, **more), None)
    assert table.expected == len(table.segments) + len(table.excluded)
    return table


def _stream(path: str | None) -> dict[str, Any]:
    return {"relative_path": path}


@pytest.fixture
def dataset(tmp_path: Path, video: bytes) -> Path:
    """One take with two cameras in both resolutions, its takes.json, and a second take called aria."""
    entries = []
    for name, uid, aria in (("t_1", "u1", "aria04"), ("t_2", "u2", "aria")):
        aligned = tmp_path / "takes" / name / "frame_aligned_videos"
        files = [f"{aria}_214-1.mp4", f"{aria}_211-1.mp4", "cam01.mp4", "cam02.mp4", "ego_preview.mp4"]
        for folder in (aligned, aligned / "downscaled" / "448"):
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                (folder / file).write_bytes(video)
        prefix = "frame_aligned_videos"
        entries.append({
            "take_uid": uid, "take_name": name, "root_dir": f"takes/{name}", "participant_uid": 12, "task_name": "Tea",
            "frame_aligned_videos": {
                aria: {"rgb": _stream(f"{prefix}/{aria}_214-1.mp4"), "et": _stream(f"{prefix}/{aria}_211-1.mp4")},
                "cam01": {"0": _stream(f"{prefix}/cam01.mp4")},
                "cam02": {"0": _stream(None)},
                "collage": {"0": _stream("ego_preview.mp4")},
                "best_exo": {"0": _stream(None)},
            },
        })  # fmt: skip
    _write_json(tmp_path / "takes.json", entries)
    return tmp_path


BOTH = {
    "annotations": {
        "u1": {"take_uid": "u1", "take_name": "t_1", "scenario": "Covid", "segments": [segment(1, 2, 5)]},
        "u2": {"take_uid": "u2", "take_name": "t_2", "segments": [segment(1, 2, 5)]},
    }
}


def _paths(dataset: Path, table: SegmentTable) -> list[str]:
    return [str(row.video.path.relative_to(dataset / "takes")) for row in table.segments]


@pytest.mark.parametrize("with_takes_json", [True, False])
@pytest.mark.parametrize(
    ("view", "resolution", "expected"),
    [
        ("ego", "full", ["t_1/frame_aligned_videos/aria04_214-1.mp4", "t_2/frame_aligned_videos/aria_214-1.mp4"]),
        ("ego", "448", [
            "t_1/frame_aligned_videos/downscaled/448/aria04_214-1.mp4",
            "t_2/frame_aligned_videos/downscaled/448/aria_214-1.mp4",
        ]),
        ("cam01", "full", ["t_1/frame_aligned_videos/cam01.mp4", "t_2/frame_aligned_videos/cam01.mp4"]),
        ("cam01", "448", [
            "t_1/frame_aligned_videos/downscaled/448/cam01.mp4", "t_2/frame_aligned_videos/downscaled/448/cam01.mp4",
        ]),
    ],
)  # fmt: skip
def test_the_wanted_view_and_no_other(
    dataset: Path, with_takes_json: bool, view: str, resolution: str, expected: list[str]
):
    takes = dataset / "takes.json" if with_takes_json else None
    table = _read(dataset, BOTH, view=view, resolution=resolution, takes=takes)
    assert _paths(dataset, table) == expected
    assert table.segments[0].scenario == "Covid"
    assert table.segments[1].scenario == ("Tea" if with_takes_json else "")
    assert table.segments[0].participant == ("12" if with_takes_json else None)


@pytest.mark.parametrize("with_takes_json", [True, False])
def test_a_missing_view_is_never_replaced_by_another(dataset: Path, with_takes_json: bool):
    takes = dataset / "takes.json" if with_takes_json else None
    (dataset / "takes/t_1/frame_aligned_videos/aria04_214-1.mp4").unlink()
    table = _read(dataset, BOTH, view="ego", takes=takes)
    assert [row.take for row in table.segments] == ["t_2"]
    expected = "the video file is not on disk" if with_takes_json else "the take has no video of the view ego"
    assert [reason for _, reason in table.excluded] == [expected]
    for view in ("cam03", "collage", "best_exo", "cam02"):
        if view == "cam02" and not with_takes_json:
            continue  # without takes.json the file itself says that the camera exists
        with pytest.raises(DataError, match=rf"2 × .*view {view}"):
            _read(dataset, BOTH, view=view, takes=takes)


def test_take_counts_and_takes_that_are_nowhere(dataset: Path):
    more = BOTH["annotations"] | {"u9": {"take_uid": "u9", "take_name": "t_9", "segments": [segment(1, 2, 5)]}}
    table = _read(dataset, {"annotations": more}, takes=dataset / "takes.json")
    assert [reason for _, reason in table.excluded] == ["the take is not in takes.json"]
    assert table.counts["takes annotated"] == 3
    assert table.counts["takes in takes.json"] == 2
    assert table.counts["takes with a readable video"] == 2
    table = _read(dataset, {"annotations": more})
    assert [reason for _, reason in table.excluded] == ["the take is not on disk"]


def test_annotation_keyed_by_name_finds_the_row_of_takes_json(dataset: Path):
    table = _read(dataset, {"annotations": {"t_1": {"segments": [segment(1, 2, 5)]}}}, takes=dataset / "takes.json")
    assert table.segments[0].participant == "12"


def test_two_rgb_cameras_are_an_error_that_names_both(dataset: Path):
    rows = json.loads((dataset / "takes.json").read_text())
    rows[0]["frame_aligned_videos"]["aria05"] = {"rgb": _stream("frame_aligned_videos/aria05_214-1.mp4")}
    _write_json(dataset / "takes.json", rows)
    with pytest.raises(DataError) as raised:
        _read(dataset, BOTH, takes=dataset / "takes.json")
    assert "aria04_214-1.mp4 and " in str(raised.value)
    assert "aria05_214-1.mp4" in str(raised.value)
    table = _read(dataset, BOTH, takes=dataset / "takes.json", view="aria04")  # the way out that the message names
    assert _paths(dataset, table) == ["t_1/frame_aligned_videos/aria04_214-1.mp4"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frame_aligned_videos": None}, "takes.json has no video of the view ego"),
        ({"root_dir": None}, None),
        ({"root_dir": "../elsewhere"}, "a path in takes.json leaves the dataset's folder"),
        ({"root_dir": "/etc"}, "a path in takes.json leaves the dataset's folder"),
        ({"participant_uid": None, "task_name": None}, None),
        ({"is_dropped": True}, "the take is dropped in takes.json"),
        ({"is_dropped": False}, None),
    ],
)
def test_odd_rows_of_takes_json(dataset: Path, change: dict[str, Any], reason: str | None):
    rows = json.loads((dataset / "takes.json").read_text())
    rows[0] |= change
    _write_json(dataset / "takes.json", rows)
    table = _read(dataset, BOTH, takes=dataset / "takes.json")
    assert [found for _, found in table.excluded] == ([] if reason is None else [reason])


def test_448_needs_the_aligned_folder_in_the_path(dataset: Path):
    rows = json.loads((dataset / "takes.json").read_text())
    rows[0]["frame_aligned_videos"]["aria04"]["rgb"]["relative_path"] = "aria04_214-1.mp4"
    _write_json(dataset / "takes.json", rows)
    table = _read(dataset, BOTH, takes=dataset / "takes.json", resolution="448")
    assert "448 copy" in table.excluded[0].reason


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"take_uid": "u"}, {"take_uid": "u"}]', "[{]"])
def test_malformed_takes_json(dataset: Path, content: str):
    (dataset / "takes.json").write_text(content)
    with pytest.raises(DataError, match=r"takes\.json"):
        _read(dataset, BOTH, takes=dataset / "takes.json")
