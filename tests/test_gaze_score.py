"""Gazelle against an eye tracker: the right point for each frame, a prior from other videos, all in the record."""

import csv
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hwm.config import GazeScoreConfig
from hwm.data.clips import find_videos
from hwm.data.gaze_files import GazeFiles
from hwm.data.toyworld import load_truth
from hwm.data.video import VideoInfo, probe_video, write_video
from hwm.engine.progress import Progress
from hwm.engine.runtime import EXIT_STOPPED
from hwm.errors import DataError
from hwm.evaluation.gaze_metrics import gaussian_maps
from hwm.models.gazelle import GazeLLE, GazeOutput
from hwm.pipelines import gaze_score
from hwm.weights.load import load_gazelle


@pytest.fixture
def score_settings(toy_world: Path, tiny_weights: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "score",
        "folder": tmp_path / "runs",
        "gazelle": {"weights": str(tiny_weights / "gazelle"), "resolution": 56},
        "videos": [str(toy_world / "lists" / "val_ego.txt")],
        "prior_videos": [str(toy_world / "lists" / "train_ego.txt")],
        "gaze_files": {"folder": toy_world},
        "fps": 2,
    }


def test_every_frame_with_gaze_is_scored_against_its_own_point(score_settings: dict[str, Any], toy_world: Path) -> None:
    result = gaze_score.run(GazeScoreConfig(**score_settings))
    record = json.loads((result.folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert set(record["weights"]) == {"gazelle"}
    assert record["coverage"]["scored videos"]["used"] == 2
    assert record["measured_gaze"]["scored"]["steps_known"] == result.num_frames > 40
    assert set(result.scores) == {"gazelle", "centre prior"}
    # Random weights know nothing, the mean map knows something, and the difference says so.
    assert result.scores["centre prior"]["auc"] > 0.7 > result.scores["gazelle"]["auc"]
    assert result.difference["95 % low"]["nss"] <= result.difference["gazelle − prior"]["nss"] < 0
    with (result.folder / "frames.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result.num_frames
    assert np.mean([float(row["gazelle_auc"]) for row in rows]) == pytest.approx(
        result.scores["gazelle"]["auc"], abs=1e-5
    )
    # Beside it stands a prior that has never seen these videos.
    config, row = GazeScoreConfig(**score_settings), rows[len(rows) // 2]
    others = find_videos(config.prior_videos, config.glob, 0.0).videos
    size = load_gazelle(score_settings["gazelle"]["weights"]).spec.out_size
    prior = gaze_score.prior_map(others, GazeFiles(toy_world, config.gaze_files), config, size).float()
    point = torch.tensor([[float(row["x"]), float(row["y"])]])
    for metric, value in gaze_score.metrics_of(prior[None], point, config.sigma).items():
        assert float(row[f"centre_prior_{metric}"]) == pytest.approx(value.item(), rel=1e-3, abs=1e-4)
    for take in {Path(row["video"]).parts[-3] for row in rows}:
        truth = load_truth(toy_world, take)
        mine = [row for row in rows if Path(row["video"]).parts[-3] == take]
        frame = np.searchsorted(truth.times_sec, np.array([float(row["time_sec"]) for row in mine]) + 1e-6) - 1
        far = truth.gaze_ego[frame] - np.array([[float(row["x"]), float(row["y"])] for row in mine])
        assert np.median(np.hypot(*far.T)) < 0.01
        assert np.mean(np.hypot(*far.T) < 0.03) > 0.8  # apart from frames within a turn of the head


def test_a_frame_whose_gaze_is_unknown_moves_no_other_from_its_point(
    score_settings: dict[str, Any], toy_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A square goes across the picture, the map is the picture, and gaze follows the square."""
    frames = np.zeros((32, 64, 64, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[24:32, index : index + 8] = 255
    write_video(tmp_path / "v.mkv", frames, 4.0, codec="ffv1", pix_fmt="bgr0")

    def points(video: VideoInfo, files: GazeFiles, times_sec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = (np.round(times_sec * 4) + 4) / 64
        return np.stack([x, np.full_like(x, 28 / 64)], axis=1), (times_sec < 1) | (times_sec > 3)

    def seen(self: GazeLLE, images: torch.Tensor) -> GazeOutput:
        light = images.mean(dim=1)
        return GazeOutput(light, light - light.amin(), light, None, None, torch.arange(len(light)))

    monkeypatch.setattr(gaze_score, "_points", points)
    monkeypatch.setattr(GazeFiles, "track", lambda self, video: object())
    monkeypatch.setattr(GazeLLE, "forward", seen)
    config = GazeScoreConfig(**score_settings)
    gazelle, files = load_gazelle(score_settings["gazelle"]["weights"]), GazeFiles(toy_world, config.gaze_files)
    prior, cpu = torch.ones(gazelle.spec.out_size), torch.device("cpu")
    told = list(gaze_score.score_video(probe_video(tmp_path / "v.mkv"), files, gazelle, prior, config, cpu))
    assert [frame.time_sec for frame in told] == [0.0, 0.5, *np.arange(3.5, 8, 0.5)]
    for frame in told:
        assert frame.x == pytest.approx((frame.time_sec * 4 + 4) / 64)
        assert frame.scores["gazelle"]["l2"] < 0.1
        assert frame.scores["gazelle"]["auc"] > 0.95


def test_the_prior_is_the_mean_map_of_the_other_videos(score_settings: dict[str, Any], toy_world: Path) -> None:
    swapped = GazeScoreConfig(
        **score_settings
        | {"name": "swapped", "videos": score_settings["prior_videos"], "prior_videos": score_settings["videos"]}
    )
    with (gaze_score.run(swapped).folder / "frames.csv").open(encoding="utf-8") as file:
        points = torch.tensor([[float(row["x"]), float(row["y"])] for row in csv.DictReader(file)])
    config = GazeScoreConfig(**score_settings)
    videos = find_videos(config.prior_videos, config.glob, 0.0).videos
    prior = gaze_score.prior_map(videos, GazeFiles(toy_world, config.gaze_files), config, (16, 16))
    torch.testing.assert_close(prior.float(), gaussian_maps(points, (16, 16), config.sigma).mean(0), atol=1e-5, rtol=0)


def test_what_cannot_be_scored_is_counted_or_refused(
    score_settings: dict[str, Any], toy_world: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="videos and prior_videos share 6 videos"):
        gaze_score.run(GazeScoreConfig(**score_settings | {"videos": score_settings["prior_videos"]}))
    linked = tmp_path / "linked.mp4"
    linked.symlink_to(find_videos(score_settings["prior_videos"], "**/*", 0.0).videos[0].path.resolve())
    with pytest.raises(DataError, match="videos and prior_videos share 1 video"):
        gaze_score.run(GazeScoreConfig(**score_settings | {"videos": [str(linked)]}))
    with pytest.raises(ValidationError, match=r"gaze_files\.folder"):
        GazeScoreConfig(**score_settings | {"gaze_files": {}})
    lists = toy_world / "lists"
    first, second = ((lists / name).resolve() for name in (lists / "val_ego.txt").read_text().split())
    whole = first.read_bytes()
    broken = tmp_path / "takes" / first.parts[-3] / "frame_aligned_videos" / first.name
    broken.parent.mkdir(parents=True)
    broken.write_bytes(whole[: len(whole) // 2])
    result = gaze_score.run(GazeScoreConfig(**score_settings | {"videos": [str(broken), str(second)]}))
    coverage = json.loads((result.folder / "run.json").read_text())["coverage"]["scored videos"]
    assert (coverage["expected"], coverage["used"]) == (2, 1)
    assert set(result.difference) == {"gazelle − prior"}  # one video has no interval


@pytest.mark.parametrize("moment", ["a search", "a frame"])
def test_sigterm_ends_it_where_it_is(
    moment: str, score_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    score, shown, seen = gaze_score.score_video, Progress.set, list[str]()

    def asked_at_a_frame(*given: Any) -> Iterator[gaze_score.ScoredFrame]:
        for frame in score(*given):
            seen.append("a frame")
            os.kill(os.getpid(), signal.SIGTERM)
            yield frame

    def asked_at_a_search(self: Progress, done: int, **values: float) -> None:
        shown(self, done, **values)
        seen.append("a search")
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        if moment == "a frame":
            patched.setattr(gaze_score, "score_video", asked_at_a_frame)
        else:
            patched.setattr(Progress, "set", asked_at_a_search)
        with pytest.raises(SystemExit) as ended:
            gaze_score.run(GazeScoreConfig(**score_settings))
    assert ended.value.code == EXIT_STOPPED
    assert seen == [moment]
    folder = score_settings["folder"] / "score"
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    assert not (folder / "frames.csv").exists()


def test_nothing_is_kept_of_a_video_that_breaks_off_while_it_is_scored(
    score_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    score, told = gaze_score.score_video, list[str]()

    def torn(video: VideoInfo, *given: Any) -> Iterator[gaze_score.ScoredFrame]:
        frames = score(video, *given)
        told.append(str(video.path))
        yield next(frames)
        if len(told) == 1:
            raise DataError("a frame is missing")
        yield from frames

    monkeypatch.setattr(gaze_score, "score_video", torn)
    result = gaze_score.run(GazeScoreConfig(**score_settings))
    coverage = json.loads((result.folder / "run.json").read_text())["coverage"]["scored videos"]
    assert (coverage["expected"], coverage["used"]) == (2, 1)
    assert coverage["items"] == [{"item": told[0], "reason": "cannot be decoded whole: a frame is missing"}]
    with (result.folder / "frames.csv").open(encoding="utf-8") as file:
        assert {row["video"] for row in csv.DictReader(file)} == {told[1]}
