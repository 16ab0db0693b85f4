"""Scores, baselines, intervals, figures and the one-file report."""
