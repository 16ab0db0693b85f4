"""What each training stage minimises: models and batches in, named scalar losses out.

Stage 1 (`predictor_losses`): V-JEPA 2-AC's teacher-forced + rolled-out L1 on layer-normed latents, plus the scene
tokens. The roll-out reuses the keys and values of the teacher-forced pass, which is exact because no step depends on a
later one. `drop_gaze` makes "gaze unknown" part of training.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hwm.losses import PredictorLosses, masked_l1
from hwm.models.predictor import GazePredictor


def predictor_losses(
    predictor: GazePredictor,
    z_BTND: Float[Tensor, "b t n d"],
    target_BTND: Float[Tensor, "b t n d"],
    scene_BTNG: Float[Tensor, "b t n g"] | None,
    known_BT: Bool[Tensor, "b t"],
    valid_BT: Bool[Tensor, "b t"],
    *,
    rollout_steps: int,
    rollout_weight: float,
    scene_weight: float,
) -> PredictorLosses:
    """Stage-1 loss of a batch of clips.

    Args:
        predictor: the model; called once over the clip and `rollout_steps` − 1 times over single steps.
        z_BTND: layer-normed latents of the observed steps.
        target_BTND: layer-normed latents of the target encoder (the same tensor where the encoders are one).
        scene_BTNG: scene tokens, or None for the no-gaze model.
        known_BT: where gaze is known (after `drop_gaze`).
        valid_BT: false for padding.
        rollout_steps: R; the last R steps of the clip are imagined from the T − R before them.
        rollout_weight: weight of the rolled-out L1.
        scene_weight: weight of the L1 on scene tokens.
    """
    prediction, past = predictor.teacher_forced(z_BTND, scene_BTNG, known_BT, valid_BT)
    counts = valid_BT[:, 1:] & valid_BT[:, :-1]
    teacher_forced = masked_l1(prediction.z_BTND[:, :-1], target_BTND[:, 1:], counts)

    observed = z_BTND.shape[1] - rollout_steps
    known_B1 = known_BT[:, observed - 1 : observed]
    imagined = predictor.continue_from(prediction.step(observed - 1), past.first(observed), rollout_steps, known_B1)
    has_past = valid_BT[:, observed - 1 : observed] & valid_BT[:, observed:]
    rollout = masked_l1(imagined.z_BKND, target_BTND[:, observed:], has_past)

    scene = torch.zeros_like(teacher_forced)
    if scene_BTNG is not None and prediction.scene_BTNG is not None and imagined.scene_BKNG is not None:
        both = known_BT[:, 1:] & known_BT[:, :-1] & counts
        scene = masked_l1(prediction.scene_BTNG[:, :-1], scene_BTNG[:, 1:], both)
        scene = scene + masked_l1(imagined.scene_BKNG, scene_BTNG[:, observed:], known_B1 & known_BT[:, observed:])
    total = teacher_forced + rollout_weight * rollout + scene_weight * scene
    return PredictorLosses(total, teacher_forced, rollout, scene)


def drop_gaze(known_BT: Bool[Tensor, "b t"], probability: float, rng: np.random.Generator) -> Bool[Tensor, "b t"]:
    """Where gaze stays known in training: half of the hit clips lose all of it, half lose a suffix.

    Args:
        known_BT: steps whose gaze is known; it never is on padding.
        probability: share of clips that are hit.
        rng: drawn from (seed, epoch, sample ids), so that a resumed run draws the same.
    """
    num_clips, num_steps = known_BT.shape
    hit, whole = rng.random(num_clips) < probability, rng.random(num_clips) < 0.5
    start = np.where(hit, np.where(whole, 0, rng.integers(1, num_steps, num_clips)), num_steps)
    kept = torch.from_numpy(np.arange(num_steps)[None] < start[:, None]).to(known_BT.device)
    return kept & known_BT
