"""Make the mini weights of the package again: `make mini-weights` (about 35 minutes on two cores).

A toy world of its own → `hwm adapt` and `hwm adapt-gaze` → linear probes and gaze scores → float16 in
src/hwm/weights/mini/, with the scores in each config.json.
"""

import json
from pathlib import Path

import torch
from linear_probes import compare

import hwm.weights
from hwm.config import AdaptConfig, AdaptGazeConfig, ToyWorldConfig
from hwm.data.toyworld import generate
from hwm.pipelines import adapt, adapt_gaze
from hwm.recipes import load_config
from hwm.weights.load import load_encoder, load_gazelle, save_model

WORLD = ToyWorldConfig(num_takes=200, seed=101)


def main() -> None:
    """Make, measure, store."""
    gaze_config = load_config(AdaptGazeConfig, "adapt-gaze/toyworld")
    generate(gaze_config.world, WORLD)
    made = adapt.run(load_config(AdaptConfig, "adapt/toyworld"))
    gaze = adapt_gaze.run(gaze_config)

    mini = Path(hwm.weights.__file__).parent / "mini"
    recipe = {"world": WORLD.model_dump(), "made by": "make mini-weights"}
    encoder = load_encoder(made.encoder)
    probes = compare(gaze_config.world, encoder)
    save_model(encoder, mini / "encoder", torch.float16, recipe | {"linear probes": probes})
    gazelle = load_gazelle(gaze.gazelle)
    save_model(gazelle, mini / "gazelle", torch.float16, recipe | {"gaze": gaze.scores})
    print(json.dumps({"linear probes": probes, "gaze": gaze.scores}, indent=1))


if __name__ == "__main__":
    main()
