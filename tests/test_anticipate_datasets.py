"""Stage 2 on tiny files of every data set, with the weights of the package: heads, scores, coverage, a saved probe."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hwm.config import AnticipateConfig, PretrainConfig
from hwm.engine.requirements import require_inputs
from hwm.errors import ConfigError, DataError
from hwm.pipelines import anticipate, pretrain
from hwm.pipelines.anticipate import AnticipateResult
from hwm.pipelines.compare_examples import reopen

VIDEOS = ("P01_01", "P01_02", "P02_01", "P03_01")
"""The first two are trained on, with the third; the last is scored. Names of EPIC-KITCHENS do for all."""
UNKNOWN_VERB = 9


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ten_seconds: bytes) -> Path:
    """Four videos, annotations of all data sets (20 segments each), and a stage-1 run of one update."""
    root = tmp_path_factory.mktemp("datasets")
    (root / "videos").mkdir()
    for number, name in enumerate(VIDEOS):  # a free box of its own makes each file another one
        (root / "videos" / f"{name}.mp4").write_bytes(ten_seconds + b"\0\0\0\x0cfree" + bytes([0, 0, 0, number]))
    for split, names in (("train", VIDEOS[:3]), ("val", VIDEOS[3:])):
        _write_all(root, split, [(name, place) for name in names for place in range(5)])
    for name, column, values in (("unseen", "participant_id", ["P03"]), ("verbs", "verb", [2]), ("nouns", "noun", [1])):
        (root / f"{name}.csv").write_text("\n".join([column, *map(str, values)]) + "\n")
    (root / "taxonomy.json").write_text(json.dumps({"verbs": [f"v{i}" for i in range(10)], "nouns": ["n0", "n1"]}))
    (root / "mapping.csv").write_text(
        "label_id,step_unique_id,step_name\n" + "".join(f"{i},{i},s{i}\n" for i in (2, 1, 0))
    )
    settings = {
        "name": "stage1", "folder": root, "encoder": {"resolution": 64}, "gaze": "none",
        "data": {
            "train": [str(root / "videos" / f"{name}.mp4") for name in VIDEOS[:3]],
            "val": [str(root / "videos" / "P03_01.mp4")],
            "num_steps": 9,
        },
        "tokens": {"source": "cached", "folder": root / "tokens"},
        "predictor": {"width": 24, "depth": 1, "num_heads": 2},
        "optim": {"num_steps": 1, "warmup_steps": 1, "batch_size": 2},
    }  # fmt: skip
    pretrain.run(PretrainConfig.model_validate(settings))
    return root


def _write_all(root: Path, split: str, places: list[tuple[str, int]]) -> None:
    """Segments of 1.5 s, one after the other; the last of each validation video has a verb that is not in training."""
    rows = []
    for video, place in places:
        verb = UNKNOWN_VERB if split == "val" and place == 4 else place % 3
        rows.append((video, place, 2.0 + 1.5 * place, 3.25 + 1.5 * place, verb, place % 2))
    with (root / f"epic_{split}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video_id", "participant_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class"])
        for video, _, start, end, verb, noun in rows:
            writer.writerow([video, video[:3], f"00:00:{start:05.2f}", f"00:00:{end:05.2f}", verb, noun])
    clips = [
        {"clip_uid": video, "video_uid": video, "action_idx": place, "action_clip_start_sec": start,
         "action_clip_end_sec": end, "verb_label": verb, "noun_label": noun, "verb": f"v{verb}", "noun": f"n{noun}"}
        for video, place, start, end, verb, noun in rows
    ]  # fmt: skip
    (root / f"lta_{split}.json").write_text(json.dumps({"clips": clips}))
    segments = [
        {"take_name": video, "start_time": start, "end_time": end, "step_unique_id": verb, "step_name": f"s{verb}",
         "step_category": f"s{verb}"}
        for video, _, start, end, verb, _ in rows
    ]  # fmt: skip
    (root / f"keystep_{split}.json").write_text(json.dumps({"segments": segments}))
    goals = [
        {"video_uid": name, "segments": [fields for fields in segments if fields["take_name"] == name]}
        for name in dict.fromkeys(video for video, _ in places)
    ]
    (root / f"goalstep_{split}.json").write_text(json.dumps({"videos": goals}))


def _config(world: Path, kind: str, name: str, folder: Path, **more: Any) -> AnticipateConfig:
    suffix, own = "csv" if kind == "epic" else "json", {
        "keystep": {"dataset": "keystep"},
        "benchmark": {"dataset": "keystep", "classes": "benchmark", "label_mapping": world / "mapping.csv"},
        "goalstep": {"dataset": "ego4d-goalstep"},
        "lta": {"dataset": "ego4d-lta", "taxonomy": world / "taxonomy.json", "sequence_length": 3},
        "epic": {
            "dataset": "epic-kitchens-100", "unseen_participants": world / "unseen.csv",
            "tail_verbs": world / "verbs.csv", "tail_nouns": world / "nouns.csv",
        },
    }[kind]  # fmt: skip
    file = "keystep" if kind == "benchmark" else kind
    annotations = own | {split: world / f"{file}_{split}.{suffix}" for split in ("train", "val")}
    settings = {
        "name": name, "folder": folder, "checkpoint": world / "stage1",
        "annotations": annotations | {"videos": world / "videos"},
        "tokens": {"source": "cached", "folder": world / "tokens"},
        "protocol": {"num_steps": 3},
        "probe": {"num_heads": 2, "num_epochs": 2, "num_views": 1, "lrs": [1e-3], "batch_size": 8},
    }  # fmt: skip
    config = AnticipateConfig.model_validate(settings | more)
    require_inputs(config)
    return config


def _run(world: Path, kind: str, folder: Path, **more: Any) -> tuple[AnticipateResult, dict[str, Any]]:
    result = anticipate.run(_config(world, kind, kind, folder, **more))
    record = json.loads((result.folder / "run.json").read_text())
    assert record["status"] == "finished"
    coverage = record["coverage"]["val segments"]
    assert coverage["expected"] == coverage["used"] + len(coverage["items"]) == 5
    probe = json.loads((result.folder / "probe.json").read_text())["spec"]
    assert probe["num_queries"] == len(probe["heads"]) == len(result.outputs)  # one query a task, as upstream
    assert record["classes"] == {
        output.task.name: {"sha256": output.task.classes.sha256, "count": len(output.task.classes)}
        for output in result.outputs
    }
    return result, record


@pytest.mark.parametrize("kind", ["keystep", "benchmark", "goalstep"])
def test_data_sets_with_one_task(world: Path, tmp_path: Path, kind: str) -> None:
    result, record = _run(world, kind, tmp_path)
    reason = "not one of the classes of label_mapping.csv" if kind == "benchmark" else "class not in training"
    assert record["coverage"]["val segments"]["excluded"] == {reason: 1}
    assert tuple(result.logits_SC.shape) == (4, 3)
    assert result.labels_S.tolist() == [0, 1, 2, 0]
    assert result.classes.names == ("s0", "s1", "s2")
    assert {"top1", "mean_average_precision"} < set(result.scores["probe"])
    assert result.scores["previous step"]["top1"] == 1  # 0, 1, 2, 0, 1 in every video


def test_epic_kitchens(world: Path, tmp_path: Path) -> None:
    result, record = _run(world, "epic", tmp_path)
    assert record["coverage"]["val segments"]["excluded"] == {}
    shapes = {output.task.name: tuple(output.logits_SZC.shape) for output in result.outputs}
    assert shapes == {"verb": (5, 1, 3), "noun": (5, 1, 2), "action": (5, 1, 5)}
    scores = result.scores["probe"]
    known = {task: (scores[f"{task}/num_segments"], scores[f"{task}/num_unknown_labels"]) for task in shapes}
    assert known == {"verb": (4, 1), "noun": (5, 0), "action": (4, 1)}
    assert scores["noun/unseen/class_mean_recall_at_5"] == scores["noun/class_mean_recall_at_5"]  # all are of P03
    # Verbs 0 1 2 0 ?, nouns 0 1 0 1 0; tail are verb 2 and noun 1.
    tail = {task: scores[f"{task}/tail/num_segments"] for task in shapes}
    assert tail == {"verb": 1, "noun": 2, "action": 3}
    assert set(load_file(result.folder / "outputs.safetensors")) == {
        f"{task}/{part}" for task in shapes for part in ("logits", "labels")
    }
    _assert_reopened(result, known=4)


def test_long_term_anticipation(world: Path, tmp_path: Path) -> None:
    result, _ = _run(world, "lta", tmp_path)
    shapes = {output.task.name: tuple(output.logits_SZC.shape) for output in result.outputs}
    assert shapes == {"verb": (5, 3, 3), "noun": (5, 3, 2), "action": (5, 1, 5)}
    verbs = result.outputs[0].labels_SZ.tolist()
    assert verbs == [[0, 1, 2], [1, 2, 0], [2, 0, -1], [0, -1, -1], [-1, -1, -1]]
    for name in ("probe", "majority"):
        scores = result.scores[name]
        assert scores["num_sequences"] == 3
        assert all(0 <= scores[f"{task}/edit_distance_at_3"] <= 1 for task in shapes)
    again, record = _run(world, "lta", tmp_path / "again")
    assert record.get("warnings", []) == []
    assert again.scores == result.scores
    _assert_reopened(result, known=4)


def _assert_reopened(result: AnticipateResult, known: int) -> None:
    """The examples of a comparison are of the last task, the action, on the segments whose action is known."""
    again = reopen(result.folder).result
    assert [output.task.name for output in again.outputs] == ["action"]
    assert again.classes == result.classes
    (kept,) = torch.nonzero(result.labels_S >= 0, as_tuple=True)
    assert len(kept) == known < len(result.samples)
    assert [sample.segment.row for sample in again.samples] == [result.samples[i].segment.row for i in kept.tolist()]
    assert torch.equal(again.labels_S, result.labels_S[kept])
    torch.testing.assert_close(again.logits_SC, result.logits_SC[kept], atol=0, rtol=2e-3)  # kept in half precision


def test_long_term_anticipation_with_no_whole_sequence_says_so(world: Path, tmp_path: Path) -> None:
    config = _config(world, "lta", "short", tmp_path)
    longer = config.annotations.model_copy(update={"sequence_length": 6})
    result = anticipate.run(config.model_copy(update={"annotations": longer}))
    assert result.scores["probe"]["num_sequences"] == 0
    (warning,) = json.loads((result.folder / "run.json").read_text())["warnings"]
    assert "annotations.sequence_length - 1 others" in warning


def test_a_saved_probe_gives_its_scores_again_and_refuses_other_classes(world: Path, tmp_path: Path) -> None:
    trained, _ = _run(world, "epic", tmp_path)
    saved = trained.folder / "probe.safetensors"
    scored, record = _run(world, "epic", tmp_path / "again", saved_probe=saved)
    for before, after in zip(trained.outputs, scored.outputs, strict=True):
        torch.testing.assert_close(before.logits_SZC, after.logits_SZC, atol=1e-6, rtol=0)
    assert scored.scores == trained.scores
    assert "sweep" not in record
    lines = (world / "epic_train.csv").read_text().splitlines()
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("\n".join(line for line in lines if not line.endswith(",2,0")) + "\n")
    config = _config(world, "epic", "other", tmp_path, saved_probe=saved)
    other = config.model_copy(update={"annotations": config.annotations.model_copy(update={"train": fewer})})
    with pytest.raises(DataError, match="was trained on other classes"):
        anticipate.run(other)
    settings: list[tuple[dict[str, Any], str]] = [
        ({"protocol": {"num_steps": 2}}, "another num_steps"),
        ({"protocol": {"num_steps": 3, "horizon_sec": 2.0}}, "a shorter horizon"),
    ]
    for number, (more, message) in enumerate(settings):
        wrong = _config(world, "epic", f"wrong-{number}", tmp_path, saved_probe=saved, **more)
        with pytest.raises(ConfigError, match=message):
            anticipate.run(wrong)


def test_missing_lists_are_named_before_anything_is_opened(world: Path, tmp_path: Path) -> None:
    (tmp_path / "verbs.csv").write_text("verb\n")
    config = _config(world, "epic", "missing", tmp_path)
    gone = config.annotations.model_copy(update={"tail_nouns": tmp_path / "nouns.csv"})
    with pytest.raises(ConfigError, match=r"annotations\.tail_nouns.*EPIC_100_tail_nouns\.csv"):
        require_inputs(config.model_copy(update={"annotations": gone}))
