"""`hwm extract`: what it fills is what the stages read; nothing is computed twice."""

import json
from pathlib import Path
from typing import Any

import pytest

from hwm.cli import main
from hwm.config import AnticipateConfig, PretrainConfig
from hwm.engine.logged import read_metrics
from hwm.errors import CacheError, DataError
from hwm.pipelines import anticipate, extract, pretrain
from hwm.recipes import dump_config
from hwm.terminal import readable_bytes
from hwm.tokens import extraction, video_hashes
from hwm.tokens.maintenance import total_bytes
from hwm.tokens.video_hashes import VIDEO_HASHES


@pytest.fixture
def frozen_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, encoding anything is an error."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("something was encoded again")

    monkeypatch.setattr(extraction, "encode_pixels", refuse)


def test_both_stages_read_what_was_extracted(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    config = PretrainConfig(**stage1_settings)
    said: list[extract.Estimate] = []
    done = extract.run(config, said.append)
    assert (done.videos, done.excluded, done.crops_held) == (8, 0, 0)
    assert said[0].survey.crops_held == 0
    assert said[0].hours > 0
    assert 0 < done.bytes_made - said[0].survey.bytes_missing < 2048 * 16
    record = json.loads((done.record / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["coverage"]["train videos"]["used"] == 6
    assert record["tokens"]["num_crops"] == 8
    again = extract.run(config, said.append)
    assert (again.crops_held, again.bytes_made, said[1].survey.bytes_missing, said[1].hours) == (8, 0, 0, 0)

    request.getfixturevalue("frozen_encoder")
    stage1 = pretrain.run(config)
    settings = stage2_settings | {"checkpoint": stage1.folder}
    assert extract.run(AnticipateConfig(**settings), said.append).bytes_made == 0  # the same videos, the same tokens
    anticipate.run(AnticipateConfig(**settings))
    assert (stage1.folder / "run.json").exists()  # an extraction has a folder of its own


def test_stage_2_alone_can_be_extracted(stage1_settings: dict[str, Any], stage2_settings: dict[str, Any]) -> None:
    stage1 = pretrain.run(PretrainConfig(**stage1_settings))
    folder = stage1_settings["folder"].parent / "tokens2"
    settings = stage2_settings | {"checkpoint": stage1.folder, "tokens": {"source": "cached", "folder": folder}}
    done = extract.run(AnticipateConfig(**settings), lambda estimate: None)
    assert done.videos == 8
    assert done.bytes_made == total_bytes(folder) == total_bytes(stage1_settings["tokens"]["folder"])


def test_augmented_views_train_from_the_cache(stage1_settings: dict[str, Any], request: pytest.FixtureRequest) -> None:
    stage1_settings["data"]["augment"] = {"ratio": [0.9, 1.1], "scale": [0.3, 0.5]}
    with pytest.raises(ValueError, match=r"tokens\.views"):
        PretrainConfig(**stage1_settings)
    stage1_settings["tokens"] |= {"views": 2, "dtype": "int8"}
    config = PretrainConfig(**stage1_settings)
    said: list[extract.Estimate] = []
    done = extract.run(config, said.append)
    assert said[0].survey.num_crops == 3 * 6 + 2  # two views and the centre square of each training video
    request.getfixturevalue("frozen_encoder")
    augmented = pretrain.run(config)
    assert done.bytes_made == total_bytes(stage1_settings["tokens"]["folder"])
    # The crops do reach training.
    stage1_settings |= {"name": "plain", "data": stage1_settings["data"] | {"augment": None}}
    stage1_settings["tokens"] |= {"views": 0}
    request.getfixturevalue("monkeypatch").undo()
    plain = pretrain.run(PretrainConfig(**stage1_settings))
    assert read_metrics(plain.folder) != read_metrics(augmented.folder)
    with pytest.raises(ValueError, match="counts augmented crops"):
        PretrainConfig(**stage1_settings | {"tokens": {"source": "cached", "views": 2}})


def test_int8_trains_nearly_as_float16(stage1_settings: dict[str, Any]) -> None:
    skills = []
    for dtype in ("float16", "int8"):
        stage1_settings["tokens"]["dtype"] = dtype
        skills.append(pretrain.run(PretrainConfig(**stage1_settings | {"name": dtype})).validation)
    assert skills[0] != skills[1]
    assert skills[0]["copy_l1"] == pytest.approx(skills[1]["copy_l1"], rel=0.02)


def test_a_broken_video_is_an_exclusion_and_a_part_without_any_an_error(
    stage1_settings: dict[str, Any], toy_world: Path, tmp_path: Path
) -> None:
    whole = next((toy_world / "takes").glob("*/frame_aligned_videos/cam01.mp4")).read_bytes()
    broken = tmp_path / "broken.mp4"
    cut = bytearray(whole)
    middle = len(cut) // 2
    cut[middle : middle + len(cut) // 4] = bytes(len(cut) // 4)
    broken.write_bytes(cut)
    train = stage1_settings["data"]["train"]
    stage1_settings["data"]["train"] = [*train, str(broken)]
    done = extract.run(PretrainConfig(**stage1_settings), lambda estimate: None)
    record = json.loads((done.record / "run.json").read_text())
    assert record["coverage"]["train videos"]["expected"] == 7
    assert [Path(item["item"]).name for item in record["coverage"]["train videos"]["items"]] == ["broken.mp4"]
    stage1_settings["data"]["train"] = [str(broken)]
    with pytest.raises(DataError, match="no train video can be decoded"):
        extract.run(PretrainConfig(**stage1_settings), lambda estimate: None)


def test_what_a_list_or_an_annotation_names_in_vain_is_counted(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], toy_world: Path, tmp_path: Path
) -> None:
    stage1_settings["optim"]["num_steps"] = 1
    listed = tmp_path / "train.txt"
    names = (toy_world / "lists" / "train_cam01.txt").read_text().split()
    videos = [str((toy_world / "lists" / name).resolve()) for name in names]
    listed.write_text("\n".join([*videos, "gone.mp4"]))
    stage1_settings["data"]["train"] = [str(listed)]
    done = extract.run(PretrainConfig(**stage1_settings), lambda estimate: None)
    assert (done.videos, done.excluded, done.segments_excluded) == (8, 1, 0)
    record = json.loads((done.record / "run.json").read_text())
    assert record["coverage"]["train videos"]["items"][0]["item"] == str(tmp_path / "gone.mp4")

    stage1 = pretrain.run(PretrainConfig(**stage1_settings)).folder
    annotations = stage2_settings["annotations"]
    known = json.loads(annotations["val"].read_text())
    (key, lost), *_ = known["annotations"].items()
    lost |= {"take_uid": "gone", "take_name": "gone"}
    known["annotations"] = {"gone": known["annotations"].pop(key), **known["annotations"]}
    annotations["val"] = tmp_path / "val.json"
    annotations["val"].write_text(json.dumps(known))
    done = extract.run(AnticipateConfig(**stage2_settings, checkpoint=stage1), lambda estimate: None)
    coverage = json.loads((done.record / "run.json").read_text())["coverage"]
    assert (done.videos, done.excluded) == (7, 0)
    assert done.segments_excluded >= len(lost["segments"]) > 0
    left_out = coverage["val segments"]
    assert left_out["excluded"]["the take is not in takes.json"] == len(lost["segments"])
    assert left_out["expected"] == left_out["used"] + sum(left_out["excluded"].values())
    assert left_out["expected"] == sum(len(take["segments"]) for take in known["annotations"].values())


def test_the_judge_of_validation_is_filled_and_kept(
    stage1_settings: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    stage1_settings["optim"]["num_steps"] = 1
    config = PretrainConfig(**stage1_settings | {"gaze": "none", "validation_gaze": "estimated"})
    said: list[extract.Estimate] = []
    done = extract.run(config, said.append)
    survey = said[0].survey
    assert (done.videos, survey.num_videos, survey.num_crops) == (8, 8, 8)
    assert 0 < done.bytes_made - survey.bytes_missing < 2048 * 16
    folder = stage1_settings["tokens"]["folder"]
    counted = {part.name.split("-")[0]: len(list(part.glob("*.safetensors"))) for part in folder.glob("*-*")}
    assert counted == {"z": 8, "scene": 2}
    assert extract.run(config, said.append).bytes_made == 0
    recipe = tmp_path / "recipe.yaml"
    dump_config(config, recipe)
    capsys.readouterr()
    assert ends("extract", "--prune", "--dry-run", str(recipe)) == 0
    assert "0 of 10 files would be removed" in capsys.readouterr().out
    request.getfixturevalue("frozen_encoder")
    assert "near/skill_1" in pretrain.run(config).validation


def test_a_damaged_cache_is_refused_pruned_and_made_again(
    stage1_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_hashes, "SETTLED_NS", 0)
    config = PretrainConfig(**stage1_settings)
    recipe = tmp_path / "recipe.yaml"
    dump_config(config, recipe)
    assert ends("extract", str(recipe)) == 0
    assert "an hour of each crop" in capsys.readouterr().out
    assert ends("extract", "--verify", str(recipe)) == 0
    file = sorted(stage1_settings["tokens"]["folder"].rglob("*.safetensors"))[0]
    raw = bytearray(file.read_bytes())
    raw[50] ^= 1
    file.write_bytes(raw)
    hashes = stage1_settings["tokens"]["folder"] / VIDEO_HASHES
    with hashes.open("ab") as opened:
        opened.write(b"\nnonsense")
    assert ends("extract", "--verify", str(recipe)) == 1
    assert file.name in capsys.readouterr().out
    with pytest.raises(CacheError, match="--prune"):
        pretrain.run(config)
    assert ends("extract", "--prune", "--dry-run", str(recipe)) == 0
    assert file.exists()
    said = capsys.readouterr().out
    assert "1 of 16 files would be removed" in said
    assert "1 of 9 hashes of videos would be removed" in said
    assert b"nonsense" in hashes.read_bytes()
    assert ends("extract", "--prune", str(recipe)) == 0
    assert not file.exists()
    assert b"nonsense" not in hashes.read_bytes()
    pretrain.run(config)
    assert ends("extract", "--verify", str(recipe)) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretrain/toyworld", "--verify", "--prune"], "two commands"),
        (["pretrain/toyworld", "--dry-run"], "belongs to --prune"),
        (["pretrain/toyworld", "tokens.source=live"], "keeps none"),
        (["anticipate/toyworld"], "no world model"),
        (["anticipate/toyworld-vjepa2"], "cannot use tokens.source=cached"),
        (["adapt/toyworld"], "adapt"),
        (["pretrain/toyworld", "data.augment={}"], "tokens.views"),
        (["pretrain/toyworld", "tokens.dtype=int4"], "int8"),
    ],
)
def test_what_cannot_be_extracted(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends("extract", *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_token_folder_that_is_no_folder_is_told_with_a_way_out(
    stage1_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("file", "dangling"):
        place = tmp_path / name
        place.touch() if name == "file" else place.symlink_to("nowhere")
        tokens = stage1_settings["tokens"] | {"folder": place}
        with pytest.raises(CacheError, match=r"another tokens\.folder"):
            extract.run(PretrainConfig(**stage1_settings | {"tokens": tokens}), lambda estimate: None)
        assert ends("extract", "--verify", "pretrain/toyworld", f"tokens.folder={place}") == 1
        assert "nothing was verified" in capsys.readouterr().err


def test_sizes_are_read_easily() -> None:
    assert [readable_bytes(n) for n in (0, 999, 1000, 7_549_747_200)] == ["0 B", "999 B", "1 kB", "7.55 GB"]


def ends(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)
