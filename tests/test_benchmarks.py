"""The benchmarks run, report what they promise, and refuse to time two different computations. No time is tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import single_frames
from benchmarks.context import Context
from benchmarks.encoder import limit, limit_note
from benchmarks.measure import Figure, NotEqualError, Skipped, Spread, check_equal, ratio
from benchmarks.predictor import cached_rollout, dense_forward, random_stack, random_tokens
from benchmarks.suite import BENCHMARKS
from benchmarks.table import BEGIN, END, into_document, markdown

from hwm.errors import ConfigError
from hwm.models.vjepa2 import TubeletEmbedding

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_quick_suite_runs_and_writes_its_table(tmp_path: Path) -> None:
    document, record = tmp_path / "speed.md", tmp_path / "speed.json"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "2", "--threads", "1"]
    command += ["--json", str(record), "--into", str(document), "--remark", "a test"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(record.read_text())["outcomes"]
    names = [outcome["name"] for outcome in outcomes]
    assert len(names) == len(set(names))
    firsts = {"encoder", "single-frames", "gazelle", "rollout", "teacher-forced", "epoch", "sweep", "random-access"}
    assert firsts | {"sequential", "memory", "growth", "gpu"} == {name.split("/")[0] for name in names}
    for outcome in outcomes:
        if "skipped" in outcome:
            assert outcome["skipped"]
            continue
        value = outcome["value"]
        assert 0 < value["low"] <= value["median"] <= value["high"]
        assert (outcome["met"] is None) == (outcome["bar"] is None)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert all(f"`{name}`" in text for name in names)


def context(folder: Path) -> Context:
    return Context(quick=True, rounds=2, scratch=folder)


def test_a_planted_difference_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [outcome.name for outcome in single_frames.run(context(tmp_path))] == ["single-frames/doubled"]
    whole = TubeletEmbedding.embed_repeated
    monkeypatch.setattr(TubeletEmbedding, "embed_repeated", lambda self, frames: whole(self, frames) * (1 + 1e-4))
    with pytest.raises(NotEqualError, match="single frames: results differ"):
        list(single_frames.run(context(tmp_path)))


def test_dense_and_cached_predictors_are_one_computation(tmp_path: Path) -> None:
    stack, tokens = random_stack(context(tmp_path)), random_tokens(context(tmp_path), 4)
    with torch.inference_mode():
        torch.testing.assert_close(dense_forward(stack, tokens), stack(tokens), atol=1e-5, rtol=1e-4)
        first = dense_forward(stack, tokens)[:, -1]
        torch.testing.assert_close(cached_rollout(stack, tokens, 2)[:, 0], first, atol=1e-5, rtol=1e-4)


def test_equality_is_relative_and_refuses_what_is_not_a_number() -> None:
    ones = torch.ones(3)
    assert check_equal("x", ones * (1 + 1e-6), ones, 1e-5) == "1e-06 ≤ 1e-05"
    for wrong in (ones * 1.001, ones * torch.nan, torch.ones(4)):
        with pytest.raises(NotEqualError):
            check_equal("x", wrong, ones, 1e-5)


def test_ratio_is_taken_round_by_round() -> None:
    assert ratio({"a": [2.0, 4.0, 9.0], "b": [1.0, 4.0, 3.0]}, "a", "b") == Spread(2.0, 1.5, 2.5)


def test_a_missed_bar_carries_its_measured_limit() -> None:
    seconds = {"peer": [3.0, 6.0], "ours": [2.0, 4.0], "machine": [1.5, 3.0]}  # 1.5 times the peer, at most 2 times
    assert limit(seconds, "peer") == {"limit": 2.0}
    assert limit_note(seconds, "peer", 1.5) == ""
    assert limit_note(seconds, "peer", 1.6) == "limit 2.00 × with nothing but the matrix products left"
    assert limit_note(seconds, "peer", 2.1).endswith("so the bar is out of reach here")
    more = seconds | {"softmax": [sec / 4 for sec in seconds["machine"]]}
    assert limit(more, "peer") == {"limit": 2.0, "limit_with_softmax": 1.6}
    assert limit_note(more, "peer", 1.6).endswith("left, 1.60 × with PyTorch's softmax besides")
    assert limit_note(more, "peer", 1.7).endswith("softmax besides, so the bar is out of reach here")


def test_a_bar_may_be_an_upper_one() -> None:
    figure = Figure("x", "y", Spread.of([2.0]), bar=3.0)
    assert figure.met is False
    assert Figure("x", "y", Spread.of([2.0]), bar=3.0, at_most=True).met is True
    assert Figure("x", "y", Spread.of([2.0])).met is None
    table = markdown({"cpu": "z"}, [figure, Skipped("s", "t", "no peer")])
    assert "| `x` | y | 2 × (2 – 2) | ≥ 3 × | **no** |" in table
    assert "| `s` | t | not measured: no peer |" in table


def test_a_document_without_a_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="no place for the table"):
        into_document("nothing here", "table")


def test_every_benchmark_has_a_name() -> None:
    assert len(BENCHMARKS) == 10
