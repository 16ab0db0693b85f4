"""Tokens that are made up, for tests of what is done with them: no video is decoded and nothing is encoded."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

import torch

from hwm.config import PretrainConfig
from hwm.data.clips import ClipRequest
from hwm.data.exclusions import Exclusion
from hwm.data.transforms import centre_square
from hwm.data.video import VideoInfo
from hwm.engine.assemble import new_world
from hwm.losses import layer_normed
from hwm.models.layers import Block
from hwm.models.world_model import WorldModel
from hwm.tokens.source import Plan, TokenBatch


def open_world(config: PretrainConfig) -> WorldModel:
    """An untrained world model whose gate and heads are open, so that everything it is given matters."""
    world = new_world(config).world
    torch.manual_seed(0)
    predictor = world.predictor.eval()
    with torch.no_grad():
        predictor.gate_parameter.fill_(0.05)
        predictor.stack.predictor_proj.weight.normal_(std=0.2)
        for block in predictor.stack.predictor_blocks:  # new blocks hardly attend: what is attended would not matter
            assert isinstance(block, Block)
            block.attn.qkv.weight.mul_(10)
            block.attn.proj.weight.mul_(10)
        if world.has_gaze:
            predictor.scene_out.weight.normal_(std=0.2)
    return world


def clip_of(name: str, first_step: int, num_steps: int) -> ClipRequest:
    video = VideoInfo(Path(f"{name}.mp4"), 30.0, 64, 64, 8.0, "h264", 0, 1)
    return ClipRequest(video, first_step, num_steps, centre_square(video))


class KeptSource:
    """A `TokenSource` of random tokens, a function of the seed and the clip; gaze is unknown at some steps.

    Padding, and scene tokens that are not known, are noise: nobody may read them.
    """

    def __init__(self, world: WorldModel, num_patches: int, seed: int = 0) -> None:
        self._width, self._scene = world.predictor.spec.latent_width, world.predictor.spec.scene_width or 3
        self._num_patches, self._seed = num_patches, seed

    def of(self, clip: ClipRequest) -> TokenBatch:
        """The tokens of one clip."""
        named = f"{self._seed} {clip.video.path} {clip.first_step}".encode()
        rng = torch.Generator().manual_seed(crc32(named))
        steps, patches = clip.num_steps, self._num_patches
        z, scene = (
            layer_normed(torch.randn(1, steps, patches, width, generator=rng)) for width in (self._width, self._scene)
        )
        gaze = (3 * torch.randn(1, steps, patches, generator=rng)).softmax(dim=2)
        valid = (torch.arange(clip.first_step, clip.first_step + steps) >= 0)[None]
        scene_known, gaze_known = (valid & (torch.rand(1, steps, generator=rng) < 0.7) for _ in range(2))
        gaze = gaze * gaze_known[..., None]
        return TokenBatch(z, scene, gaze, valid, scene_known, gaze_known)

    def prepare(
        self, videos: Sequence[VideoInfo], on_progress: Callable[[int], None], crops: object = None
    ) -> tuple[Exclusion, ...]:
        return ()

    def batches(self, plan: Plan) -> Iterator[TokenBatch]:
        for clips in plan:
            yield TokenBatch(*(torch.cat(parts) for parts in zip(*map(self.of, clips), strict=True)))
