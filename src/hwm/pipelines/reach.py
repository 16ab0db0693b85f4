"""Where stage 2 asks for more than training has shown: said as warnings, so that no score hides an extrapolation.

The probe's horizons against those that it is trained on; the steps of a clip, observed and imagined, against the
length of the clips that the world model was trained on.
"""

from collections.abc import Mapping, Sequence

from hwm.config import ProtocolConfig
from hwm.engine.runlog import RunLog
from hwm.pipelines.samples import Sample
from hwm.terminal import counted


def warn_of_horizons(log: RunLog, protocol: ProtocolConfig) -> None:
    """Say where the probe is asked further ahead than it was trained."""
    longest = protocol.train_horizon_sec[1]
    asked = {"horizon_sec": (protocol.horizon_sec,), "curve_sec": protocol.curve_sec}
    beyond = {name: [f"{tau:g}" for tau in of if tau > longest] for name, of in asked.items()}
    told = [f"protocol.{name}: {', '.join(of)} s" for name, of in beyond.items() if of]
    if told:
        log.warn(
            f"{' and '.join(told)} lie beyond protocol.train_horizon_sec (up to {longest:g} s): "
            "the probe has never seen so long a gap, nor (backbone hwm) what stands in its earliest future slots"
        )


def warn_of_length(log: RunLog, trained_steps: int | None, samples: Mapping[str, Sequence[Sample]]) -> None:
    """Say where clips, observed and imagined, are longer than those that the world model was trained on.

    Args:
        log: gets the longest clip of each set as `steps_reached`, and the warning.
        trained_steps: steps of a training clip; None where nothing is imagined or nobody recorded it.
        samples: name of a set → its samples.
    """
    if trained_steps is None:
        return
    reached = {
        name: max(sample.observation.num_steps + sample.observation.num_future for sample in of)
        for name, of in samples.items()
        if of
    }
    log.record(steps_reached={"stage1": trained_steps, **reached})
    beyond = [f"{steps} ({name})" for name, steps in reached.items() if steps > trained_steps]
    if beyond:
        log.warn(
            f"stage 1 was trained on clips of {counted(trained_steps, 'step')}; observed and imagined steps together "
            f"are up to {', '.join(beyond)}: "
            "the farthest are extrapolation (stage 1's data.num_steps, protocol.num_steps)"
        )
