"""All benchmarks by name, in the order of the table."""

from collections.abc import Callable, Iterator, Sequence

from benchmarks import decoding, encoder, epoch, gazelle, gpu, growth, memory, predictor, single_frames, sweep
from benchmarks.context import Context
from benchmarks.measure import Outcome

Benchmark = Callable[[Context], Iterator[Outcome]]

BENCHMARKS: dict[str, Benchmark] = {
    "encoder": encoder.run,
    "single-frames": single_frames.run,
    "gazelle": gazelle.run,
    "predictor": predictor.run,
    "epoch": epoch.run,
    "sweep": sweep.run,
    "decoding": decoding.run,
    "memory": memory.run,
    "growth": growth.run,
    "gpu": gpu.run,
}


def run_suite(context: Context, names: Sequence[str], on_outcome: Callable[[Outcome], None]) -> list[Outcome]:
    """Run the named benchmarks, telling each outcome as it comes.

    Raises:
        NotEqualError: results that must agree do not.
        ConfigError: a peer cannot be loaded.
    """
    outcomes = []
    for name in names:
        for outcome in BENCHMARKS[name](context):
            on_outcome(outcome)
            outcomes.append(outcome)
    return outcomes
