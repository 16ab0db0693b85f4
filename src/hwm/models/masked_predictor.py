"""V-JEPA 2's masked predictor: latents of the seen tokens → latents of the tokens that were not seen.

Context latents [B, L, D] with their ids, ids of the targets [B, M] → predicted latents [B, M, D].
Source: `VisionTransformerPredictor` of facebookresearch/vjepa2 (`mask_tokens`, RoPE): project, put a learned mask
token at every target, attend among context and targets together, project back. Ids are flat: (t·H + row)·W + column.
Upstream sorts the tokens by id first; full attention does not care about order, so here they stay as they come, and
any grid will do (upstream's ids are read on a square grid only). `hwm.models.dense_predictor` is V-JEPA 2.1's.

`anticipate` is upstream's way to use it as a world model: targets after the end of the clip. The released predictors
were trained to fill in blocks of a clip, so the future alone is outside of what they were trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hwm.errors import ConfigError
from hwm.models.layers import Block, check_sizes, hidden_width, init_linear_and_norm, rescale_residuals
from hwm.models.rope import TILED, RopeForm, rope_table, split_ids


@dataclass(frozen=True)
class MaskedPredictorSpec:
    """Sizes of a masked predictor.

    Attributes:
        in_width: latent width D of the encoder.
        width: width E inside (released: 384).
        depth: transformer blocks.
        num_heads: attention heads.
        num_mask_tokens: learned mask tokens to choose from (released: 10).
        mlp_ratio: hidden width of the MLP over E.
        version: which V-JEPA it is of; `hwm.models.dense_predictor.build_masked_predictor` makes the module that fits.
        num_levels: encoder levels a context token brings (2.1: 4, distilled models 1).
        out_width: width of a prediction; None is levels · D. The distilled 2.1 models predict their teacher's latents.
    """

    in_width: int
    width: int = 384
    depth: int = 12
    num_heads: int = 12
    num_mask_tokens: int = 10
    mlp_ratio: float = 4.0
    version: Literal["2", "2.1"] = "2"
    num_levels: int = 1
    out_width: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if self.version == "2" and (self.num_levels != 1 or self.out_width is not None):
            raise ConfigError("the masked predictor of V-JEPA 2 has one level in and out, as wide as the encoder")
        sizes = {"in_width": self.in_width, "depth": self.depth, "mlp_ratio": self.mlp_ratio}
        sizes |= {"num_levels": self.num_levels, "out_width": self.out_width or self.in_width}
        check_sizes("masked predictor", self.width, self.num_heads, num_mask_tokens=self.num_mask_tokens, **sizes)


class MaskedPredictor(nn.Module):
    """Masked predictor; new ones start from V-JEPA 2's initial weights, mask tokens at zero."""

    version: ClassVar[str] = "2"
    rope_form: ClassVar[RopeForm] = TILED

    def __init__(self, spec: MaskedPredictorSpec) -> None:
        super().__init__()
        if spec.version != self.version:
            raise ConfigError("the masked predictor's version does not fit", expected=self.version, found=spec.version)
        self.spec = spec
        hidden = hidden_width(spec.width, spec.mlp_ratio)
        self.predictor_embed = self._make_embed()
        self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, spec.width) for _ in range(spec.num_mask_tokens))
        self.predictor_blocks = nn.ModuleList(Block(spec.width, spec.num_heads, hidden) for _ in range(spec.depth))
        self.predictor_norm = nn.LayerNorm(spec.width, eps=1e-6)
        self._make_output()
        self.apply(init_linear_and_norm)
        rescale_residuals(self.predictor_blocks)

    def forward(
        self,
        context_BLD: Float[Tensor, "b l c"],
        context_positions_BL: Int[Tensor, "b l"],
        target_positions_BM: Int[Tensor, "b m"],
        grid: tuple[int, int],
        mask_index: int = 0,
        image: bool = False,
    ) -> Float[Tensor, "b m o"]:
        """Predict the latents at the targets.

        Args:
            context_BLD: encoder latents of the seen tokens, as the encoder gives them (with several levels: as its
                `levels` gives them, C = levels · D).
            context_positions_BL: their flat ids.
            target_positions_BM: flat ids to predict; any step, after the clip too.
            grid: (H, W) that the ids refer to.
            mask_index: which mask token stands in for the targets. The released predictors trained number 0 alone;
                upstream's evaluation uses 1, a token that is still zero.
            image: the tokens are of a picture (V-JEPA 2.1 alone).

        Returns:
            Predictions in the layer-normed target space (the loss compares with layer-normed target latents).

        Raises:
            ConfigError: there is no such mask token.
        """
        everything = self.forward_all(context_BLD, context_positions_BL, target_positions_BM, grid, mask_index, image)
        return everything[:, context_BLD.shape[1] :]

    def forward_all(
        self,
        context_BLD: Float[Tensor, "b l c"],
        context_positions_BL: Int[Tensor, "b l"],
        target_positions_BM: Int[Tensor, "b m"],
        grid: tuple[int, int],
        mask_index: int = 0,
        image: bool = False,
    ) -> Float[Tensor, "b k o"]:
        """As `forward`, for the context too: L rows of the context, then M rows of the targets.

        The outputs at the context serve a loss on seen tokens, as in V-JEPA 2.1.
        """
        self.check_mask_index(mask_index)
        context_BLE = self.predictor_embed(context_BLD)
        mask_BME = self.mask_tokens[mask_index].to(context_BLE.dtype).expand(*target_positions_BM.shape, -1)
        x_BKE = self._tell_modality(torch.cat((context_BLE, mask_BME), dim=1), image)
        positions = split_ids(torch.cat((context_positions_BL, target_positions_BM), dim=1), grid)
        dtype = torch.promote_types(self.predictor_norm.weight.dtype, torch.float32)
        rope = rope_table(positions.to(dtype), self.spec.width // self.spec.num_heads, self.rope_form)
        for block in self.predictor_blocks:
            x_BKE = block(x_BKE, rope)
        return self._project(self.predictor_norm(x_BKE), context_BLD.shape[1])

    def _make_embed(self) -> nn.Module:
        return nn.Linear(self.spec.in_width, self.spec.width)

    def _make_output(self) -> None:
        self.predictor_proj = nn.Linear(self.spec.width, self.spec.in_width)

    def _tell_modality(self, x_BKE: Tensor, image: bool) -> Tensor:
        if image:
            raise ConfigError("the masked predictor of V-JEPA 2 knows no pictures", fix="repeat the frame to a tubelet")
        return x_BKE

    def _project(self, hidden_BKE: Tensor, num_context: int) -> Tensor:
        """Outputs of the context's rows, then of the targets'."""
        del num_context
        return self.predictor_proj(hidden_BKE)

    def check_mask_index(self, mask_index: int) -> None:
        """Refuse the number of a mask token that is not there.

        Raises:
            ConfigError: there is no such mask token.
        """
        if not 0 <= mask_index < self.spec.num_mask_tokens:
            raise ConfigError(
                "the masked predictor has no such mask token",
                expected=f"mask_index 0..{self.spec.num_mask_tokens - 1}",
                found=str(mask_index),
            )


def skipped_steps(anticipation_sec: float, fps: float, tubelet_size: int) -> int:
    """Steps between a clip's last step and the first predicted one: whole steps within the time, as upstream."""
    return int(anticipation_sec * fps / tubelet_size)


def predicted_steps(num_output_frames: int, tubelet_size: int) -> int:
    """Steps predicted in one round: whole tubelets of the asked frames, at least one."""
    return max(num_output_frames // tubelet_size, 1)


def anticipate(
    predictor: MaskedPredictor,
    z_BLD: Float[Tensor, "b l d"],
    anticipation_sec: Sequence[float],
    fps: float,
    grid: tuple[int, int],
    tubelet_size: int = 2,
    num_output_frames: int = 2,
    num_rounds: int = 1,
    mask_index: int = 1,
) -> Float[Tensor, "b k d"]:
    """Tokens of the released anticipation harness: the clip's latents followed by predicted future ones.

    Args:
        predictor: V-JEPA 2's masked predictor.
        z_BLD: latents of the whole clip, L = T·N, as the encoder gives them.
        anticipation_sec: seconds from the end of each clip to the first predicted step.
        fps: frames a second of the clip.
        grid: (H, W) of the patches.
        tubelet_size: frames of a latent step.
        num_output_frames: frames predicted in one round; at least one step.
        num_rounds: rounds; each drops as many old tokens as the last one predicted and appends those. As upstream
            does, the ids are not moved along: the second round predicts the same ids from shifted latents.
        mask_index: see `MaskedPredictor.forward`; 1 is what upstream's harness uses.

    Returns:
        Raw encoder latents (not layer-normed) ‖ predictions of each round (in layer-normed space), as upstream.

    Raises:
        ConfigError: not one anticipation time for each clip.
    """
    num_clips, num_tokens, _ = z_BLD.shape
    if len(anticipation_sec) != num_clips:
        raise ConfigError(
            "anticipation times do not match the clips", expected=str(num_clips), found=str(len(anticipation_sec))
        )
    num_patches = grid[0] * grid[1]
    steps = [skipped_steps(seconds, fps, tubelet_size) for seconds in anticipation_sec]
    num_predicted = num_patches * predicted_steps(num_output_frames, tubelet_size)
    first_B = num_tokens + num_patches * torch.tensor(steps, device=z_BLD.device)
    target_BM = first_B[:, None] + torch.arange(num_predicted, device=z_BLD.device)
    context_BL = torch.arange(num_tokens, device=z_BLD.device).expand(num_clips, -1)
    tokens, window = [z_BLD], z_BLD
    for _ in range(num_rounds):
        predicted = predictor(window, context_BL, target_BM, grid, mask_index)
        tokens.append(predicted)
        window = torch.cat((window[:, num_predicted:], predicted), dim=1)
    return torch.cat(tokens, dim=1)
