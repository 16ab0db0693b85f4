"""The probe sweep: 20 probes in one pass against the same one by one, and against upstream's way by measured parts."""

import time
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.context import Context, random_encoder, random_video
from benchmarks.measure import Figure, Outcome, Spread, check_equal, interleaved, medians, ratio
from hwm.config import ProbeConfig
from hwm.engine.sweep import ProbeData, SweepResult, train_sweep

LRS, WEIGHT_DECAYS = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), (1e-4, 1e-3, 1e-2, 1e-1)
EPOCHS = 20
STEPS = 8


def run(context: Context) -> Iterator[Outcome]:
    """One pass against one by one, measured whole; then upstream's way, by parts."""
    data = _features(context, segments=24)
    lrs, decays = (LRS[:2], WEIGHT_DECAYS[:1]) if context.quick else (LRS, WEIGHT_DECAYS)

    def together() -> list[float]:
        return _losses(_train(data, lrs, decays, epochs=2))

    def one_by_one() -> list[float]:
        return [loss for lr in lrs for decay in decays for loss in _losses(_train(data, (lr,), (decay,), epochs=2))]

    timed = interleaved({"ours": together, "one_by_one": one_by_one}, 2)
    ours, alone = (torch.tensor(timed.results[name]) for name in ("ours", "one_by_one"))
    yield Figure(
        "sweep/one-by-one", f"{len(lrs) * len(decays)} probes in one pass against one by one, from features",
        ratio(timed.seconds, "one_by_one", "ours"), 1.0, agreement=check_equal("probes' losses", ours, alone, 0.0),
        details=medians(timed.seconds),
    )  # fmt: skip
    yield _by_parts(context, data, len(lrs) * len(decays), len(lrs), min(timed.seconds["ours"]))


def _by_parts(context: Context, data: ProbeData, num_probes: int, num_lrs: int, sweep_sec: float) -> Figure:
    """Upstream encodes every segment in every epoch; here it is encoded once. Both train the same probes."""
    encoder = random_encoder(context.encoder_spec())
    frames = random_video(STEPS, 64 if context.quick else 256)[0].transpose(0, 1).contiguous()
    encode_sec = []
    with torch.inference_mode():
        for _ in range(context.long_rounds):
            start = time.perf_counter()
            encoder.encode_frames(frames)
            encode_sec.append(time.perf_counter() - start)
    segments = len(data.takes_S)
    probe_sec = sweep_sec / 2 / segments  # the sweep above ran two epochs
    ratios = [EPOCHS * (encode + probe_sec) / (encode + EPOCHS * probe_sec) for encode in encode_sec]
    return Figure(
        "sweep/upstream-way", f"{num_probes} probes × {EPOCHS} epochs, backbone once against in every epoch, by parts",
        Spread.of(ratios), 15.0,
        note=f"the limit is {EPOCHS}; what is left is training the probes, which both do",
        details={
            "encode_sec_each": float(np.median(encode_sec)), "probes_sec_each": probe_sec,
            "features_bytes_each": float(data.tokens_RTND.nbytes / segments), "lrs": float(num_lrs),
        },
    )  # fmt: skip


def _features(context: Context, segments: int) -> ProbeData:
    patches, width = (4, 32) if context.quick else (256, 1024)
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((segments, STEPS, patches, width), dtype=np.float32).astype(np.float16)
    known = np.ones((segments, STEPS), dtype=bool)
    labels = {"action": rng.integers(0, 7, (segments, 1))}
    return ProbeData(tokens, known, known, labels, tuple(f"take{index % 6}" for index in range(segments)))


def _train(data: ProbeData, lrs: tuple[float, ...], decays: tuple[float, ...], epochs: int) -> SweepResult:
    config = ProbeConfig(lrs=lrs, weight_decays=decays, num_epochs=epochs, num_views=1, batch_size=8)
    return train_sweep(data, {"action": 7}, config, 0, torch.device("cpu"), lambda epoch, loss: None)


def _losses(result: SweepResult) -> list[float]:
    return [score.holdout_loss for score in result.scores]
