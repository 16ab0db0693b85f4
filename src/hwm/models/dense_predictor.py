"""V-JEPA 2.1's predictor: it also predicts the tokens that it sees, and may read and predict several encoder levels.

Context levels [B, L, levels · D] with their ids, ids of the targets → predictions [B, M, O]. O is levels · D for the
undistilled models; the distilled ones (one level in) predict latents of their teacher, 1664 wide.
Source: `app/vjepa_2_1` of facebookresearch/vjepa2; paper 2603.14482. Positions are raw indices here, unlike in the
encoder.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from hwm.models.masked_predictor import MaskedPredictor, MaskedPredictorSpec
from hwm.models.rope import INTERLEAVED, RopeForm


class DensePredictor(MaskedPredictor):
    """Predictor of V-JEPA 2.1: `forward` gives the targets' rows, `forward_all` the context's before them."""

    version: ClassVar[str] = "2.1"
    rope_form: ClassVar[RopeForm] = INTERLEAVED

    def _make_embed(self) -> nn.Module:
        spec = self.spec
        if spec.num_levels == 1:
            return super()._make_embed()
        joined = nn.Linear(spec.num_levels * spec.in_width, spec.in_width)
        return nn.Sequential(joined, nn.GELU(), nn.Linear(spec.in_width, spec.width))

    def _make_output(self) -> None:
        spec = self.spec
        out_width = spec.out_width or spec.num_levels * spec.in_width
        self.predictor_proj = nn.Linear(spec.width, out_width)
        self.predictor_proj_context = nn.Linear(spec.width, out_width)
        self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, spec.width))

    def _tell_modality(self, x_BKE: Tensor, image: bool) -> Tensor:
        return x_BKE + (self.img_mod_embed if image else self.video_mod_embed)

    def _project(self, hidden_BKE: Tensor, num_context: int) -> Tensor:
        context_BLE, target_BME = hidden_BKE[:, :num_context], hidden_BKE[:, num_context:]
        return torch.cat((self.predictor_proj_context(context_BLE), self.predictor_proj(target_BME)), dim=1)


def build_masked_predictor(spec: MaskedPredictorSpec) -> MaskedPredictor:
    """A new masked predictor of the spec's version."""
    return DensePredictor(spec) if spec.version == DensePredictor.version else MaskedPredictor(spec)
