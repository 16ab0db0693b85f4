"""Reliability diagrams and risk-coverage curves, as SVG, PNG and CSV in the style of `figures`.

In: what `calibration` computes, by model. Out: `Figure`s; shares are drawn in percent.
"""

from collections.abc import Mapping

import numpy as np

from hwm.evaluation.calibration import Reliability, RiskCoverage
from hwm.evaluation.figures import Figure, Line, share_curves

_POINTS = 400
"""Points of a drawn risk-coverage curve; its CSV has as many."""


def reliability_diagram(
    name: str, models: Mapping[str, Reliability], title: str = "Reliability: is it right as often as it is sure?"
) -> Figure:
    """Share right against mean confidence, one point a bin; a calibrated model lies on the diagonal.

    The CSV holds the segments of each bin, which the drawing does not show.

    Raises:
        RunError: no model.
    """
    lines = [Line(label, bins.confidence, bins.accuracy) for label, bins in models.items()]
    rows = [(label, *row) for label, bins in models.items() for row in zip(*bins, strict=True)]
    table = ("model", "confidence", "accuracy", "num_segments"), rows
    return share_curves(name, lines, ("Mean confidence of the bin", "Share right"), table, title, diagonal=True)


def risk_coverage_curves(
    name: str, models: Mapping[str, RiskCoverage], title: str = "Risk when only the surest segments are answered"
) -> Figure:
    """Share wrong against the share answered, most confident first; lower is better.

    Raises:
        RunError: no model.
    """
    lines = [_thinned(label, curve) for label, curve in models.items()]
    rows = [(line.label, *row) for line in lines for row in zip(line.x, line.y, strict=True)]
    table = ("model", "coverage", "risk"), rows
    return share_curves(name, lines, ("Share answered (coverage)", "Share wrong (risk)"), table, title)


def _thinned(label: str, curve: RiskCoverage) -> Line:
    """At most `_POINTS` points of a curve, the last one among them."""
    kept = np.unique(np.linspace(0, len(curve.risk) - 1, _POINTS).round().astype(int))
    return Line(label, curve.coverage[kept].tolist(), curve.risk[kept].tolist())
