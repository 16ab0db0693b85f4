"""`python -m benchmarks`: run all benchmarks or some, print a table, keep JSON and the table of docs/speed.md."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.context import Context
from benchmarks.machine import describe
from benchmarks.measure import Outcome
from benchmarks.suite import BENCHMARKS, run_suite
from benchmarks.table import into_document, markdown, one_line
from hwm.errors import HwmError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suite; 1 where results that must agree did not, or a peer could not be loaded."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    machine = describe()
    images = options.into.parent / "images" if options.into else None
    with tempfile.TemporaryDirectory(prefix="hwm-bench-") as scratch:
        context = Context(options.quick, options.rounds, Path(scratch), options.upstream, options.gazelle, images)
        try:
            outcomes = run_suite(context, options.only or list(BENCHMARKS), _say)
        except HwmError as error:
            print(error, file=sys.stderr)
            return 1
    record = {"machine": machine, "remark": options.remark, "outcomes": [outcome.record() for outcome in outcomes]}
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    table = markdown(machine, outcomes, options.remark)
    if options.into:
        options.into.write_text(into_document(options.into.read_text(encoding="utf-8"), table), encoding="utf-8")
    print("\n" + table)
    return 0


def _say(outcome: Outcome) -> None:
    print(one_line(outcome), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), help="run these alone")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, under a minute; the figures mean nothing")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each comparison (default 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    parser.add_argument("--upstream", type=Path, help="a checkout of facebookresearch/vjepa2, to compare with")
    parser.add_argument("--gazelle", type=Path, help="a checkout of fkryan/gazelle, to compare with")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument(
        "--into",
        type=Path,
        help="Markdown file whose table between the markers is replaced; plots go to images/ beside it",
    )
    parser.add_argument("--remark", default="", help="written above the table, e.g. that the machine was shared")
    return parser


if __name__ == "__main__":
    sys.exit(main())
