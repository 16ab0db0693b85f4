"""How well a world model foresees latents, beside copying the last observed step.

Per batch of clips: the last observed latents, K imagined steps and the K true ones → sums that `WorldScores` turns into
named numbers. Skill is 1 − error / error of the copy: 0 is no better than copying, 1 is perfect.

    skill_k                    over all patches and clips, k steps ahead
    near/, elsewhere/skill_k   within `NEAR_GAZE` of the place most looked at (at the foreseen time), and elsewhere
    moving/, static/skill_k    the half of the clips whose latents change most, and the other half
    drift/error_k              error k steps ahead over the error one step ahead
    drift/norm_k               how much imagined patches differ among each other, over how much true ones do
    retrieval/top1_k, rank_k   is the true step the nearest of all true steps of its video?

The norm of a token says nothing of drift, because latents are layer-normed: it is fixed. What a roll-out loses when it
blurs is the difference between patches, so `drift/norm` is the norm after the mean over patches is taken away.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hwm.evaluation.skill_by_take import TakeErrors

NEAR_GAZE = 0.15
"""Distance, in sides of the crop, up to which a patch's centre counts as near the place most looked at."""


class ClipId(NamedTuple):
    """Where the K foreseen steps of a clip are."""

    video: str
    first_step: int
    """Grid step of the first step of the clip."""
    take: str
    """What the video shows; videos of one take are no two independent observations."""


def near_gaze(gaze_BKN: Float[Tensor, "b k n"], grid: tuple[int, int]) -> Bool[Tensor, "b k n"]:
    """Which patches lie within `NEAR_GAZE` of the patch with the highest gaze weight (always that patch itself)."""
    rows, cols = grid
    index_N = torch.arange(rows * cols, device=gaze_BKN.device)
    place_N2 = torch.stack([(index_N // cols + 0.5) / rows, (index_N % cols + 0.5) / cols], dim=1)
    return torch.cdist(place_N2, place_N2)[gaze_BKN.argmax(dim=2)] <= NEAR_GAZE


def spread(z_BKND: Float[Tensor, "b k n d"]) -> Float[Tensor, "b k"]:
    """Norm of the patches' latents around their mean over the patches of the step."""
    return torch.linalg.vector_norm(z_BKND - z_BKND.mean(dim=2, keepdim=True), dim=(2, 3))


def retrieval_ranks(
    imagined_QL: Float[Tensor, "q l"], candidates_ML: Float[Tensor, "m l"], true_Q: Tensor
) -> Float[Tensor, " q"]:
    """Rank of each true candidate by L1 distance, 0 (nearest) … M − 1; ties count half.

    Args:
        imagined_QL: imagined steps, flattened.
        candidates_ML: true steps, the right one of each query among them.
        true_Q: index of the right one.
    """
    distance_QM = torch.cdist(imagined_QL, candidates_ML, p=1)
    true_Q1 = distance_QM.gather(1, true_Q[:, None])
    return (distance_QM < true_Q1).sum(1) + 0.5 * ((distance_QM == true_Q1).sum(1) - 1)


class WorldScores:
    """Adds up batches of clips; the clips of one video must come one after another.

    Args:
        grid: rows and columns of patches.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        self._grid = grid
        self._parts: dict[str, list[Tensor]] = {}
        self._takes: list[str] = []
        self._video: str | None = None
        self._true: dict[int, Tensor] = {}
        self._asked: list[tuple[int, int, Tensor]] = []

    def add(
        self,
        ids: Sequence[ClipId],
        imagined_BKND: Float[Tensor, "b k n d"],
        target_BTND: Float[Tensor, "b t n d"],
        gaze_BTN: Float[Tensor, "b t n"] | None,
        known_BT: Bool[Tensor, "b t"],
    ) -> None:
        """Score one batch.

        Args:
            ids: one a clip.
            imagined_BKND: the last K of the T steps, imagined from the T − K before them.
            target_BTND: the true latents of all steps.
            gaze_BTN: where people look at each step; None where nobody can say.
            known_BT: where that is known.
        """
        self._takes += [clip.take for clip in ids]
        observed = target_BTND.shape[1] - imagined_BKND.shape[1]
        true_BKND = target_BTND[:, observed:]
        error_BKN = (imagined_BKND - true_BKND).abs().mean(dim=3)
        copy_BKN = (target_BTND[:, observed - 1 : observed] - true_BKND).abs().mean(dim=3)
        self._keep("error", error_BKN.mean(dim=2))
        self._keep("copy", copy_BKN.mean(dim=2))
        self._keep("imagined spread", spread(imagined_BKND))
        self._keep("true spread", spread(true_BKND))
        if gaze_BTN is not None:
            known_BK1 = known_BT[:, observed:, None]
            near_BKN = near_gaze(gaze_BTN[:, observed:], self._grid)
            for name, here_BKN in (("near", near_BKN & known_BK1), ("elsewhere", ~near_BKN & known_BK1)):
                self._keep(f"{name} error", (error_BKN * here_BKN).sum(dim=2))
                self._keep(f"{name} copy", (copy_BKN * here_BKN).sum(dim=2))
        for clip, imagined_KND, target_TND in zip(ids, imagined_BKND, target_BTND, strict=True):
            self._ask(clip, imagined_KND, target_TND)

    def result(self) -> dict[str, float]:
        """The named numbers; one that cannot be told (nothing changes, no gaze is known) is left out."""
        self._answer()
        parts = self._whole()
        numbers: dict[str, Tensor] = {}
        for place, (error_SK, copy_SK) in _by_place(parts).items():
            numbers[f"{place}skill"] = 1 - error_SK.sum(0) / copy_SK.sum(0)
        numbers["drift/error"] = parts["error"].sum(0) / parts["error"].sum(0)[0]
        numbers["drift/norm"] = parts["imagined spread"].sum(0) / parts["true spread"].sum(0)
        if "rank" in parts:
            numbers["retrieval/top1"] = (parts["rank"] == 0).double().mean(0)
            numbers["retrieval/rank"] = parts["rank"].mean(0)
        named = {f"{name}_{k}": float(v) for name, values in numbers.items() for k, v in enumerate(values.tolist(), 1)}
        return {name: value for name, value in named.items() if abs(value) < float("inf")}  # NaN and inf are left out

    def errors(self) -> TakeErrors:
        """What the skill of each place is made of, by take."""
        takes = sorted(set(self._takes))
        take_of_S = torch.tensor([takes.index(take) for take in self._takes])
        sums = {}
        for place, errors in _by_place(self._whole()).items():
            both_S2K = torch.stack(errors, dim=1)
            sums[place] = torch.zeros(len(takes), *both_S2K.shape[1:]).to(both_S2K).index_add_(0, take_of_S, both_S2K)
        return TakeErrors(tuple(takes), {place: sums_P2K.numpy() for place, sums_P2K in sums.items()})

    def _whole(self) -> dict[str, Tensor]:
        return {name: torch.cat(values) for name, values in self._parts.items()}

    def _keep(self, name: str, values: Tensor) -> None:
        self._parts.setdefault(name, []).append(values.double().cpu())

    def _ask(self, clip: ClipId, imagined_KND: Tensor, target_TND: Tensor) -> None:
        """Keep what retrieval needs until the clips of the video are complete."""
        if clip.video != self._video:
            self._answer()
            self._video = clip.video
        steps = range(clip.first_step, clip.first_step + len(target_TND))
        self._true |= dict(zip(steps, target_TND.flatten(1).float().cpu(), strict=True))
        first = steps[len(target_TND) - len(imagined_KND)]
        self._asked.append((first, len(imagined_KND), imagined_KND.flatten(1).float().cpu()))

    def _answer(self) -> None:
        """Relative ranks [clips, K] of the video's imagined steps, 0 (nearest) … 1 (farthest)."""
        if len(self._true) > 1:
            place = {step: index for index, step in enumerate(self._true)}
            candidates_ML = torch.stack(list(self._true.values()))
            for first, count, imagined_KL in self._asked:
                true_K = torch.tensor([place[step] for step in range(first, first + count)])
                rank_K = retrieval_ranks(imagined_KL, candidates_ML, true_K)
                self._keep("rank", rank_K[None] / (len(place) - 1))
        self._true, self._asked = {}, []


def _by_place(parts: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Errors of the world model and of the copy, [clips, K] each, by place; zero where a clip is not of the place."""
    error_SK, copy_SK = parts["error"], parts["copy"]
    change_S1 = copy_SK.mean(dim=1, keepdim=True)
    moving_S1 = change_S1 > change_S1.median()
    places = {"": (error_SK, copy_SK)}
    for name in ("near", "elsewhere"):
        if f"{name} copy" in parts:
            places[f"{name}/"] = (parts[f"{name} error"], parts[f"{name} copy"])
    places["moving/"] = (error_SK * moving_S1, copy_SK * moving_S1)
    places["static/"] = (error_SK * ~moving_S1, copy_SK * ~moving_S1)
    return places
