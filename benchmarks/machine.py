"""The machine: what it is, and how fast it multiplies matrices of given shapes and type with the best kernel it has."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from hwm.models.vjepa2 import EncoderSpec


class Product(NamedTuple):
    """`count` products [rows, inner] × [inner, columns]; `weight`: the right side is a layer's, [columns, inner]."""

    rows: int
    inner: int
    columns: int
    count: int
    weight: bool


ROWS_OF_ATTENTION = 256
"""Queries of one product of attention: blocks of scores that stay in the cache, as attention kernels have them."""


def encoder_products(spec: EncoderSpec, length: int) -> list[Product]:
    """All matrix products of one pass over `length` tokens."""
    width, hidden, head = spec.width, round(spec.width * spec.mlp_ratio), spec.width // spec.num_heads
    rows = min(ROWS_OF_ATTENTION, length)
    blocks = spec.depth * spec.num_heads * length // rows
    return [
        Product(length, 3 * spec.tubelet_size * spec.patch_size**2, width, 1, True),
        Product(length, width, 3 * width, spec.depth, True),
        Product(length, width, width, spec.depth, True),
        Product(length, width, hidden, spec.depth, True),
        Product(length, hidden, width, spec.depth, True),
        Product(rows, head, length, blocks, False),
        Product(rows, length, head, blocks, False),
    ]


def gflop(product: Product) -> float:
    """Billions of multiplications and additions."""
    return 2e-9 * product.rows * product.inner * product.columns * product.count


def fastest(products: Sequence[Product], dtype: torch.dtype) -> Callable[[], None]:
    """A call that does all products and nothing else, each with the kernel that is fastest for it here."""
    chosen = [(product.count, _fastest_kernel(product, dtype)) for product in products]

    def multiply() -> None:
        with torch.inference_mode():
            for count, kernel in chosen:
                for _ in range(count):
                    kernel()

    return multiply


def softmaxes(spec: EncoderSpec, length: int, dtype: torch.dtype) -> Callable[[], None]:
    """A call that does PyTorch's softmax of all scores of one pass, each block where it stands, and nothing else."""
    rows = min(ROWS_OF_ATTENTION, length)
    scores = torch.randn(rows, length).to(dtype)

    def normalise() -> None:
        with torch.inference_mode():
            for _ in range(spec.depth * spec.num_heads * length // rows):
                torch.softmax(scores, dim=-1, out=scores)

    return normalise


@torch.inference_mode()
def _fastest_kernel(product: Product, dtype: torch.dtype) -> Callable[[], object]:
    left = torch.randn(product.rows, product.inner).to(dtype)
    right = torch.randn(product.inner, product.columns).to(dtype)
    out = torch.empty(product.rows, product.columns, dtype=dtype)
    weight = right.T.contiguous()
    kernels: list[Callable[[], object]] = [
        lambda: torch.mm(left, right, out=out),
        lambda: torch.mm(left, weight.T, out=out),
    ]
    if product.weight:
        kernels.append(lambda: torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], ""))
    return min(kernels, key=_seconds)


def _seconds(kernel: Callable[[], object]) -> float:
    kernel()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        kernel()
        times.append(time.perf_counter() - start)
    return min(times)


def describe() -> dict[str, str]:
    """CPU, threads, memory and libraries; the GPU where there is one."""
    cpu = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    load = os.getloadavg() if hasattr(os, "getloadavg") else (float("nan"),) * 3
    return {
        "cpu": f"{cpu}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
        "torch": torch.__version__,
        "onednn": str(torch.backends.mkldnn.is_available()),
        "python": platform.python_version(),
        "system": platform.platform(),
        "load_before": f"{load[0]:.1f}",
    }
