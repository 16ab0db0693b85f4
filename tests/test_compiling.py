"""A compiled encoder says the same; one that does not compile runs as it is and says why, once.

In a process of its own: the checks of shapes and types that the tests put around every function cannot be compiled.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

SCRIPT = """
import json
import torch
from hwm.engine.compiling import compile_blocks
from hwm.models.layers import Block
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder

graphs = []

def counting(graph, inputs):
    graphs.append(graph)
    return graph.forward

def failing(graph, inputs):
    raise OSError("no compiler on this machine\\nat all")

def running_out(graph, inputs):
    def run(*arguments):
        raise MemoryError("out of memory")
    return run

def encode(backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    encoder = VJEPA2Encoder(EncoderSpec(32, 3, 2)).requires_grad_(False).eval()
    video = torch.randn(2, 3, 4, 32, 32)
    names, said = list(encoder.state_dict()), []
    with torch.inference_mode():
        plain = [encoder(video), encoder.encode_frames(video[:, :, 0])]
        compile_blocks(encoder, said.append, backend)
        try:
            results = [encoder(video), encoder.encode_frames(video[:, :, 0])]
        except MemoryError as error:
            return {"error": str(error), "said": said}
    return {
        "difference": max(float((a - b).abs().max()) for a, b in zip(plain, results)),
        "said": said,
        "names_kept": list(encoder.state_dict()) == names,
    }

def kinds():
    # Blocks of many widths, each in several shapes and with gradients too: more forms than one function may have.
    torch._dynamo.reset()
    made = []

    def counting(graph, inputs):
        made.append(graph)
        return graph.forward

    blocks = torch.nn.ModuleList(Block(width, 2, 2 * width) for width in (8, 16, 24, 32, 40))
    compile_blocks(blocks, print, counting)
    for length in (4, 5):
        for block in blocks:
            x = torch.randn(2, length, block.attn.qkv.in_features)
            block(x).sum().backward()
            with torch.no_grad():
                block(x)
    before = len(made)
    for block in blocks:
        block(torch.randn(2, 6, block.attn.qkv.in_features))
    return {"before": before, "after": len(made)}

found = {backend.__name__: encode(backend) for backend in (counting, failing, running_out)}
print(json.dumps(found | {"graphs": len(graphs), "kinds": kinds()}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=300)
    assert not run.returncode, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_a_compiled_encoder_says_the_same_and_keeps_its_names(found: dict[str, Any]) -> None:
    counting = found["counting"]
    assert counting["difference"] < 1e-5
    assert counting["names_kept"]
    assert not counting["said"]
    assert found["graphs"] == 4, "blocks share what is compiled: two parts, one for each shape"


def test_an_encoder_that_does_not_compile_runs_as_it_is_and_says_why_once(found: dict[str, Any]) -> None:
    failing = found["failing"]
    assert failing["difference"] == 0
    assert len(failing["said"]) == 1
    assert "runtime.compile" in failing["said"][0]
    assert "no compiler on this machine" in failing["said"][0]


def test_an_error_of_the_computation_is_not_taken_for_one_of_the_compiler(found: dict[str, Any]) -> None:
    assert found["running_out"] == {"error": "out of memory", "said": []}


def test_blocks_of_other_widths_do_not_use_up_the_forms_that_are_kept(found: dict[str, Any]) -> None:
    """Two parts × five widths, each in one shape and in any, with gradients and without: none runs as it is."""
    assert found["kinds"] == {"before": 2 * 5 * 2 * 2, "after": 2 * 5 * 2 * 2}
