"""Gazelle against an eye tracker: the right point for each frame, a prior from other videos, all in the record."""

import csv
import json
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
from hwm.errors import DataError
from hwm.evaluation.gaze_metrics import gaussian_maps
from hwm.pipelines import gaze_score


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
    for take in {Path(row["video"]).parts[-3] for row in rows}:
        truth = load_truth(toy_world, take)
        mine = [row for row in rows if Path(row["video"]).parts[-3] == take]
        frame = np.searchsorted(truth.times_sec, np.array([float(row["time_sec"]) for row in mine]) + 1e-6) - 1
        far = truth.gaze_ego[frame] - np.array([[float(row["x"]), float(row["y"])] for row in mine])
        assert np.median(np.hypot(*far.T)) < 0.01
        assert np.mean(np.hypot(*far.T) < 0.03) > 0.8  # apart from frames within a turn of the head


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
