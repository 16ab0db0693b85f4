"""`hwm doctor [CONFIG]`: what is here, what is missing, and the command that mends it.

Versions, devices, decoders, weights, disk and the paths of a recipe -> findings, and a block for an issue that names no
private path. Everything that may hang or crash is asked in a child with a time limit; no network is used.
"""

import os
import platform
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import hwm
from hwm.config import RunConfig
from hwm.engine.asking import NO_ANSWER, ask
from hwm.engine.home import home
from hwm.engine.progress import Progress
from hwm.engine.requirements import Needed, how_to_get, needed_inputs
from hwm.terminal import counted, readable_bytes

State = Literal["ok", "missing", "broken"]
Answer = dict[str, Any] | str

LITTLE_DISK_BYTES = 5 * 2**30
"""Less free than this is told: one run's checkpoints and tokens can take as much."""

_SHOWN = ("torch", "numpy", "av", "lightning-fabric", "safetensors", "pydantic", "scipy", "transformers", "torchcodec")
_CORE = ("hwm.pipelines.pretrain", "hwm.pipelines.anticipate")
_OPTIONAL = {
    "tensorboard": ("torch.utils.tensorboard", "pip install 'tensorboard>=2.18'"),
    "wandb": ("wandb", "pip install 'wandb>=0.19'"),
    "transformers": ("transformers", "pip install 'transformers>=4.53'"),
    "torchcodec": ("torchcodec", "pip install torchcodec"),
}
"""Packages that nothing needs: module, and how to get it."""
_REINSTALL = "pip install --force-reinstall {}"


class Finding(NamedTuple):
    """One thing that was looked at."""

    name: str
    state: State
    text: str
    fix: str | None = None
    is_needed: bool = False
    """Nothing works without it."""
    public: str | None = None
    """What the block for an issue says in place of `text`, where that names paths or files of this machine."""


class Diagnosis(NamedTuple):
    """All findings, in the order in which they are shown."""

    findings: tuple[Finding, ...]

    @property
    def works(self) -> bool:
        """Nothing that is needed is missing or broken."""
        return all(finding.state == "ok" for finding in self.findings if finding.is_needed)


def run(config: RunConfig | None = None) -> Diagnosis:
    """Look at everything.

    Args:
        config: a recipe whose files and folders are looked at as well.
    """
    needed = list(needed_inputs(config)) if config is not None else []
    run_folder = config.folder if config is not None else Path("runs")
    places = [str(home()), str(run_folder), *(str(item.path) for item in needed)]
    questions: dict[str, tuple[str, object]] = {
        "decoders": ("decoders", None), "mini": ("mini", None), "core": ("packages", list(_CORE)),
        "driver": ("driver", None), "folders": ("folders", places), "kept": ("kept", str(home())),
    }  # fmt: skip
    questions |= {name: ("packages", [module]) for name, (module, _) in _OPTIONAL.items() if _version(name)}
    with Progress("questions", total=len(questions) + 1) as bar, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        answers: dict[str, Answer] = {}
        for name, answer in zip(questions, pool.map(lambda question: ask(*question), questions.values()), strict=True):
            answers[name] = answer
            bar.advance()
        answers["torch"] = ask("torch", timeout_sec=180.0)  # alone, since it measures speed
        bar.advance()
    return Diagnosis(
        (
            _versions(),
            _machine(),
            *_torch(answers["torch"], answers["driver"]),
            *_core(answers),
            *_decoders(answers["decoders"]),
            *_optional(answers),
            *_kept(answers["kept"]),
            *_disks(answers["folders"], run_folder),
            *(_input(item, answers["folders"]) for item in needed),
        )
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> Finding:
    found = {"hwm": hwm.__version__, "python": platform.python_version()} | {
        name: number for name in _SHOWN if (number := _version(name)) is not None
    }
    return Finding("versions", "ok", "  ".join(f"{name} {number}" for name, number in found.items()))


def _machine() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = counted(usable or 1, "usable core")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Finding("machine", "ok", f"{platform.platform()}, {cores}, {memory / 2**30:.3g} GiB memory")


def _torch(answer: Answer, driver: Answer) -> list[Finding]:
    if isinstance(answer, str):
        return [Finding("torch", "broken", answer, _cure(answer, _REINSTALL.format("torch")), is_needed=True)]
    built = f"CUDA {answer['cuda']}" if answer["cuda"] else "no CUDA"
    text = f"{answer['version']} ({built}), {answer['instructions']}, {counted(answer['threads'], 'thread')}"
    findings = [Finding("torch", "ok", text, is_needed=True)]
    findings += [_device(device) for device in answer["devices"]]
    number = None if isinstance(driver, str) else driver["version"]
    if number is not None:
        sees_gpu = any(device["kind"].startswith("cuda") for device in answer["devices"])
        fix = None if sees_gpu else "install a CUDA build of torch that fits the driver: https://pytorch.org"
        text = number if sees_gpu else f"{number}, and torch sees no CUDA device"
        findings.append(Finding("NVIDIA driver", "ok" if sees_gpu else "missing", text, fix))
    return findings


def _device(device: Mapping[str, Any]) -> Finding:
    parts = [str(device[key]) for key in ("name",) if key in device]
    parts += [f"{device['memory_gib']} GiB, bf16 {'yes' if device['bf16'] else 'no'}"] if "memory_gib" in device else []
    rates = [f"float32 {device['gflops']:g}"]
    rates += [f"bfloat16 {device['gflops_bf16']:g}"] if "gflops_bf16" in device else []
    parts.append(f"GFLOP/s of 1024 × 1024: {', '.join(rates)}")
    return Finding(f"device {device['kind']}", "ok", ", ".join(parts))


def _cure(answer: str, fix: str) -> str:
    """What is slow need not be broken: a busy machine is asked again first."""
    return (
        f"ask again when machine and disk are less busy; if it stays so: {fix}" if answer.startswith(NO_ANSWER) else fix
    )


def _core(answers: Mapping[str, Answer]) -> list[Finding]:
    core, mini = answers["core"], answers["mini"]
    fix = "in the checkout: pip install --force-reinstall ."
    if isinstance(core, str):
        findings = [Finding("hwm's own modules", "broken", core, _cure(core, fix), is_needed=True)]
    else:
        findings = [Finding("hwm's own modules", "ok", "can be imported", is_needed=True)]
    if isinstance(mini, str):
        findings.append(Finding("packaged weights", "broken", mini, _cure(mini, fix), is_needed=True))
    else:
        text = ", ".join(f"{name} sha256 {digest[:12]}…" for name, digest in mini.items()) + ", as recorded"
        findings.append(Finding("packaged weights", "ok", text, is_needed=True))
    return findings


def _decoders(answer: Answer) -> list[Finding]:
    fix = _REINSTALL.format("av")
    if isinstance(answer, str):
        return [Finding("decoders", "broken", answer, _cure(answer, fix), is_needed=True)]
    codecs: Mapping[str, bool] = answer["codecs"]
    absent = [name for name, there in codecs.items() if not there]
    text = f"PyAV {answer['version']} with FFmpeg {answer['ffmpeg']}: "
    text += ", ".join(name for name, there in codecs.items() if there)
    text += f"; not {', '.join(absent)}" if absent else ""
    return [Finding("decoders", "missing" if absent else "ok", text, fix if absent else None, "h264" in absent)]


def _optional(answers: Mapping[str, Answer]) -> list[Finding]:
    findings = []
    for name, (_, fix) in _OPTIONAL.items():
        answer, title = answers.get(name), f"optional: {name}"
        if answer is None:
            findings.append(Finding(title, "missing", "not installed, not needed", fix))
        elif isinstance(answer, str):
            findings.append(Finding(title, "broken", answer, _cure(answer, _REINSTALL.format(name))))
        else:
            findings.append(Finding(title, "ok", str(_version(name))))
    return findings


def _kept(answer: Answer) -> list[Finding]:
    if isinstance(answer, str):
        return [Finding("weights and tokens", "broken", f"{home()}: {answer}", public="cannot be read")]
    weights: Mapping[str, int] = answer["weights"]
    names = ", ".join(f"{name} ({readable_bytes(size)})" for name, size in sorted(weights.items())) or "none"
    return [
        Finding("weights", "ok", f"in {home()}: {names}", public=f"{counted(len(weights), 'file')} in $HWM_HOME"),
        Finding("cached tokens", "ok", readable_bytes(answer["tokens"])),
    ]


def _disks(answer: Answer, run_folder: Path) -> list[Finding]:
    if isinstance(answer, str):
        return [Finding("disk", "broken", answer)]
    findings = []
    for name, place in (("free disk, $HWM_HOME", home()), ("free disk, run folder", run_folder)):
        free = answer[str(place)]["free"]
        fix = None if free >= LITTLE_DISK_BYTES else f"free some space below {place}, or use another folder"
        findings.append(Finding(name, "ok" if fix is None else "missing", readable_bytes(free), fix))
    return findings


def _input(item: Needed, answer: Answer) -> Finding:
    name = f"recipe: {item.setting}"
    if isinstance(answer, str):
        return Finding(name, "broken", f"{item.path}: {answer}", is_needed=True, public="no answer")
    if answer[str(item.path)]["exists"]:
        return Finding(name, "ok", str(item.path), is_needed=True, public="there")
    fix = next(how_to_get([item]), f"put there: {item.what}")
    return Finding(name, "missing", f"{item.path} is not there", fix, is_needed=True, public="not there")
