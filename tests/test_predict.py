"""One video, one time: the answer is the one that the run gave of the same segment, and nothing later is seen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hwm.cli import main
from hwm.config import AnticipateConfig, PretrainConfig
from hwm.data.protocol import Observation, observe_before
from hwm.data.segments import ClassTable
from hwm.data.video import VideoInfo, num_grid_steps
from hwm.engine.runlog import read_facts
from hwm.errors import ConfigError, DataError, RunError
from hwm.pipelines import anticipate, predict, pretrain
from hwm.recipes import dump_config
from hwm.tokens import world_foresight

NoisyCopy = Callable[[Path, Path, float, int | None], None]


def test_a_video_is_answered_as_the_run_answered_it(
    stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], noisy_copy: NoisyCopy, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stage1_settings["optim"]["num_steps"] = 2
    stage1 = pretrain.run(PretrainConfig(**stage1_settings)).folder
    result = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=stage1))
    tau, classes = 1.0, result.classes
    for index in (0, len(result.samples) // 2, len(result.samples) - 1):
        segment = result.samples[index].segment
        at = segment.start_sec - tau
        said = predict.run(result.folder, segment.video.path, at)
        guessed = {guess.id: guess.probability for guess in said.tasks["step"]}
        expected = result.logits_SC[index].softmax(0).tolist()
        assert [guessed[class_id] for class_id in classes.ids] == pytest.approx(expected, abs=2e-3)
        assert said.last_seen_sec == result.samples[index].observation.last_time_sec <= at
        assert said.padded_steps == result.samples[index].observation.num_padded
        assert said.gaze_known_steps is None
        chances = [guess.probability for guess in said.tasks["step"]]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) == pytest.approx(1)

    # Nothing after the time is seen, and what is before it is.
    alike, late, early = (tmp_path / f"{name}.mkv" for name in ("alike", "late", "early"))
    noisy_copy(segment.video.path, alike, at, None)
    noisy_copy(segment.video.path, late, at, 1)
    noisy_copy(segment.video.path, early, at - 1.5, 1)
    answers = [predict.run(result.folder, path, at).tasks for path in (alike, late, early)]
    assert answers[0] == answers[1] != answers[2]

    written = (result.folder, tmp_path / "tokens")
    before = {path: path.stat().st_mtime_ns for folder in written for path in folder.rglob("*")}
    capsys.readouterr()
    asked = ["predict", str(result.folder), str(alike), "--at", str(at)]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*asked, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["tasks"]["step"][0] == answers[0]["step"][0]._asdict()
    assert said["starts_at_sec"] == at + tau
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*asked, "--top", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].endswith(answers[0]["step"][0].name)
    assert {path: path.stat().st_mtime_ns for folder in written for path in folder.rglob("*")} == before

    for wrong in (-0.1, 1e6, float("nan")):
        with pytest.raises(DataError, match="has nothing to see"):
            predict.run(result.folder, alike, wrong)
    with pytest.raises(RunError, match="no finished run of stage 2"):
        predict.run(stage1, alike, at)
    with monkeypatch.context() as trained_on:
        trained_on.setattr(world_foresight, "predictor_hash", lambda predictor: "of another training")
        with pytest.raises(ConfigError, match="trained on another frozen_sha256"):
            predict.run(result.folder, alike, at)
    facts = read_facts(result.folder)
    (result.folder / "run.json").write_text(json.dumps(facts | {"gaze_control": "shuffled"}))
    with pytest.raises(ConfigError, match="is a control"):
        predict.run(result.folder, alike, at)


@pytest.mark.parametrize(("tau", "beyond"), [(1.0, 0.0), (0.625, 0.0), (1.0, 1.5)])
def test_a_time_is_asked_about_as_a_segment_that_starts_a_horizon_later(
    tau: float, beyond: float, stage2_settings: dict[str, Any]
) -> None:
    stage2_settings["protocol"] |= {"horizon_sec": tau, "beyond_start_sec": beyond}
    config, fps = AnticipateConfig(**stage2_settings), 4.0
    protocol = config.protocol
    info = VideoInfo(Path("v.mp4"), 30.0, 64, 64, 8.0, "h264", 0, 1)
    for at in (0.0, 0.375, 2.0, 7.125, 7.375):
        seen = observe_before(at + tau, at + 9, tau, fps, protocol.num_steps, protocol.id, beyond_sec=beyond)
        assert isinstance(seen, Observation)
        asked = predict._request(info, at, config, fps)
        assert asked.clip.first_step == seen.first_step
        assert (asked.num_future, asked.ahead_sec) == (seen.num_future, tau + beyond)
    # At the very end the last step that has a frame is seen, and the future is as long as it is from there.
    end = predict._request(info, info.duration_sec, config, fps)
    assert end.clip.first_step + protocol.num_steps == num_grid_steps(info.duration_sec, fps)
    assert end.num_future == round((tau + beyond) * fps + 0.25) + 1


def test_runs_that_cannot_say_what_comes_next_are_refused(stage2_settings: dict[str, Any], tmp_path: Path) -> None:
    finished = {"verb": "anticipate", "status": "finished"}
    for number, (facts, protocol, error, said) in enumerate((
        ({**finished, "status": "stopped"}, "start-minus-tau/v1", RunError, "no finished run of stage 2"),
        (finished | {"gaze_point_control": "mean"}, "start-minus-tau/v1", ConfigError, "is a control"),
        (finished, "legacy-end-minus-tau", ConfigError, "show the step itself"),
    )):  # fmt: skip
        stage2_settings["protocol"]["id"] = protocol
        folder = tmp_path / str(number)
        folder.mkdir()
        dump_config(AnticipateConfig(**stage2_settings), folder / "config.yaml")
        (folder / "run.json").write_text(json.dumps(facts))
        with pytest.raises(error, match=said):
            predict.run(folder, tmp_path / "v.mp4", 1.0)


def test_classes_that_were_asked_apart_have_chances_of_their_own(stage2_settings: dict[str, Any]) -> None:
    stage2_settings["probe"]["loss"] = "focal"
    classes = ClassTable((7, 8, 9), ("a", "b", "c"))
    told = predict._guesses(torch.tensor([0.0, 2.0, -1.0]), classes, AnticipateConfig(**stage2_settings))
    assert [(guess.id, guess.name) for guess in told] == [(8, "b"), (7, "a"), (9, "c")]
    assert [guess.probability for guess in told] == pytest.approx([0.8808, 0.5, 0.2689], abs=1e-4)


@pytest.mark.parametrize("reader", ["world model", "probe"])
def test_the_answer_says_how_much_measured_gaze_it_had(
    reader: str, stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], toy_world: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stage1_settings["data"] |= {part: [str(toy_world / "lists" / f"{part}_ego.txt")] for part in ("train", "val")}
    stage1_settings["optim"]["num_steps"] = 1
    stage1_settings |= {"gaze": "measured" if reader == "world model" else "none", "gaze_files": {"folder": toy_world}}
    stage1 = pretrain.run(PretrainConfig(**stage1_settings)).folder
    stage2_settings["annotations"]["view"] = "ego"
    stage2_settings["probe"]["gaze_point"] = "measured" if reader == "probe" else "none"
    result = anticipate.run(AnticipateConfig(**stage2_settings, checkpoint=stage1))
    video = result.samples[0].segment.video.path
    said = predict.run(result.folder, video, 4.0)
    assert said.warnings == ()
    assert said.observed_steps == 4
    assert said.gaze_known_steps is not None
    assert 0 < said.gaze_known_steps <= 4
    early = predict.run(result.folder, video, 0.3)
    assert early.gaze_known_steps is not None
    assert early.gaze_known_steps <= early.observed_steps - early.padded_steps < 4

    copy = tmp_path / "elsewhere.mp4"
    copy.write_bytes(video.read_bytes())
    capsys.readouterr()
    asked = ["predict", str(result.folder), str(copy), "--at", "4"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*asked, "--json"])
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["gaze_known_steps"] == 0
    assert len(told["warnings"]) == 1
    assert "trained with measured gaze" in err
    assert f"{copy} (no gaze file)" in err
    with pytest.raises(SystemExit, match=r"^0$"):
        main(asked)
    assert "measured gaze is known in 0 of the 4 observed steps" in capsys.readouterr().out
