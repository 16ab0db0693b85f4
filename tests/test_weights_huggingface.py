"""Hugging Face's layout: the same numbers as transformers in both directions, and a config that must not lie."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hwm.errors import WeightsError
from hwm.models import dinov2
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.masked_predictor import MaskedPredictor, MaskedPredictorSpec
from hwm.models.probe import AttentiveProbe
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
from hwm.weights import huggingface_config as configs
from hwm.weights import load
from hwm.weights.huggingface_read import INDEX_NAME, is_huggingface
from hwm.weights.huggingface_write import (
    dinov2_to_huggingface,
    save_huggingface,
    to_huggingface,
    to_huggingface_classification,
)

GOLDEN = Path(__file__).parent / "golden"
CLOSE = 1e-5
"""Largest difference, relative to the largest value, that counts as the same numbers in float32."""


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    module = pytest.importorskip("transformers", reason="transformers is not installed")
    module.logging.disable_progress_bar()
    return module


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def randomised(module: nn.Module, seed: int = 0) -> Any:
    """Weights that keep the signal's size, so that every tensor of the model matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and not name.endswith(("tokens", "token", "position_embeddings", "pos_embed")):
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise + float("norm" in name and name.endswith("weight")))
    return module.eval()


VJEPA2_SIZES: list[dict[str, Any]] = [
    {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8, "crop_size": 32,
        "frames_per_clip": 6, "pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 2,
        "mlp_ratio": 4.0, "num_pooler_layers": 2,
    },
    {
        # As in ViT-g: a head width that RoPE does not fill, and an MLP's ratio that is not exact in binary.
        "hidden_size": 44, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "crop_size": 20,
        "frames_per_clip": 4, "pred_hidden_size": 36, "pred_num_attention_heads": 3, "pred_num_hidden_layers": 1,
        "mlp_ratio": 48 / 11, "pred_mlp_ratio": 2.0, "pred_num_mask_tokens": 3, "num_pooler_layers": 0,
    },
    {
        "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8, "patch_size": 16, "crop_size": 48,
        "frames_per_clip": 3, "tubelet_size": 3, "pred_hidden_size": 32, "pred_num_attention_heads": 1,
        "pred_num_hidden_layers": 3, "num_pooler_layers": 1,
    },
]  # fmt: skip


def new_vjepa2(transformers: ModuleType, sizes: dict[str, Any], name: str = "VJEPA2Model", **more: Any) -> Any:
    return randomised(getattr(transformers, name)(transformers.VJEPA2Config(**sizes, **more)))


def clip(config: Any, seed: int = 1) -> Tensor:
    """Two clips of the size that the config names [B, F, R, Y, X], as transformers takes them."""
    shape = (2, config.frames_per_clip, 3, config.crop_size, config.crop_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masks(config: Any) -> tuple[Tensor, Tensor]:
    """Ids of seen and hidden tokens [B, L] and [B, M]; other ones in each clip, not sorted."""
    side = config.crop_size // config.patch_size
    num_tokens = side * side * config.frames_per_clip // config.tubelet_size
    generator = torch.Generator().manual_seed(2)
    ids = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(2)])
    return ids[:, : num_tokens // 2], ids[:, num_tokens // 2 : num_tokens - 1]


@torch.no_grad()
def assert_same_vjepa2(theirs: Any, encoder: VJEPA2Encoder, predictor: MaskedPredictor) -> None:
    config = theirs.config
    video_BFRYX, (context_BL, target_BM) = clip(config), masks(config)
    z_BLD = encoder(video_BFRYX.transpose(1, 2))
    alone = theirs(video_BFRYX, skip_predictor=True)
    assert alone.predictor_output is None
    assert difference(z_BLD, alone.last_hidden_state) <= CLOSE
    both = theirs(video_BFRYX, context_mask=[context_BL], target_mask=[target_BM])
    side = config.crop_size // config.patch_size
    seen_BLD = z_BLD.take_along_dim(context_BL[:, :, None], 1)
    # transformers always takes mask token 1.
    predicted = predictor(seen_BLD, context_BL, target_BM, (side, side), mask_index=1)
    assert difference(predicted, both.predictor_output.last_hidden_state) <= CLOSE


@pytest.mark.parity
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("sizes", VJEPA2_SIZES, ids=["l", "g", "tubelet3"])
def test_vjepa2_from_transformers(
    tmp_path: Path, transformers: ModuleType, sizes: dict[str, Any], attention: str
) -> None:
    theirs = new_vjepa2(transformers, sizes, attn_implementation=attention)
    theirs.save_pretrained(tmp_path)
    encoder, predictor = load.load_encoder(tmp_path), load.load_masked_predictor(tmp_path)
    assert encoder.spec.num_heads == sizes["num_attention_heads"]
    assert predictor.spec.num_heads == sizes["pred_num_attention_heads"]
    assert_same_vjepa2(theirs, encoder, predictor)


@pytest.mark.parity
@pytest.mark.parametrize("sizes", VJEPA2_SIZES, ids=["l", "g", "tubelet3"])
def test_vjepa2_to_transformers(tmp_path: Path, transformers: ModuleType, sizes: dict[str, Any]) -> None:
    hidden, inner = sizes["hidden_size"], sizes["pred_hidden_size"]
    spec = EncoderSpec(
        hidden, sizes["num_hidden_layers"], sizes["num_attention_heads"], sizes.get("mlp_ratio", 4.0),
        sizes["patch_size"], sizes.get("tubelet_size", 2),
    )  # fmt: skip
    encoder = randomised(VJEPA2Encoder(spec))
    predictor = randomised(MaskedPredictor(MaskedPredictorSpec(hidden, inner, 2, sizes["pred_num_attention_heads"], 4)))
    model = to_huggingface(encoder, predictor, sizes["crop_size"], sizes["frames_per_clip"])
    save_huggingface(model, tmp_path)
    theirs, info = transformers.VJEPA2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_vjepa2(theirs.eval(), encoder, predictor)
    again = load.load_encoder(tmp_path)
    assert again.spec.width == spec.width
    assert all(torch.equal(tensor, encoder.state_dict()[key]) for key, tensor in again.state_dict().items())
    tokens = load.load_masked_predictor(tmp_path).state_dict()
    assert all(torch.equal(tensor, predictor.state_dict()[key]) for key, tensor in tokens.items())


@pytest.mark.parity
@torch.no_grad()
def test_transformers_reads_positions_on_the_grid_of_its_config(tmp_path: Path, transformers: ModuleType) -> None:
    """Ours on the clip's own grid: the two agree where both grids give a token the same row, column and step."""
    theirs = new_vjepa2(transformers, VJEPA2_SIZES[0])
    theirs.save_pretrained(tmp_path)
    encoder = load.load_encoder(tmp_path)
    video_BFRYX = clip(theirs.config)
    # One step of the config's width, and lower: 2 × 4 patches instead of 4 × 4.
    low = video_BFRYX[:, :2, :, :16]
    assert difference(encoder(low.transpose(1, 2)), theirs(low, skip_predictor=True).last_hidden_state) <= CLOSE
    # Of another width, transformers takes a token of the second row for one of the first.
    for other in (video_BFRYX[:, :, :, :16], video_BFRYX[..., :24]):
        apart = difference(encoder(other.transpose(1, 2)), theirs(other, skip_predictor=True).last_hidden_state)
        assert apart > 1e-3
    # With the clip's side in the config they agree again.
    small = video_BFRYX[..., :24, :24]
    theirs = transformers.VJEPA2Model.from_pretrained(tmp_path, crop_size=24).eval()
    assert difference(encoder(small.transpose(1, 2)), theirs(small, skip_predictor=True).last_hidden_state) <= CLOSE


@pytest.mark.parity
@pytest.mark.parametrize("sizes", VJEPA2_SIZES, ids=["l", "g", "tubelet3"])
@torch.no_grad()
def test_probe_from_and_to_transformers(tmp_path: Path, transformers: ModuleType, sizes: dict[str, Any]) -> None:
    labels = {index: f"step {index}" for index in range(7)}
    theirs = new_vjepa2(transformers, sizes, "VJEPA2ForVideoClassification", id2label=labels)
    theirs.save_pretrained(tmp_path / "theirs")
    encoder, probe = load.load_encoder(tmp_path / "theirs"), load.load_probe(tmp_path / "theirs")
    assert probe.spec.num_heads == sizes["num_attention_heads"]
    assert probe.spec.num_classes == {"action": 7}
    z_BLD = encoder(clip(theirs.config).transpose(1, 2))
    logits_BC = probe(z_BLD)["action"]
    # The whole difference is one number: transformers' pooler takes the encoder's epsilon, 1e-6; upstream's has 1e-5.
    assert difference(logits_BC, theirs(clip(theirs.config)).logits) <= 1e-4
    for module in theirs.pooler.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
            module.eps = 1e-5
    assert difference(logits_BC, theirs(clip(theirs.config)).logits) <= CLOSE

    predictor = load.load_masked_predictor(tmp_path / "theirs")
    config = theirs.config
    model = to_huggingface_classification(
        encoder, predictor, probe, list(labels.values()), config.crop_size, config.frames_per_clip
    )
    save_huggingface(model, tmp_path / "again")
    again, info = transformers.VJEPA2ForVideoClassification.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not any(info.values()), info
    assert again.config.id2label == labels
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in again.state_dict().items())


DINOV2_SIZES: list[dict[str, Any]] = [
    {"hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 70, "patch_size": 14},
    {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 8, "image_size": 24, "patch_size": 4},
    {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
     "mlp_ratio": 3},
]  # fmt: skip


def pictures(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))


def patch_map(theirs: Any, images: Tensor) -> Tensor:
    """transformers' layer-normed patch tokens as ours: [B, D, H, W]."""
    patch = theirs.config.patch_size
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    return theirs(images).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, grid)


@pytest.mark.parity
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("sizes", DINOV2_SIZES, ids=["a", "b", "c"])
@torch.no_grad()
def test_dinov2_from_transformers(
    tmp_path: Path,
    transformers: ModuleType,
    sizes: dict[str, Any],
    attention: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = transformers.Dinov2Config(**sizes, attn_implementation=attention)
    theirs = randomised(transformers.Dinov2Model(config))
    theirs.save_pretrained(tmp_path)
    ours = load.read_backbone(tmp_path).module
    side, patch = sizes["image_size"], sizes["patch_size"]
    same = pictures(side, side)
    assert difference(ours(same), patch_map(theirs, same)) <= CLOSE
    # At other sizes the learned positions are resized: upstream's hub samples at (size + 0.1) / trained size, which
    # our module keeps; transformers samples at the true ratio. That is all: without the offset the two agree.
    for grid in ((3, 7), (8, 2), (9, 9)):
        other = pictures(grid[0] * patch, grid[1] * patch)
        assert 1e-3 < difference(ours(other), patch_map(theirs, other)) < 0.5
        with monkeypatch.context() as changed:
            changed.setattr(dinov2, "INTERPOLATE_OFFSET", 0.0)
            assert difference(ours(other), patch_map(theirs, other)) <= CLOSE


@pytest.mark.parity
@pytest.mark.parametrize("sizes", DINOV2_SIZES, ids=["a", "b", "c"])
@torch.no_grad()
def test_dinov2_to_transformers(tmp_path: Path, transformers: ModuleType, sizes: dict[str, Any]) -> None:
    side = sizes["image_size"] // sizes["patch_size"]
    spec = DINOv2Spec(
        sizes["hidden_size"], sizes["num_hidden_layers"], sizes["num_attention_heads"], side, sizes["patch_size"],
        float(sizes.get("mlp_ratio", 4)),
    )  # fmt: skip
    ours = randomised(DINOv2(spec))
    save_huggingface(dinov2_to_huggingface(ours), tmp_path)
    theirs, info = transformers.Dinov2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    images = pictures(sizes["image_size"], sizes["image_size"])
    assert difference(ours(images), patch_map(theirs.eval(), images)) <= CLOSE
    again = load.read_backbone(tmp_path).module
    assert again.spec == spec
    assert all(torch.equal(tensor, ours.state_dict()[key]) for key, tensor in again.state_dict().items())


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["VJEPA2Model", "VJEPA2ForVideoClassification"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shards_and_half_precision(tmp_path: Path, transformers: ModuleType, kind: str, dtype: torch.dtype) -> None:
    theirs = new_vjepa2(transformers, VJEPA2_SIZES[0], kind).to(dtype)
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / INDEX_NAME).is_file()
    loaded = load.read_encoder(tmp_path)
    assert len(loaded.files) > 1
    assert loaded.module.norm.weight.dtype == torch.float32
    state = {key.removeprefix("vjepa2."): tensor for key, tensor in theirs.state_dict().items()}
    query = loaded.module.blocks[1].attn.qkv.weight[: loaded.module.spec.width]
    assert torch.equal(query, state["encoder.layer.1.attention.query.weight"].float())
    others = [key for key in theirs.state_dict() if not key.removeprefix("vjepa2.").startswith("encoder.")]
    assert sorted(loaded.account.dropped) == sorted(others)
    assert set(loaded.account.used) == set(loaded.module.state_dict())


def vjepa2_folder(folder: Path) -> Path:
    encoder, predictor = (
        VJEPA2Encoder(EncoderSpec(24, 2, 2, patch_size=4)),
        MaskedPredictor(MaskedPredictorSpec(24, 12, 1, 2)),
    )
    probe = AttentiveProbe(24, 2, 2, 1, {"action": 3})
    return save_huggingface(to_huggingface_classification(encoder, predictor, probe, crop_size=16), folder)


def dinov2_folder(folder: Path) -> Path:
    return save_huggingface(dinov2_to_huggingface(DINOv2(DINOv2Spec(24, 2, 2, position_side=4))), folder)


READERS: dict[str, Callable[[Path], object]] = {
    "encoder": load.load_encoder,
    "predictor": load.load_masked_predictor,
    "probe": load.load_probe,
    "dinov2": load.read_backbone,
}


def folder_of(kind: str, folder: Path) -> Path:
    return dinov2_folder(folder) if kind == "dinov2" else vjepa2_folder(folder)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({field: value for field, value in config.items() if value != "absent"}))


@pytest.mark.parametrize("kind", READERS)
def test_what_we_write_we_read(tmp_path: Path, kind: str) -> None:
    folder = folder_of(kind, tmp_path)
    assert is_huggingface(folder)
    READERS[kind](folder)
    READERS[kind](folder / "model.safetensors")
    assert not is_huggingface(tmp_path / "nothing")


ENCODER_CHANGES: dict[str, object] = {
    "hidden_size": 32, "num_hidden_layers": 3, "patch_size": 8, "tubelet_size": 1, "mlp_ratio": 3.0, "in_chans": 1,
    "layer_norm_eps": 1e-5, "hidden_act": "silu", "qkv_bias": False, "num_attention_heads": 7,
    "pred_hidden_size": 16, "pred_num_hidden_layers": 2, "pred_num_mask_tokens": 9, "pred_mlp_ratio": 3,
    "num_pooler_layers": 3, "id2label": {"0": "a", "1": "b"}, "pred_num_attention_heads": 5,
}  # fmt: skip
DINOV2_CHANGES: dict[str, object] = {
    "hidden_size": 32, "num_hidden_layers": 3, "patch_size": [14, 7], "image_size": 224, "mlp_ratio": 3,
    "num_channels": 1, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "qkv_bias": False, "use_swiglu_ffn": True,
    "num_attention_heads": 7,
}  # fmt: skip
CONFIG_CHANGES = [
    (kind, field, value)
    for kind in READERS
    for field, value in (DINOV2_CHANGES if kind == "dinov2" else ENCODER_CHANGES).items()
]


@pytest.mark.parametrize(("kind", "field", "value"), CONFIG_CHANGES)
def test_a_config_that_contradicts_is_refused(tmp_path: Path, kind: str, field: str, value: object) -> None:
    folder = folder_of(kind, tmp_path)
    change_config(folder, **{field: value})
    names = "num_heads" if "heads" in field else "mask_tokens" if "mask_tokens" in field else field
    with pytest.raises(WeightsError, match=names) as caught:
        READERS[kind](folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("value", ["24", 24.5, True, [24], {"a": 1}, float("nan"), 10**30, -24])
@pytest.mark.parametrize("field", ["hidden_size", "num_attention_heads", "patch_size", "mlp_ratio"])
def test_a_config_with_nonsense_in_it_is_refused(tmp_path: Path, field: str, value: object) -> None:
    folder = vjepa2_folder(tmp_path)
    change_config(folder, **{field: value})
    with pytest.raises(WeightsError):
        load.load_encoder(folder)


def test_a_ratio_is_cut_as_transformers_cuts_it(tmp_path: Path) -> None:
    folder = vjepa2_folder(tmp_path)
    change_config(folder, mlp_ratio=4.04)
    load.load_encoder(folder)
    change_config(folder, mlp_ratio=3.99)  # 95.76 of the 24 wide: a module of 95
    with pytest.raises(WeightsError, match=r"mlp_ratio 3\.99"):
        load.load_encoder(folder)
    for width in range(1, 100):
        for hidden in range(1, 100):
            assert int(width * configs._ratio(width, hidden / width)) == hidden, "what we write is cut to what we have"


def test_a_contradiction_names_both_files_words(tmp_path: Path) -> None:
    folder = vjepa2_folder(tmp_path)
    change_config(folder, hidden_size=32)
    message = r"contradicts.*\s.*24 in vjepa2\.encoder\.layernorm\.weight\s+found: hidden_size 32"
    with pytest.raises(WeightsError, match=message):
        load.load_encoder(folder)


def test_heads_come_from_the_config_before_anything_else(tmp_path: Path) -> None:
    folder = vjepa2_folder(tmp_path)
    change_config(folder, num_attention_heads=4)
    assert load.load_encoder(folder).spec.num_heads == 4
    assert load.load_encoder(folder, num_heads=4).spec.num_heads == 4
    assert load.load_probe(folder).spec.num_heads == 4
    with pytest.raises(WeightsError, match="contradicts num_heads"):
        load.load_encoder(folder, num_heads=2)
    with pytest.raises(WeightsError, match="one encoder"):
        load.load_encoder(folder, "target_encoder")
    with pytest.raises(WeightsError, match=r"one probe(.|\n)*expected: no index"):
        load.load_probe(folder, index=0)
    (folder / "config.json").unlink()
    assert load.load_encoder(folder, num_heads=2).spec.num_heads == 2
    with pytest.raises(WeightsError, match="attention heads"):
        load.load_encoder(folder)


@pytest.mark.parametrize("model_type", ["dinov2", "dinov2_with_registers", "vit", None, 3])
def test_another_model_type_is_refused(tmp_path: Path, model_type: object) -> None:
    folder = vjepa2_folder(tmp_path)
    change_config(folder, model_type=model_type)
    with pytest.raises(WeightsError, match="another model"):
        load.load_encoder(folder)


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize(
    ("kind", "other"), [("encoder", "dinov2"), ("dinov2", "encoder"), ("dinov2", "predictor"), ("dinov2", "probe")]
)
def test_a_model_that_is_not_in_the_file_is_refused(tmp_path: Path, kind: str, other: str, has_config: bool) -> None:
    folder = folder_of(kind, tmp_path)
    if not has_config:
        (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=re.escape(str(folder))):
        READERS[other](folder)


def test_a_file_without_predictor_or_probe_still_has_its_encoder(tmp_path: Path) -> None:
    state = {
        key.removeprefix("vjepa2."): tensor
        for key, tensor in load_file(GOLDEN / "huggingface_vjepa2.safetensors").items()
        if key.startswith("vjepa2.encoder.")
    }
    save_file(state, tmp_path / "encoder.safetensors")
    load.load_encoder(tmp_path / "encoder.safetensors", num_heads=2)
    with pytest.raises(WeightsError, match="does not tell"):
        load.load_masked_predictor(tmp_path / "encoder.safetensors", num_heads=2)


def test_messages_about_sizes_use_the_files_words(tmp_path: Path) -> None:
    state = load_file(GOLDEN / "huggingface_dinov2.safetensors")
    key = "embeddings.position_embeddings"
    token = "embeddings.mask_token"
    changes = ((key, state[key][:, :-1]), (key, state[key][0]), (token, state[token][:, :-1]))
    for name, change in changes:
        save_file(state | {name: change.clone()}, tmp_path / "d.safetensors")
        with pytest.raises(WeightsError, match=name):
            load.read_backbone(tmp_path / "d.safetensors", 3)


def shard(folder: Path) -> dict[str, str]:
    """Cut a folder's tensors into two files with an index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(state)
    homes = {key: f"model-0000{1 + (index % 2)}-of-00002.safetensors" for index, key in enumerate(keys)}
    for name in set(homes.values()):
        save_file({key: state[key] for key in keys if homes[key] == name}, folder / name)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return homes


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    folder = vjepa2_folder(tmp_path)
    before = load.load_encoder(folder).state_dict()
    homes = shard(folder)
    loaded = load.read_encoder(folder)
    assert [file.path.name for file in loaded.files] == sorted(set(homes.values()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in loaded.module.state_dict().items())


def test_an_index_that_is_wrong_is_refused(tmp_path: Path) -> None:
    folder = vjepa2_folder(tmp_path / "model")
    homes = shard(folder)
    first, other = "classifier.bias", "classifier.weight"
    wrong: list[tuple[object, str]] = [
        ([], "no index"),
        ({"weight_map": {}}, "no index"),
        ({"weight_map": homes | {first: homes[other]}}, first),
        ({"weight_map": {key: name for key, name in homes.items() if key != first}}, first),
        ({"weight_map": homes | {"more": homes[first]}}, "more"),
        ({"weight_map": homes | {first: "../model.safetensors"}}, f"{first} is in no file"),
        ({"weight_map": homes | {first: "/etc/a.safetensors"}}, f"{first} is in no file"),
        ({"weight_map": homes | {first: 3}}, f"{first} is in no file"),
        ({"weight_map": dict.fromkeys(homes, "model-00003-of-00003.safetensors")}, "no weight file"),
    ]
    for index, message in wrong:
        (folder / INDEX_NAME).write_text(json.dumps(index))
        with pytest.raises(WeightsError, match=message):
            load.load_encoder(folder)
    (folder / INDEX_NAME).write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        load.load_encoder(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, share: float) -> None:
    folder = vjepa2_folder(tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=r"cannot be read|damaged"):
        load.load_encoder(folder)


def test_what_transformers_cannot_hold_is_not_written() -> None:
    encoder, predictor = VJEPA2Encoder(EncoderSpec(24, 1, 2)), MaskedPredictor(MaskedPredictorSpec(24, 12, 1, 2))
    with pytest.raises(WeightsError, match="not for this encoder"):
        to_huggingface(encoder, MaskedPredictor(MaskedPredictorSpec(16, 12, 1, 2)))
    with pytest.raises(WeightsError, match="crop_size"):
        to_huggingface(encoder, predictor, crop_size=100)
    for probe in (
        AttentiveProbe(24, 2, 1, 2, {"verb": 2, "noun": 2}),
        AttentiveProbe(24, 4, 1, 1, {"action": 2}),
        AttentiveProbe(16, 2, 1, 1, {"action": 2}),
        AttentiveProbe(24, 2, 1, 2, {"action": 2}),
    ):
        with pytest.raises(WeightsError, match="no such probe"):
            to_huggingface_classification(encoder, predictor, probe)
    with pytest.raises(WeightsError, match="labels"):
        to_huggingface_classification(encoder, predictor, AttentiveProbe(24, 2, 1, 1, {"action": 2}), ["a", "a"])
    with pytest.raises(WeightsError, match="mlp_ratio"):
        dinov2_to_huggingface(DINOv2(DINOv2Spec(24, 1, 2, 4, mlp_ratio=2.5)))
