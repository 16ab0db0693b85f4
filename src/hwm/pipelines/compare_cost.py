"""What a comparison costs: how much there is to train, and how long that takes by the units measured so far.

Units of one kind (the same verb) cost about the same. Their seconds are those of finished units of the plan, from their
`run.json`, and of those that finish while it runs; until there is one, nothing is said.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from hwm.config import AnticipateConfig, PretrainConfig
from hwm.engine.runlog import read_facts
from hwm.pipelines.compare_units import Plan, Unit
from hwm.pipelines.data_summary import SummaryTable
from hwm.terminal import counted


class StageCost(NamedTuple):
    """The units of one stage."""

    verb: str
    finished: int
    interrupted: int
    new: int
    work: str
    """What one unit does, in words."""
    minutes: float | None
    """Estimate for those that are not finished, or None where none was measured yet."""


class Clock:
    """Seconds of the units measured so far.

    Args:
        plan: whose finished units are measured units.
    """

    def __init__(self, plan: Plan) -> None:
        self._processes = plan.config.processes
        self._seconds: dict[str, list[float]] = {}
        for unit in plan.units:
            if unit.state == "finished" and (seconds := _took(unit)) is not None:
                self.add(unit, seconds)

    def add(self, unit: Unit, seconds: float) -> None:
        """A unit has finished."""
        self._seconds.setdefault(unit.verb, []).append(seconds)

    def seconds(self, units: Sequence[Unit]) -> float | None:
        """Wall-clock seconds of these units, or None where one is of a kind that was not measured."""
        total = 0.0
        for unit in units:
            known = self._seconds.get(unit.verb)
            if not known:
                return None
            total += sum(known) / len(known)
        return total / self._processes

    def left(self, waiting: Sequence[Unit], running: Sequence[Unit]) -> dict[str, float]:
        """For the progress bar: minutes until all is done, as far as that is known."""
        seconds = self.seconds([*waiting, *running])
        return {} if seconds is None else {"minutes left about": round(seconds / 60, 1)}


def cost_of(plan: Plan) -> tuple[StageCost, ...]:
    """The cost of a plan, by stage."""
    clock, costs = Clock(plan), []
    for verb in ("pretrain", "anticipate"):
        units = [unit for unit in plan.units if unit.verb == verb]
        seconds = clock.seconds([unit for unit in units if unit.state != "finished"])
        states = [unit.state for unit in units]
        counts = states.count("finished"), states.count("interrupted"), states.count("new")
        work = _work(units[0].config) if units else ""
        costs.append(StageCost(verb, *counts, work, None if seconds is None else seconds / 60))
    return tuple(costs)


def plan_table(plan: Plan) -> SummaryTable:
    """The cost of a plan as rows of text."""
    rows = []
    for cost in cost_of(plan):
        left = "after the first is measured"
        if not cost.interrupted + cost.new:
            left = "none left"
        elif cost.minutes is not None:
            left = f"about {counted(round(cost.minutes), 'minute')}"
        counts = (str(cost.finished), str(cost.interrupted), str(cost.new))
        rows.append((cost.verb, *counts, cost.work, left))
    columns = ("stage", "finished", "to resume", "to train", "each", "time left")
    return SummaryTable(f"{counted(len(plan.units), 'unit')} in {plan.config.folder / 'units'}", columns, tuple(rows))


def _work(config: object) -> str:
    if isinstance(config, PretrainConfig):
        clips = f"{counted(config.optim.num_steps, 'update')} of {counted(config.optim.batch_size, 'clip')}"
        return f"{clips} of {counted(config.data.num_steps, 'step')}"
    assert isinstance(config, AnticipateConfig)
    probes = len(config.probe.lrs) * len(config.probe.weight_decays)
    horizons = 1 + len(config.protocol.curve_sec)
    told = ((probes, "probe"), (config.probe.num_epochs, "epoch"), (horizons, "horizon"))
    return ", ".join(counted(number, noun) for number, noun in told)


def _took(unit: Unit) -> float | None:
    """Seconds of a finished unit; None for one that was interrupted, whose record holds the pause too."""
    facts = read_facts(unit.folder)
    if facts.get("resumed") or "started" not in facts or "ended" not in facts:
        return None
    return (datetime.fromisoformat(facts["ended"]) - datetime.fromisoformat(facts["started"])).total_seconds()
