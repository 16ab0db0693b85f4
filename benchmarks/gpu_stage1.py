"""On a CUDA device: a whole step of stage 1 from frames, against the same made of upstream's modules.

Pixels on the device → encoder, Gaze-LLE and predictor, backward, AdamW. Upstream's is the step of `app/vjepa_droid`
(frames doubled, encoder and predictor under autocast, dense mask, teacher-forced + rolled out) with Gaze-LLE's own
decoder on transformers' DINOv2 beside it, as it would have to run to condition on gaze. Predictors are of one size.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from benchmarks.context import Context, random_encoder, upstream_module
from benchmarks.encoder import upstream_encoder
from benchmarks.gazelle import random_gazelle
from benchmarks.measure import Call, Figure, Outcome, Skipped, check_equal, interleaved, medians, ratio
from benchmarks.peers import upstream_gazelle
from hwm.data.transforms import normalise
from hwm.engine.compiling import compile_blocks
from hwm.engine.optim import adamw, clip_gradients
from hwm.models.layers import products_in_bfloat16
from hwm.models.objectives import predictor_losses
from hwm.models.observer import Observer
from hwm.models.predictor import GazePredictor, PredictorSpec
from hwm.tokens.observe import StepPixels, encode_pixels

WHAT = "a whole step of stage 1, ViT-L at 256 px, Gaze-LLE B at 448 px, default predictor"
STEPS = 8


def stage1_step(context: Context) -> Outcome:
    """Ours against upstream's, with equal latents."""
    if context.upstream is None or context.gazelle is None:
        return Skipped("gpu/stage1", WHAT, "no --upstream or no --gazelle checkout")
    clips, side, gaze_side = (2, 64, 448) if context.quick else (16, 256, 448)
    random = torch.Generator("cuda").manual_seed(0)
    frames, gaze_frames = (
        torch.randint(256, (clips * STEPS, size, size, 3), dtype=torch.uint8, device="cuda", generator=random)
        for size in (side, gaze_side)
    )
    calls: dict[str, Call] = {
        "ours": _ours(context, frames, gaze_frames),
        "upstream": _theirs(context, frames, gaze_frames),
    }
    timed = interleaved(calls, context.rounds)
    return Figure(
        "gpu/stage1", f"{WHAT}, {clips} clips × {STEPS} steps, against upstream's modules",
        ratio(timed.seconds, "upstream", "ours"),
        agreement="latents " + check_equal("latents", timed.results["ours"], timed.results["upstream"], 5e-2),
        details=medians(timed.seconds),
    )  # fmt: skip


def _ours(context: Context, frames: Tensor, gaze_frames: Tensor) -> Callable[[], Tensor]:
    observer = Observer(random_encoder(context.encoder_spec()), random_gazelle(context.quick)).cuda()
    products_in_bfloat16(observer)
    torch.manual_seed(0)
    spec = context.encoder_spec()
    predictor = GazePredictor(PredictorSpec(spec.width, 256)).cuda()
    compile_blocks(observer, refuse_fallback)
    compile_blocks(predictor, refuse_fallback)
    optimizer = adamw(predictor, 1e-4, 0.04)
    pixels = StepPixels(frames[:, None], gaze_frames)
    known = torch.ones(len(frames) // STEPS, STEPS, dtype=torch.bool, device="cuda")

    def step() -> Tensor:
        seen = encode_pixels(observer, pixels, frames.device)
        z, scene = (tokens.unflatten(0, (-1, STEPS)) for tokens in (seen.z_SND, seen.scene_SNG) if tokens is not None)
        with torch.autocast("cuda", torch.bfloat16):
            losses = predictor_losses(
                predictor, z, z, scene, known, known, rollout_steps=2, rollout_weight=1.0, scene_weight=0.1
            )
        losses.total.backward()
        clip_gradients(predictor, losses._asdict(), 1.0, "step")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return z.flatten(0, 1)

    return step


def _theirs(context: Context, frames: Tensor, gaze_frames: Tensor) -> Callable[[], Tensor]:
    assert context.upstream is not None
    spec, side = context.encoder_spec(), frames.shape[1]
    encoder = upstream_encoder(context.upstream, random_encoder(spec), spec, 2, side).cuda()
    gazelle = upstream_gazelle(context, random_gazelle(context.quick), gaze_frames.shape[1]).cuda()
    make = upstream_module(context.upstream, "src.models.ac_predictor").vit_ac_predictor
    predictor = make(
        img_size=(side, side), patch_size=16, num_frames=2 * STEPS, tubelet_size=2, embed_dim=spec.width,
        predictor_embed_dim=384, depth=12, num_heads=12, use_rope=True,
    ).cuda()  # fmt: skip
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=1e-4)
    clips, patches = len(frames) // STEPS, (side // 16) ** 2
    actions, states = (torch.randn(clips, STEPS, 7, device="cuda") for _ in range(2))

    def predict(z: Tensor) -> Tensor:
        steps = z.shape[1] // patches
        return layer_norm(predictor(z, actions[:, :steps], states[:, :steps]), (spec.width,))

    def step() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            with torch.no_grad():
                doubled = normalise(frames).unsqueeze(2).repeat(1, 1, 2, 1, 1)
                z = encoder(doubled)
                z = layer_norm(z, (spec.width,)).view(clips, STEPS * patches, spec.width)
                gazelle({"images": normalise(gaze_frames), "bboxes": [[None]] * len(gaze_frames)})
            forced = predict(z[:, :-patches])
            rolled = torch.cat((z[:, :patches], forced[:, :patches]), dim=1)
            rolled = torch.cat((rolled, predict(rolled)[:, -patches:]), dim=1)[:, patches:]
            loss = sum((said - z[:, patches : patches + said.shape[1]]).abs().mean() for said in (forced, rolled))
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return z.unflatten(1, (STEPS, patches)).flatten(0, 1).float()

    return step


def refuse_fallback(warning: str) -> None:
    """For `compile_blocks`: a figure called compiled must not be of something else."""
    raise AssertionError(warning)
