"""Reliability diagrams and curves of selective accuracy, as SVG, PNG and CSV in the style of `figures`.

In: what `calibration` computes, by model. Out: `Figure`s; shares are drawn in percent.
"""

from collections.abc import Mapping, Sequence

from hwm.evaluation.calibration import Reliability
from hwm.evaluation.drawing import Figure, Line, line_rows
from hwm.evaluation.figures import share_curves

Bounds = tuple[Sequence[float], Sequence[float]]
"""Lower and upper bounds of the accuracy of each bin."""


def reliability_diagram(
    name: str,
    models: Mapping[str, Reliability],
    bounds: Mapping[str, Bounds] | None = None,
    title: str = "Reliability: is it right as often as it is sure?",
) -> Figure:
    """Share right against mean confidence, one point a bin; a calibrated model lies on the diagonal.

    The CSV holds the segments of each bin, which the drawing does not show.

    Args:
        name: file name without ending.
        models: label → bins.
        bounds: label → bounds of the share right; models without are drawn without.
        title: what it shows.

    Raises:
        RunError: no model.
    """
    lines, rows = [], []
    for label, bins in models.items():
        low, high = (bounds or {}).get(label, (None, None))
        lines.append(Line(label, bins.confidence, bins.accuracy, low, high))
        nothing = [None] * len(bins.accuracy)
        rows += [(label, *row) for row in zip(*bins, low or nothing, high or nothing, strict=True)]
    table = ("model", "confidence", "accuracy", "num_segments", "low", "high"), rows
    return share_curves(name, lines, ("Mean confidence of the bin", "Share right"), table, title, diagonal=True)


def selective_accuracy_curves(
    name: str, lines: Sequence[Line], title: str = "Top-1 when only the surest segments are answered"
) -> Figure:
    """Share right against the share answered, the most confident first; one minus the risk of a risk-coverage curve.

    Raises:
        RunError: no model.
    """
    table = ("model", "coverage", "accuracy", "low", "high"), line_rows(lines)
    return share_curves(name, lines, ("Share answered (coverage)", "Share right"), table, title)
