"""The questions of `hwm doctor` that may hang or crash: `python -m hwm.engine.doctor_child QUESTION [JSON]`.

In: the name of a question and its argument. Out: one JSON object on the standard output. A process of its own for each,
because a driver, a decoder or a package that is broken can take the process that asks with it.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

_MATRIX_SIDE = 1024
_SECONDS = 1.0
_CODECS = ("h264", "hevc", "vp9", "av1")


def packages(names: list[str]) -> dict[str, Any]:
    """Whether each module can be imported."""
    for name in names:
        import_module(name)
    return {"imported": names}


def torch_facts(_: object) -> dict[str, Any]:
    """Devices, instruction set, and the speed of matrix products on each device, a second for each type."""
    import torch

    low = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    devices: list[dict[str, Any]] = [{"kind": "cpu", "bf16": low, "gflops": _gflops("cpu")}]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "kind": f"cuda:{index}",
                "name": about.name,
                "memory_gib": round(about.total_memory / 2**30, 1),
                "bf16": torch.cuda.is_bf16_supported(),
                "gflops": _gflops(f"cuda:{index}"),
            }
        )
    if torch.backends.mps.is_available():
        devices.append({"kind": "mps", "gflops": _gflops("mps")})
    for device in devices:
        if device.get("bf16"):
            device["gflops_bf16"] = _gflops(device["kind"], "bfloat16")
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "devices": devices,
    }


def driver(_: object) -> dict[str, Any]:
    """Version of the NVIDIA driver; null where there is none."""
    version = Path("/sys/module/nvidia/version")
    return {"version": version.read_text().strip() if version.is_file() else None}


def decoders(_: object) -> dict[str, Any]:
    """PyAV, its FFmpeg, and the codecs that it can decode."""
    import av
    from av.codec.codec import UnknownCodecError

    found = {}
    for name in _CODECS:
        try:
            found[name] = bool(av.Codec(name, "r"))
        except UnknownCodecError:
            found[name] = False
    return {"version": av.__version__, "ffmpeg": av.ffmpeg_version_info, "codecs": found}


def mini(_: object) -> dict[str, Any]:
    """Reads the packaged weights strictly, which compares their sha256 with the recorded one."""
    from hwm.weights.load import read_encoder, read_gazelle

    return {"encoder": read_encoder("mini").sha256, "gazelle": read_gazelle("mini").sha256}


def folders(paths: list[str]) -> dict[str, Any]:
    """For each path whether it is there, and the free bytes of the disk that it is on or would be on."""
    return {path: {"exists": Path(path).exists(), "free": _free(Path(path))} for path in paths}


def kept(folder: str) -> dict[str, Any]:
    """Weight files and cached tokens below `$HWM_HOME`."""
    home = Path(folder)
    weights, tokens = {}, 0
    for parent, _, names in os.walk(home):
        for name in names:
            path = Path(parent) / name
            size = path.stat().st_size if path.is_file() else 0
            if path.is_relative_to(home / "tokens"):
                tokens += size
            elif path.suffix in (".pt", ".pth", ".safetensors"):
                weights[path.relative_to(home).as_posix()] = size
    return {"weights": weights, "tokens": tokens}


def _gflops(device: str, dtype: str = "float32") -> float:
    """Matrix product, 10⁹ operations a second."""
    import torch

    matrix = torch.ones(_MATRIX_SIDE, _MATRIX_SIDE, device=device, dtype=getattr(torch, dtype))
    (matrix @ matrix).sum().item()  # starts the device
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < _SECONDS:
        (matrix @ matrix)[0, 0].item()  # waits for the device
        count += 1
    return round(count * 2 * _MATRIX_SIDE**3 / (time.perf_counter() - started) / 1e9, 1)


def _free(path: Path) -> int:
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def main(question: str, argument: str) -> None:
    """Answer one question on the standard output."""
    known: dict[str, Callable[[Any], dict[str, Any]]] = {
        "packages": packages, "torch": torch_facts, "driver": driver, "decoders": decoders, "mini": mini,
        "folders": folders, "kept": kept,
    }  # fmt: skip
    json.dump(known[question](json.loads(argument)), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "null")
