"""The probe sweep: 20 probes in one pass against the same one by one, and against upstream's way by measured parts.

Upstream's evaluation runs the backbone again in every batch of every epoch and gives each of its 20 probes a forward
and a backward pass of its own, with keys and values of every token. Here a segment is encoded once.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.context import Context, random_encoder, random_video, upstream_module
from benchmarks.measure import Figure, Outcome, Skipped, Spread, check_equal, interleaved, medians, ratio
from benchmarks.memory import peak_bytes
from hwm.config import ProbeConfig
from hwm.engine.sweep import ProbeData, SweepResult, train_sweep
from hwm.models.vjepa2 import VJEPA2Encoder

LRS, WEIGHT_DECAYS = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), (1e-4, 1e-3, 1e-2, 1e-1)
EPOCHS, STEPS, CLASSES, HEADS = 20, 8, 7, 16


def run(context: Context) -> Iterator[Outcome]:
    """One pass against one by one, measured whole; then upstream's way, by parts."""
    data = _features(context, segments=10)
    lrs, decays = (LRS[:2], WEIGHT_DECAYS[:1]) if context.quick else (LRS, WEIGHT_DECAYS)

    def together() -> list[float]:
        return _losses(_train(data, lrs, decays))

    def one_by_one() -> list[float]:
        return [loss for lr in lrs for decay in decays for loss in _losses(_train(data, (lr,), (decay,)))]

    before = peak_bytes()
    timed = interleaved({"ours": together, "one_by_one": one_by_one}, 2)
    ours, alone = (torch.tensor(timed.results[name]) for name in ("ours", "one_by_one"))
    gained = (peak_bytes() - before) / 2**30
    num_probes = len(lrs) * len(decays)
    yield Figure(
        "sweep/one-by-one", f"{num_probes} probes in one pass against one by one, from features",
        ratio(timed.seconds, "one_by_one", "ours"), 1.0, agreement=check_equal("probes' losses", ours, alone, 0.0),
        note=f"memory: {gained:.2f} GiB more than before, for all probes, their optimisers and a batch of 8 segments",
        details=medians(timed.seconds) | {"gained_gib": gained},
    )  # fmt: skip
    if context.upstream is None:
        yield Skipped("sweep/upstream-way", f"{num_probes} probes × {EPOCHS} epochs", "no --upstream checkout")
        return
    probe_sec = [seconds / len(data.takes_S) for seconds in timed.seconds["ours"]]
    yield _by_parts(context, data, num_probes, float(np.median(probe_sec)))


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


def _train(data: ProbeData, lrs: tuple[float, ...], decays: tuple[float, ...]) -> SweepResult:
    """One epoch, which holds the whole work of training: 8 of the 10 segments train, 2 choose."""
    config = ProbeConfig(
        lrs=lrs, weight_decays=decays, num_epochs=1, num_views=1, batch_size=8, num_heads=HEADS, holdout_fraction=0.2
    )
    return train_sweep(data, {"action": CLASSES}, config, 0, torch.device("cpu"), lambda epoch, loss: None)


def _losses(result: SweepResult) -> list[float]:
    return [score.holdout_loss for score in result.scores]
