"""`hwm doctor`: it ends, whatever is broken; it says so; and its block for an issue holds nothing private."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hwm
from hwm import cli
from hwm.config import (
    AdaptConfig,
    AdaptGazeConfig,
    AnticipateConfig,
    CompareConfig,
    GazeScoreConfig,
    PretrainConfig,
)
from hwm.engine import asking
from hwm.engine.asking import ask
from hwm.engine.requirements import needed_inputs
from hwm.pipelines import doctor
from hwm.pipelines import issue_block as issue_block_module
from hwm.pipelines.doctor import Diagnosis, run
from hwm.pipelines.issue_block import issue_block, without_private
from hwm.recipes import load_any, shipped_recipes

SOURCE = str(Path(hwm.__file__).parents[1])


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules come before the installed ones in every child."""
    monkeypatch.setattr(asking, "__file__", str(Path(hwm.__file__).parent / "engine" / "asking.py"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "planted"))
    (tmp_path / "planted").mkdir()
    return tmp_path / "planted"


def test_the_core_works_here_and_the_answers_are_facts() -> None:
    torch_says = ask("torch", timeout_sec=180)
    assert isinstance(torch_says, dict)
    import torch

    assert torch_says["version"] == torch.__version__
    assert torch_says["devices"][0]["kind"] == "cpu"
    assert torch_says["devices"][0]["gflops"] > 0
    assert ("gflops_bf16" in torch_says["devices"][0]) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    codecs = ask("decoders")
    assert isinstance(codecs, dict)
    assert codecs["codecs"]["h264"] is True


def test_packaged_weights_that_changed_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    subprocess.run(["cp", "-r", str(Path(hwm.__file__).parent), f"{site}/"] if site.mkdir() is None else [], check=True)
    tensors = site / "hwm" / "weights" / "mini" / "gazelle" / "model.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", asking.MODULE, "mini"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "WeightsError" in done.stderr
    assert "gazelle" in done.stderr


def test_a_broken_optional_package_is_named_and_harms_nothing(planted: Path) -> None:
    (planted / "transformers.py").write_text("raise ImportError('libtorch_cuda.so: cannot open shared object file')")
    said = ask("packages", ["transformers"])
    assert said == "ImportError: libtorch_cuda.so: cannot open shared object file"
    findings = doctor._optional({"transformers": said})
    (broken,) = [finding for finding in findings if finding.state == "broken"]
    assert broken.name == "optional: transformers"
    assert broken.fix == "pip install --force-reinstall transformers"
    assert Diagnosis(tuple(findings)).works


def test_a_package_that_hangs_or_crashes_costs_its_time_limit_and_no_more(planted: Path) -> None:
    (planted / "hangs.py").write_text("import time; time.sleep(600)")
    (planted / "crashes.py").write_text("import os; os.kill(os.getpid(), 11)")
    began = time.monotonic()
    assert ask("packages", ["hangs"], timeout_sec=3.0) == "no answer within 3 s"
    assert time.monotonic() - began < 20
    assert ask("packages", ["crashes"]) == "it ended with code -11"


def test_a_broken_core_is_not_called_working() -> None:
    whole = {"core": {"imported": []}, "mini": {"encoder": "a" * 64, "gazelle": "b" * 64}}
    assert Diagnosis(tuple(doctor._core(whole))).works
    for name in whole:
        assert not Diagnosis(tuple(doctor._core(whole | {name: "no answer within 60 s"}))).works
        (late,) = (f for f in doctor._core(whole | {name: "no answer within 60 s"}) if f.fix is not None)
        assert (late.fix or "").startswith(
            "ask again when machine and disk are less busy; if it stays so: in the checkout"
        )
        (torn,) = (f for f in doctor._core(whole | {name: "ImportError: x"}) if f.fix is not None)
        assert (torn.fix or "").startswith("in the checkout: pip install")
    assert not Diagnosis(tuple(doctor._torch("OSError: libc10.so", {"version": None}))).works
    assert not Diagnosis(tuple(doctor._decoders("ImportError: av"))).works
    codecs = {"h264": True, "hevc": True, "vp9": True, "av1": False}
    assert Diagnosis(tuple(doctor._decoders({"version": "1", "ffmpeg": "8", "codecs": codecs}))).works
    no_h264 = {"version": "1", "ffmpeg": "8", "codecs": codecs | {"h264": False}}
    assert not Diagnosis(tuple(doctor._decoders(no_h264))).works


def test_a_driver_without_a_cuda_build_of_torch_is_told() -> None:
    cpu = {
        "version": "2",
        "cuda": None,
        "instructions": "AVX2",
        "threads": 2,
        "devices": [{"kind": "cpu", "gflops": 1}],
    }
    driver = doctor._torch(cpu, {"version": "580.1"})[-1]
    assert (driver.name, driver.state) == ("NVIDIA driver", "missing")
    gpu = {"kind": "cuda:0", "name": "H100", "memory_gib": 79.6, "bf16": True, "gflops": 3, "gflops_bf16": 5}
    seen = doctor._torch(cpu | {"cuda": "12.8", "devices": [*cpu["devices"], gpu]}, {"version": "580.1"})
    assert [finding.state for finding in seen] == ["ok"] * 4
    assert seen[1].text == "GFLOP/s of 1024 × 1024: float32 1"
    assert seen[2].text == "H100, 79.6 GiB, bf16 yes, GFLOP/s of 1024 × 1024: float32 3, bfloat16 5"


def test_the_block_holds_nothing_private_and_the_recipe_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "people" / "marie-curie"
    (home / ".cache" / "hwm").mkdir(parents=True)
    (home / ".cache" / "hwm" / "secret-weights.pt").write_bytes(b"x")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HWM_HOME", str(home / ".cache" / "hwm"))
    monkeypatch.setenv("WANDB_API_KEY", "k3y-0f-nobody")
    answers = {
        "torch": f"OSError: {home}/.venv/lib/libc10.so: cannot open; see /mnt/lab/marie-curie/notes/x.txt",
        "kept": ask("kept", str(home / ".cache" / "hwm")),
    }
    monkeypatch.setattr(
        doctor, "ask",
        lambda question, argument=None, timeout_sec=1.0: ask(question, argument)
        if question == "folders"
        else answers.get(question, f"{home} is unwell"),
    )  # fmt: skip
    data = {"train": [str(home / "videos")], "val": [str(home)]}
    diagnosis = run(PretrainConfig.model_validate({"name": "x", "folder": home / "runs", "data": data, "gaze": "none"}))
    inputs = {f.name: (f.state, f.text) for f in diagnosis.findings if f.name.startswith("recipe")}
    assert inputs["recipe: data.train"] == ("missing", f"{home / 'videos'} is not there")
    assert inputs["recipe: data.val"] == ("ok", str(home))
    assert not diagnosis.works
    assert any("secret-weights.pt" in finding.text for finding in diagnosis.findings)
    block = "\n".join(issue_block(diagnosis))
    for private in (str(home), "marie-curie", "secret-weights", "k3y-0f-nobody", str(tmp_path), "/mnt/lab"):
        assert private not in block, private
    assert "~/.venv/lib/libc10.so" in block
    assert "…/x.txt" in block
    assert "recipe: data.train" in block
    assert "https://pytorch.org/x" in without_private("see https://pytorch.org/x")


def test_one_changed_file_is_no_plural(monkeypatch: pytest.MonkeyPatch) -> None:
    git = {"commit": "a" * 40, "changed_files": 1}
    monkeypatch.setattr(issue_block_module, "provenance", lambda: {"git": git})
    assert issue_block(Diagnosis(()))[1].endswith(f"{'a' * 40}, 1 changed file")


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_known_for_what_it_is(name: str) -> None:
    kinds = {
        "adapt": AdaptConfig, "adapt-gaze": AdaptGazeConfig, "anticipate": AnticipateConfig, "compare": CompareConfig,
        "gaze-score": GazeScoreConfig, "pretrain": PretrainConfig,
    }  # fmt: skip
    if (verb := name.partition("/")[0]) != "demo":
        config = load_any(cli.RECIPES, name)
        assert type(config) is kinds[verb]
        assert all(isinstance(item.path, Path) for item in needed_inputs(config))


def test_a_comparison_is_looked_at_with_both_its_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        doctor, "ask",
        lambda question, argument=None, timeout_sec=1.0: ask(question, argument) if question == "folders" else "no",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    looked_at = {f.name for f in run(load_any(cli.RECIPES, "compare/quick")).findings if f.name.startswith("recipe")}
    for setting in ("pretrain.data.train", "anticipate.annotations.val", "ceilings"):
        assert f"recipe: {setting}" in looked_at


def test_the_command_ends_with_the_block_and_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys, hwm.cli\n"
        "try: hwm.cli.main(['doctor'])\n"
        "finally: assert 'torch' not in sys.modules\n"
    )  # fmt: skip
    environment = os.environ | {"PYTHONPATH": SOURCE, "HWM_HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("```")
    block = done.stdout.split("```text")[1]
    assert "all that is needed works" in block
    assert str(tmp_path) not in block
    assert json.dumps("packaged weights")[1:-1] in block
