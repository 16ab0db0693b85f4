"""Measured gaze on the patch grid: where it lies, what is unknown, and that no step knows where the eyes went next."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwm.config import GazeFilesConfig
from hwm.data.clips import ClipRequest
from hwm.data.gaze_files import GazeFiles, gaze_in_box
from hwm.data.gaze_tracks import MAX_AGE_SEC, GazeTrack
from hwm.data.toyworld import load_truth
from hwm.data.transforms import centre_square
from hwm.data.video import CropBox, VideoInfo, num_grid_steps, probe_video
from hwm.models.measured_gaze import SIGMA, gaze_point_scene, gaze_point_weights
from hwm.models.observer import Observer
from hwm.models.predictor import GazePredictor, PredictorSpec
from hwm.models.world_model import TimeGrid, WorldModel
from hwm.tokens.cache import TokenCache
from hwm.tokens.measured import MeasuredSource, gaze_of_clip
from hwm.tokens.source import CachedSource, LiveSource, TokenBatch
from hwm.weights.load import load_encoder, load_gazelle

CPU = torch.device("cpu")
FPS = 4.0


def ego_video(world: Path, index: int = 0) -> VideoInfo:
    path = Path((world / "lists" / "train_ego.txt").read_text().split()[index])
    return probe_video(path if path.is_absolute() else world / "lists" / path)


def gaze_csv(folder: Path, video: VideoInfo) -> Path:
    return folder / "takes" / video.path.parts[-3] / "eye_gaze" / "general_eye_gaze_2d.csv"


@pytest.fixture
def gaze_folder(toy_world: Path, tmp_path: Path) -> Path:
    """A copy of the toy world's gaze files alone, to be changed."""
    for path in toy_world.glob("takes/*/eye_gaze/*.csv"):
        copy = tmp_path / "gaze" / path.relative_to(toy_world)
        copy.parent.mkdir(parents=True)
        shutil.copy(path, copy)
    return tmp_path / "gaze"


@pytest.fixture
def world(tiny_weights: Path) -> WorldModel:
    """A world model on measured gaze whose gate and heads are open, as after training."""
    torch.manual_seed(0)
    predictor = GazePredictor(PredictorSpec(32, 3, width=24, depth=2, num_heads=2, scene_normed=False))
    with torch.no_grad():
        predictor.gate_parameter.fill_(0.2)
        for head in (predictor.stack.predictor_proj, predictor.scene_out):
            head.weight.normal_(std=0.3)
    observer = Observer(load_encoder(tiny_weights / "encoder"), None)
    return WorldModel(observer, predictor, TimeGrid(FPS, "frame", 64, None, measured_gaze=True)).eval()


def source(world: WorldModel, folder: Path, *, point: bool = True) -> MeasuredSource:
    live = LiveSource(world.observer, world.grid, CPU, num_workers=0)
    return MeasuredSource(live, GazeFiles(folder, GazeFilesConfig()), world, scene=True, point=point)


def only(tokens: MeasuredSource | LiveSource | CachedSource, clip: ClipRequest) -> TokenBatch:
    return next(iter(tokens.batches([[clip]])))


def clip_of(video: VideoInfo, first_step: int, num_steps: int, box: CropBox | None = None) -> ClipRequest:
    return ClipRequest(video, first_step, num_steps, box or centre_square(video))


# The maps


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.999), st.floats(0, 0.999), st.integers(1, 20), st.integers(1, 20))
def test_weights_sum_to_one_and_are_highest_where_the_point_lies(x: float, y: float, rows: int, cols: int) -> None:
    points, known = torch.tensor([[x, y]]), torch.tensor([True])
    weights = gaze_point_weights(points, known, (rows, cols))
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert (weights >= 0).all()
    patch = min(int(y * rows), rows - 1) * cols + min(int(x * cols), cols - 1)
    near_a_border = min(abs(x * cols - round(x * cols)), abs(y * rows - round(y * rows))) < 1e-3
    assert weights.argmax().item() == patch or near_a_border


def test_weights_are_the_gaussian_integrated_over_each_patch() -> None:
    (weights,) = gaze_point_weights(torch.tensor([[0.5, 0.5]]), torch.tensor([True]), (10, 10))

    def mass(low: float, high: float) -> float:
        return 0.5 * (math.erf((high - 0.5) / SIGMA / 2**0.5) - math.erf((low - 0.5) / SIGMA / 2**0.5))

    assert weights.reshape(10, 10)[4, 6].item() == pytest.approx(mass(0.4, 0.5) * mass(0.6, 0.7), rel=1e-4)


def test_offsets_point_from_the_gaze_to_the_patch() -> None:
    (scene,) = gaze_point_scene(torch.tensor([[0.25, 0.5]]), torch.tensor([True]), (2, 4)).unbind(0)
    centres = torch.tensor([[(col + 0.5) / 4, (row + 0.5) / 2] for row in range(2) for col in range(4)])
    torch.testing.assert_close(scene[:, 1:], centres - torch.tensor([0.25, 0.5]))
    assert scene[:, 0].max() == 1


def test_unknown_is_zero_everywhere_and_never_nan() -> None:
    points, known = torch.zeros(2, 2), torch.tensor([False, True])
    weights, scene = gaze_point_weights(points, known, (4, 4)), gaze_point_scene(points, known, (4, 4))
    assert not weights[0].any()
    assert not scene[0].any()
    assert weights[1].sum().item() == pytest.approx(1)
    assert torch.isfinite(scene).all()


def test_points_follow_the_crop_and_are_unknown_outside_it() -> None:
    video = VideoInfo(Path("x.mp4"), 10.0, 200, 100, 30.0, "h264", 0, 1)
    track = GazeTrack(np.array([0.0, 0.1]), np.array([[0.5, 0.5], [0.05, 0.5]]), np.array([True, True]))
    times = np.array([0.0, 0.1])
    points, known = gaze_in_box(track, video, CropBox(top=25, left=50, height=50, width=100), times)
    np.testing.assert_allclose(points, [[0.5, 0.5], [0, 0]])
    assert known.tolist() == [True, False]
    points, known = gaze_in_box(track, video, CropBox(top=0, left=0, height=100, width=200), times)
    np.testing.assert_allclose(points, [[0.5, 0.5], [0.05, 0.5]])
    assert known.all()


# Steps of a clip


@pytest.mark.parametrize("first_step", [0, 5])
def test_each_step_has_the_gaze_of_its_own_time(toy_world: Path, world: WorldModel, first_step: int) -> None:
    """Against the file itself, read here by hand, and against the truth; a step more or less would be seen."""
    video = ego_video(toy_world)
    steps = num_grid_steps(video.duration_sec, FPS) - first_step - 1
    weights = only(source(world, toy_world), clip_of(video, first_step, steps)).gaze_BTN
    assert weights is not None
    rows = [line.split(",") for line in gaze_csv(toy_world, video).read_text().split()[1:]]
    truth = load_truth(toy_world, video.path.parts[-3])
    patches, near = set(), 0
    for step in range(steps):
        time = (first_step + step) / FPS
        x, y = next((float(r[2]), float(r[3])) for r in reversed(rows) if int(r[0]) * 0.1 <= time + 1e-9)
        patch = int(y / 1408 * 4) * 4 + int(x / 1408 * 4)
        assert weights[0, step].argmax().item() == patch
        patches.add(patch)
        frame = np.searchsorted(truth.times_sec, time + 1e-6) - 1
        near += int(np.hypot(*(truth.gaze_ego[frame] - np.array([x, y]) / 1408)) < 0.02)
    assert len(patches) > 1  # the eyes do move between patches, or the test would say nothing
    assert near > 0.8 * steps


def test_a_clip_has_its_gaze_in_its_own_crop(toy_world: Path) -> None:
    video, files = ego_video(toy_world), GazeFiles(toy_world, GazeFilesConfig())
    square = centre_square(video)
    box = CropBox(square.top + 4.5, square.left + 2, square.height / 2, square.width / 4 * 3)
    clip = clip_of(video, 0, num_grid_steps(video.duration_sec, FPS))
    whole, known = gaze_of_clip(files, clip, FPS)
    points, inside = gaze_of_clip(files, clip._replace(box=box), FPS)
    places = whole * [square.width, square.height] + [square.left, square.top]
    expected = (places - [box.left, box.top]) / [box.width, box.height]
    assert np.array_equal(inside, known & ((expected >= 0) & (expected < 1)).all(axis=1))
    assert 0 < inside.sum() < known.sum()
    np.testing.assert_allclose(points[inside], expected[inside], atol=1e-9)


def test_padding_missing_files_and_old_samples_are_unknown(
    toy_world: Path, world: WorldModel, gaze_folder: Path
) -> None:
    video = ego_video(toy_world)
    batch = only(source(world, toy_world), clip_of(video, -2, 5))
    assert batch.scene_known_BT.tolist() == batch.gaze_known_BT.tolist() == [[False, False, True, True, True]]
    assert batch.scene_BTNG is not None
    assert not batch.scene_BTNG[:, :2].any()
    csv = gaze_csv(gaze_folder, video)
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join(line for line in lines if line.split(",")[0] not in {"5", "6", "7", "8"}) + "\n")
    # Samples at 0, .1 … .4, then .9: the step at .5 has one of .1 s age, the one at .75 none that is young enough.
    assert MAX_AGE_SEC == 0.15
    batch = only(source(world, gaze_folder), clip_of(video, 0, 6))
    assert batch.scene_known_BT.tolist() == [[True, True, True, False, True, True]]
    csv.unlink()
    batch = only(source(world, gaze_folder), clip_of(video, 0, 6))
    assert not batch.scene_known_BT.any()
    assert batch.valid_BT.all()


def test_gaze_samples_after_the_last_step_change_nothing_and_earlier_ones_do(
    toy_world: Path, world: WorldModel, gaze_folder: Path
) -> None:
    video = ego_video(toy_world)
    rng = np.random.default_rng(0)
    original = gaze_csv(toy_world, video).read_text().splitlines()
    for last_step in (5, 8, 11):
        clip = clip_of(video, last_step - 3, 4)
        futures = []
        for kind in ("as it is", "noise after", "noise before"):
            lines = [original[0]]
            for line in original[1:]:
                number, clock, x, y = line.split(",")
                is_later = int(number) * 100 > last_step * 250
                if kind != "as it is" and is_later == (kind == "noise after"):
                    x, y = (str(value) for value in rng.uniform(0, 1408, 2))
                lines.append(",".join((number, clock, x, y)))
            gaze_csv(gaze_folder, video).write_text("\n".join(lines) + "\n")
            batch = only(source(world, gaze_folder), clip)
            assert batch.scene_known_BT.all()
            rolled = world.imagine(batch.z_BTND, batch.scene_BTNG, 3, batch.scene_known_BT, batch.valid_BT)
            futures.append((rolled.z_BKND, rolled.scene_BKNG, batch.gaze_BTN))
        assert all(torch.equal(one, other) for one, other in zip(futures[0], futures[1], strict=True))
        assert not any(torch.equal(one, other) for one, other in zip(futures[0], futures[2], strict=True))


def test_the_gaze_point_has_a_gradient_through_the_imagined_future(world: WorldModel) -> None:
    torch.manual_seed(0)
    points = torch.rand(4, 2).requires_grad_(True)
    known = torch.ones(1, 4, dtype=torch.bool)
    scene = gaze_point_scene(points, known[0], (4, 4))[None]
    z = torch.randn(1, 4, 16, 32)
    world.predictor.rollout(z, scene, 2, known).z_BKND.square()[..., 0].sum().backward()
    assert points.grad is not None
    assert (points.grad.abs().sum(1) > 0).all()
    points.grad = None
    known[0, 1] = False
    scene = gaze_point_scene(points, torch.ones(4, dtype=torch.bool), (4, 4))[None]
    world.predictor.rollout(z, scene, 2, known).z_BKND.square()[..., 0].sum().backward()
    assert points.grad is not None
    assert (points.grad.abs().sum(1) > 0).tolist() == [True, False, True, True]  # an unknown step is not read


def test_an_imagined_scene_token_of_measured_gaze_is_not_normalised(world: WorldModel) -> None:
    z, known = torch.randn(1, 3, 16, 32), torch.ones(1, 3, dtype=torch.bool)
    scene = gaze_point_scene(torch.rand(3, 2), known[0], (4, 4))[None]
    with torch.no_grad():
        world.predictor.scene_out.weight.zero_()
    imagined = world.imagine(z, scene, 2, known).scene_BKNG
    torch.testing.assert_close(imagined, scene[:, -1:].expand(-1, 2, -1, -1))  # a head at 0 keeps the gaze where it is


# Sources


def test_cached_latents_and_live_ones_get_the_same_gaze_and_the_cache_holds_none(
    toy_world: Path, world: WorldModel, gaze_folder: Path, tmp_path: Path
) -> None:
    clip = clip_of(ego_video(toy_world), -1, 6)
    live = only(source(world, gaze_folder), clip)
    cached = CachedSource(world.observer, world.grid, CPU, TokenCache(tmp_path / "t", world.grid, {"encoder": "e"}))
    files = GazeFiles(gaze_folder, GazeFilesConfig())
    joined = MeasuredSource(cached, files, world, scene=True, point=True)
    assert joined.prepare([clip.video], lambda done: None) == ()
    before = only(joined, clip)
    assert torch.equal(before.scene_BTNG, live.scene_BTNG)
    assert torch.equal(before.gaze_BTN, live.gaze_BTN)
    assert len(list((tmp_path / "t").rglob("*.safetensors"))) == 1  # the latents alone
    csv = gaze_csv(gaze_folder, clip.video)
    csv.write_text(csv.read_text().splitlines()[0] + "\n0,0,1400,1400\n1,100000,1400,1400\n2,200000,1400,1400\n")
    after = only(MeasuredSource(cached, GazeFiles(gaze_folder, GazeFilesConfig()), world, scene=True, point=True), clip)
    assert torch.equal(before.z_BTND, after.z_BTND)
    assert not torch.equal(before.scene_BTNG, after.scene_BTNG)


def test_the_point_can_be_measured_beside_an_estimated_scene(toy_world: Path, tiny_weights: Path) -> None:
    observer = Observer(load_encoder(tiny_weights / "encoder"), load_gazelle(tiny_weights / "gazelle"))
    grid = TimeGrid(FPS, "frame", 64, 56)
    world = WorldModel(observer, GazePredictor(PredictorSpec(32, 16, 24, 1, 2)), grid)
    live = LiveSource(observer, grid, CPU, num_workers=0)
    joined = MeasuredSource(live, GazeFiles(toy_world, GazeFilesConfig()), world, scene=False, point=True)
    clip = clip_of(ego_video(toy_world), -1, 4)
    own, both = only(live, clip), only(joined, clip)
    assert torch.equal(own.scene_BTNG, both.scene_BTNG)
    assert torch.equal(own.scene_known_BT, both.scene_known_BT)
    assert not torch.equal(own.gaze_BTN, both.gaze_BTN)


def test_a_world_model_says_which_gaze_it_takes_and_refuses_a_predictor_of_the_other(tiny_weights: Path) -> None:
    encoder = load_encoder(tiny_weights / "encoder")
    measured = TimeGrid(FPS, "frame", 64, None, measured_gaze=True)
    assert (measured.gaze, TimeGrid(FPS, "frame", 64, 56).gaze, TimeGrid(FPS, "frame", 64, None).gaze) == (
        "measured",
        "estimated",
        "none",
    )
    for width, normed in ((16, True), (3, True), (None, True)):
        predictor = GazePredictor(PredictorSpec(32, width, 24, 1, 2, scene_normed=normed))
        with pytest.raises(ValueError, match="does not go with gaze measured"):
            WorldModel(Observer(encoder, None), predictor, measured)
