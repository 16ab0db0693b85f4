"""Toy world: short takes of a person at a worktop, in Ego-Exo4D's formats, with known truth and ceiling."""

from hwm.data.toyworld.formats import Truth as Truth
from hwm.data.toyworld.formats import load_truth as load_truth
from hwm.data.toyworld.generate import ToyWorldSummary as ToyWorldSummary
from hwm.data.toyworld.generate import generate as generate
from hwm.data.toyworld.splits import read_split as read_split
