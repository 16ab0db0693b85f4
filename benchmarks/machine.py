"""The machine: what it is, and how fast it multiplies matrices of given shapes and type with the best kernel it has."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hwm.models.vjepa2 import EncoderSpec

Multiply = Callable[[Tensor, Tensor], object]
"""From some rows of the left side and where their product may be written to the product."""


class Product(NamedTuple):
    """`count` products [rows, inner] × [inner, columns]; `weight`: the right side is a layer's, [columns, inner]."""

    rows: int
    inner: int
    columns: int
    count: int
    weight: bool


ROWS_AT_A_TIME = (128, 256, 512)
"""What is tried for every product: blocks of rows that stay in the cache, as in fast kernels, and all rows at once."""


def block_products(width: int, hidden: int, depth: int, num_heads: int, length: int, batch: int = 1) -> list[Product]:
    """All matrix products of `depth` transformer blocks over `batch` sequences of `length` tokens."""
    rows, heads, head = batch * length, depth * num_heads * batch, width // num_heads
    return [
        Product(rows, width, 3 * width, depth, True),
        Product(rows, width, width, depth, True),
        Product(rows, width, hidden, depth, True),
        Product(rows, hidden, width, depth, True),
        Product(length, head, length, heads, False),
        Product(length, length, head, heads, False),
    ]


def encoder_products(spec: EncoderSpec, length: int) -> list[Product]:
    """All matrix products of one pass over `length` tokens, that of the patches first."""
    patches = Product(length, 3 * spec.tubelet_size * spec.patch_size**2, spec.width, 1, True)
    hidden = round(spec.width * spec.mlp_ratio)
    return [patches, *block_products(spec.width, hidden, spec.depth, spec.num_heads, length)]


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
    rows = min(256, length)
    scores = torch.randn(rows, length).to(dtype)

    def normalise() -> None:
        with torch.inference_mode():
            for _ in range(spec.depth * spec.num_heads * length // rows):
                torch.softmax(scores, dim=-1, out=scores)

    return normalise


@torch.inference_mode()
def _fastest_kernel(product: Product, dtype: torch.dtype) -> Callable[[], object]:
    """The fastest of all kernels in `dtype`; for bfloat16 float32's too, which some CPUs multiply faster."""
    dtypes = (dtype, torch.float32) if dtype == torch.bfloat16 else (dtype,)
    return min((kernel for some in dtypes for kernel in _kernels(product, some)), key=_seconds)


def _kernels(product: Product, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    left = torch.randn(product.rows, product.inner).to(dtype)
    right = torch.randn(product.inner, product.columns).to(dtype)
    out = torch.empty(product.rows, product.columns, dtype=dtype)
    weight = right.T.contiguous()
    multiplications: list[Multiply] = [
        lambda some, into: torch.mm(some, right, out=into),
        lambda some, into: torch.mm(some, weight.T, out=into),
    ]
    if product.weight:
        multiplications.append(lambda some, _: torch.ops.mkldnn._linear_pointwise(some, weight, None, "none", [], ""))
    for multiply in multiplications:
        for rows in (*ROWS_AT_A_TIME, len(left)):
            yield _in_blocks(multiply, left, out, rows)


def _in_blocks(multiply: Multiply, left: Tensor, out: Tensor, rows: int) -> Callable[[], None]:
    """The product by blocks of `rows`; one block of memory is read, and one written, again and again."""
    counts = [len(block) for block in left.split(rows)]

    def kernel() -> None:
        for count in counts:
            multiply(left[:count], out[:count])

    return kernel


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
