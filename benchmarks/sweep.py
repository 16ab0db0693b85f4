"""The probe sweep: 20 probes in one pass against the same one by one, and against upstream's way by measured parts.

Upstream's evaluation runs the backbone again in every batch of every epoch and gives each of its 20 probes a forward
and a backward pass of its own, with keys and values of every token. Here a segment is encoded once.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.context import Context, random_encoder, random_video, upstream_module
from benchmarks.measure import Figure, Outcome, Skipped, Spread, check_equal, interleaved, medians
from benchmarks.memory import peak_bytes
from hwm.config import ProbeConfig
from hwm.engine.sweep import ProbeData, train_sweep
from hwm.models.vjepa2 import VJEPA2Encoder

LRS, WEIGHT_DECAYS = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), (1e-4, 1e-3, 1e-2, 1e-1)
EPOCHS, EPOCHS_RUN, STEPS, CLASSES, HEADS = 20, 3, 8, 7, 16


class Trained(NamedTuple):
    """Probes trained in one call, and what it took."""

    losses: list[float]
    """On held-out takes, after the epochs that were run."""
    whole_sec: float
    """Setting up, `EPOCHS` epochs and scoring, every epoch after those run counted like the last ones."""
    epoch_sec: float
    """An epoch after the first."""


def run(context: Context) -> Iterator[Outcome]:
    """One pass against one by one; then upstream's way. Both by parts: three epochs are run and twenty counted."""
    data = _features(context, segments=10)
    lrs, decays = (LRS[:2], WEIGHT_DECAYS[:1]) if context.quick else (LRS, WEIGHT_DECAYS)
    num_probes = len(lrs) * len(decays)
    before = peak_bytes()
    rounds: list[tuple[Trained, list[Trained]]] = []
    for _ in range(2):
        together = _train(data, lrs, decays)
        rounds.append((together, [_train(data, (lr,), (decay,)) for lr in lrs for decay in decays]))
    gained = (peak_bytes() - before) / 2**30
    ours, alone = rounds[0][0].losses, [loss for one in rounds[0][1] for loss in one.losses]
    yield Figure(
        "sweep/one-by-one",
        f"{num_probes} probes × {EPOCHS} epochs in one pass against one by one, from features, by parts",
        Spread.of([sum(one.whole_sec for one in apart) / together.whole_sec for together, apart in rounds]), 1.0,
        agreement=check_equal("probes' losses", torch.tensor(ours), torch.tensor(alone), 0.0),
        note=f"memory: {gained:.2f} GiB more than before, for all probes, their optimisers and a batch of 8 segments; "
        "the probes' updates cost the same either way, what is shared is reading features",
        details={"ours_sec": rounds[-1][0].whole_sec, "gained_gib": gained},
    )  # fmt: skip
    if context.upstream is None:
        yield Skipped("sweep/upstream-way", f"{num_probes} probes × {EPOCHS} epochs", "no --upstream checkout")
        return
    epoch_sec = [together.epoch_sec / (len(data.takes_S) - 2) for together, _ in rounds]  # two segments are held out
    yield _by_parts(context, data, num_probes, float(np.median(epoch_sec)))


def _by_parts(context: Context, data: ProbeData, num_probes: int, sweep_sec: float) -> Figure:
    """Seconds a segment: `sweep_sec` for an epoch of our probes; encoding and one of upstream's probes timed here."""
    encoder = random_encoder(context.encoder_spec())
    frames = random_video(STEPS, 64 if context.quick else 256)[0].transpose(0, 1).contiguous()
    timed = interleaved(
        {"encode": lambda: _encode(encoder, frames), "upstream_probe": _upstream_probe(context, data)},
        context.long_rounds,
    )
    rounds = zip(timed.seconds["encode"], timed.seconds["upstream_probe"], strict=True)
    ratios = [EPOCHS * (encode + num_probes * probe) / (encode + EPOCHS * sweep_sec) for encode, probe in rounds]
    encode_sec, probe_sec = (float(np.median(timed.seconds[name])) for name in ("encode", "upstream_probe"))
    backbone = EPOCHS * (encode_sec + sweep_sec) / (encode_sec + EPOCHS * sweep_sec)
    return Figure(
        "sweep/upstream-way",
        f"{num_probes} probes × {EPOCHS} epochs, ViT-L once a segment, against ViT-L and {num_probes} of upstream's "
        "probes in every epoch, by parts",
        Spread.of(ratios), 15.0,
        note=f"seconds a segment of {STEPS} steps: encoding {encode_sec:.2f}, an epoch of our probes {sweep_sec:.2f}, "
        f"of upstream's {num_probes * probe_sec:.2f}; with our probes on both sides the ratio is {backbone:.1f} ×",
        details=medians(timed.seconds)
        | {"ours_epoch_sec": sweep_sec, "features_bytes_each": float(data.tokens_RTND.nbytes / len(data.takes_S))},
    )  # fmt: skip


@torch.inference_mode()
def _encode(encoder: VJEPA2Encoder, frames: Tensor) -> Tensor:
    return encoder.encode_frames(frames)


def _upstream_probe(context: Context, data: ProbeData) -> Callable[[], object]:
    """A training step (without the optimiser) of one of upstream's probes, of the depth of ours, on one segment."""
    assert context.upstream is not None
    width = data.tokens_RTND.shape[-1]
    module = upstream_module(context.upstream, "src.models.attentive_pooler")
    probe = module.AttentiveClassifier(embed_dim=width, num_heads=HEADS, depth=1, num_classes=CLASSES)
    tokens = torch.from_numpy(data.tokens_RTND[0]).float().flatten(0, 1)[None]

    def step() -> None:
        probe.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(probe(tokens), torch.zeros(1, dtype=torch.long)).backward()

    return step


def _features(context: Context, segments: int) -> ProbeData:
    patches, width = (4, 32) if context.quick else (256, 1024)
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((segments, STEPS, patches, width), dtype=np.float32).astype(np.float16)
    known = np.ones((segments, STEPS), dtype=bool)
    labels = {"action": rng.integers(0, CLASSES, (segments, 1))}
    return ProbeData(tokens, known, known, labels, tuple(f"take{index % 5}" for index in range(segments)))


def _train(data: ProbeData, lrs: tuple[float, ...], decays: tuple[float, ...]) -> Trained:
    """8 of the 10 segments train, 2 choose."""
    config = ProbeConfig(
        lrs=lrs, weight_decays=decays, num_epochs=EPOCHS_RUN, num_views=1, batch_size=8, num_heads=HEADS,
        holdout_fraction=0.2,
    )  # fmt: skip
    ends: list[float] = []
    start = time.perf_counter()
    result = train_sweep(
        data, {"action": CLASSES}, config, 0, torch.device("cpu"), lambda epoch, loss: ends.append(time.perf_counter())
    )
    whole = time.perf_counter() - start
    epoch = (ends[-1] - ends[0]) / (EPOCHS_RUN - 1)
    return Trained([score.holdout_loss for score in result.scores], whole + (EPOCHS - EPOCHS_RUN) * epoch, epoch)
