"""The rules of the toy world: recipes, their task graphs, and how the script of one take is drawn.

Inputs: a recipe and a `numpy.random.Generator`. Output: a `Script`, the list of who does what when, in seconds.
Everything that is drawn (`timeline.py`, `scene.py`), written (`formats.py`) or computed (`ceiling.py`) follows from it.

The law, in full. The first step is drawn from the recipe's start probabilities, each next one from the row of the step
before it (a Markov chain). Durations, gaps, leads and the number of steps are uniform and independent of the steps.
The gaze leaves for the next object `lead` seconds before a step starts; `lead` is such that the whole turn lies between
1.6 s and 0.4 s before the start, and a step and its gap last at least 1.7 s, so a turn never comes before the step
that precedes it has started.
"""

from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

import numpy as np

NUM_STEPS = (7, 10)
"""Steps in a take, lowest and highest, both possible."""
LEAD_IN_SEC = (2.0, 3.0)
"""From the first frame to the start of the first step; the gaze rests at a neutral place until the first turn."""
STEP_SEC = (1.6, 3.0)
GAP_SEC = (0.1, 0.6)
TAIL_SEC = (0.8, 1.5)
TURN_SEC = 0.1
"""Time the head takes from the old target to the new one."""
TURN_WINDOW_SEC = (0.4, 1.6)
"""The turn lies wholly between these two times before the start of its step."""
LEAD_SEC = (TURN_WINDOW_SEC[0] + TURN_SEC, TURN_WINDOW_SEC[1])
"""From the beginning of the turn to the start of its step: uniform in this range."""
CHANGE_AT = 0.6
"""Share of a step after which its object changes its look."""

OBJECT_KINDS = ("kettle", "mug", "carton", "jar", "bread", "pan", "bowl", "bottle")


class Step(NamedTuple):
    """One key step as one recipe has it."""

    name: str
    unique_id: int
    kind: str
    """Object kind that the step uses; no two steps of a recipe share one."""
    motion: str
    """How the hand works: `pour`, `stir` or `cut`."""
    tool: str
    """What the hand works with: `spoon`, `knife` or nothing."""
    local_id: int
    """Id inside the scenario's taxonomy; the same leaf has another one in another scenario."""
    parent: str
    """Name of the taxonomy node above the leaf."""


class Recipe(NamedTuple):
    """A scenario: its steps and the law of what follows what."""

    key: str
    scenario: str
    steps: tuple[Step, ...]
    start: tuple[float, ...]
    """Probability of each step to be the first."""
    follow: tuple[tuple[float, ...], ...]
    """`follow[a][b]`: probability that step b comes after step a; three of each row are not zero."""


class Script(NamedTuple):
    """What happens in one take; times in seconds from its first frame, rounded to 10 microseconds."""

    recipe: int
    """Index in `RECIPES`."""
    steps: tuple[int, ...]
    """Indices in the recipe's steps, which are also the indices of the objects that they use."""
    starts_sec: tuple[float, ...]
    ends_sec: tuple[float, ...]
    leads_sec: tuple[float, ...]
    """The turn before step i begins at `starts_sec[i] - leads_sec[i]`."""
    gaze_objects: tuple[int, ...]
    """Object to which the turn before step i goes (that of step i, unless gaze is uninformative)."""
    duration_sec: float

    @property
    def turns_sec(self) -> np.ndarray:
        """Times at which the turns begin, [steps] float64 seconds."""
        return np.array(self.starts_sec) - np.array(self.leads_sec)


_LEAVES: dict[str, tuple[int, str, str, str]] = {
    "Pour water from the kettle": (1204, "kettle", "pour", ""),
    "Scald the beans with the kettle": (1207, "kettle", "pour", ""),
    "Stir the tea in the mug": (1211, "mug", "stir", "spoon"),
    "Pour milk from the carton": (1218, "carton", "pour", ""),
    "Scoop honey from the jar": (1223, "jar", "stir", "spoon"),
    "Take salt from the jar": (1224, "jar", "cut", ""),
    "Slice the bread": (1230, "bread", "cut", "knife"),
    "Tear the bread into croutons": (1233, "bread", "stir", ""),
    "Fry the eggs in the pan": (1241, "pan", "stir", "spoon"),
    "Toast the croutons in the pan": (1242, "pan", "cut", "spoon"),
    "Take sugar from the bowl": (1250, "bowl", "pour", ""),
    "Beat the eggs in the bowl": (1251, "bowl", "stir", "spoon"),
    "Toss the salad in the bowl": (1256, "bowl", "cut", "spoon"),
    "Pour oil from the bottle": (1263, "bottle", "pour", ""),
}

# One line a step: name, taxonomy parent, then its three successors with their probabilities.
_Row = tuple[str, str, dict[int, float]]
_TEA: tuple[_Row, ...] = (
    ("Pour water from the kettle", "Brewing", {1: 0.48, 2: 0.30, 3: 0.22}),
    ("Stir the tea in the mug", "Brewing", {2: 0.46, 5: 0.32, 4: 0.22}),
    ("Pour milk from the carton", "Seasoning", {3: 0.50, 1: 0.28, 0: 0.22}),
    ("Scoop honey from the jar", "Seasoning", {4: 0.46, 1: 0.30, 5: 0.24}),
    ("Slice the bread", "Serving", {0: 0.48, 3: 0.30, 2: 0.22}),
    ("Take sugar from the bowl", "Seasoning", {1: 0.46, 0: 0.30, 4: 0.24}),
)
_EGGS: tuple[_Row, ...] = (
    ("Beat the eggs in the bowl", "Preparation", {1: 0.50, 5: 0.28, 3: 0.22}),
    ("Pour milk from the carton", "Preparation", {5: 0.46, 2: 0.30, 0: 0.24}),
    ("Pour oil from the bottle", "Frying", {3: 0.48, 0: 0.30, 4: 0.22}),
    ("Fry the eggs in the pan", "Frying", {4: 0.46, 5: 0.32, 2: 0.22}),
    ("Slice the bread", "Preparation", {2: 0.48, 0: 0.30, 3: 0.22}),
    ("Take salt from the jar", "Frying", {3: 0.46, 4: 0.30, 1: 0.24}),
)
_SALAD: tuple[_Row, ...] = (
    ("Toss the salad in the bowl", "Dressing", {5: 0.48, 1: 0.30, 3: 0.22}),
    ("Pour oil from the bottle", "Dressing", {2: 0.48, 3: 0.30, 0: 0.22}),
    ("Scoop honey from the jar", "Dressing", {0: 0.46, 5: 0.32, 4: 0.22}),
    ("Toast the croutons in the pan", "Warm things", {1: 0.46, 4: 0.30, 5: 0.24}),
    ("Tear the bread into croutons", "Warm things", {3: 0.50, 0: 0.28, 2: 0.22}),
    ("Scald the beans with the kettle", "Warm things", {4: 0.46, 2: 0.30, 1: 0.24}),
)


def _row(probabilities: dict[int, float], num_steps: int) -> tuple[float, ...]:
    return tuple(probabilities.get(index, 0.0) for index in range(num_steps))


def _recipe(key: str, scenario: str, rows: tuple[_Row, ...], start: dict[int, float], first_id: int) -> Recipe:
    # Taxonomy ids: 0 is the scenario itself, then its parents, then the leaves from `first_id` on.
    steps = tuple(
        Step(name, *_LEAVES[name], local_id=first_id + index, parent=parent)
        for index, (name, parent, _) in enumerate(rows)
    )
    follow = tuple(_row(successors, len(rows)) for _, _, successors in rows)
    return Recipe(key, scenario, steps, _row(start, len(rows)), follow)


RECIPES: tuple[Recipe, ...] = (
    _recipe("tea", "Making Milk Tea & Toast", _TEA, {0: 0.48, 4: 0.30, 1: 0.22}, first_id=4),
    _recipe("eggs", "Making Scrambled Eggs", _EGGS, {0: 0.48, 4: 0.30, 2: 0.22}, first_id=11),
    _recipe("salad", "Making Bean Salad", _SALAD, {4: 0.48, 5: 0.30, 0: 0.22}, first_id=3),
)


def _between(bounds: tuple[float, float], uniform: np.ndarray) -> np.ndarray:
    low, high = bounds
    return low + (high - low) * uniform


def sample_script(recipe_index: int, informative: bool, fps: int, rng: np.random.Generator) -> Script:
    """Draw one take.

    All uniform numbers are drawn before any of them is used, so two scripts of the same generator state agree in
    everything but what is meant to differ.

    Args:
        recipe_index: index in `RECIPES`.
        informative: whether the gaze goes to the object that will be used, or to one drawn at random among the
            take's objects other than the one looked at.
        fps: frames a second of the videos; the duration is a whole number of frames.
        rng: source of the draw.
    """
    recipe = RECIPES[recipe_index]
    num_objects = len(recipe.steps)
    head, body = rng.random(3), rng.random((NUM_STEPS[1], 5))
    num_steps = NUM_STEPS[0] + int(head[0] * (NUM_STEPS[1] - NUM_STEPS[0] + 1))
    durations = _between(STEP_SEC, body[:num_steps, 0])
    gaps = _between(GAP_SEC, body[:num_steps, 1])
    leads = np.round(_between(LEAD_SEC, body[:num_steps, 2]), 5)
    first = float(_between(LEAD_IN_SEC, head[1:2])[0])
    starts = np.round(first + np.concatenate([[0.0], np.cumsum(durations + gaps)[:-1]]), 5)
    ends = np.round(starts + durations, 5)
    steps: list[int] = []
    gaze_objects: list[int] = []
    for index in range(num_steps):
        row = tuple(accumulate(recipe.follow[steps[-1]] if steps else recipe.start))
        steps.append(bisect_right(row, float(body[index, 3]) * row[-1]))
        if informative:
            gaze_objects.append(steps[-1])
        else:
            others = [item for item in range(num_objects) if not gaze_objects or item != gaze_objects[-1]]
            gaze_objects.append(others[int(body[index, 4] * len(others))])
    duration = ends[-1] + float(_between(TAIL_SEC, head[2:3])[0])
    return Script(
        recipe=recipe_index,
        steps=tuple(steps),
        starts_sec=tuple(starts.tolist()),
        ends_sec=tuple(ends.tolist()),
        leads_sec=tuple(leads.tolist()),
        gaze_objects=tuple(gaze_objects),
        duration_sec=int(np.ceil(duration * fps)) / fps,
    )
