"""Released weight files: strict to the key, and safe to open."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hwm.errors import WeightsError
from hwm.models.causal_stack import CausalStack, CausalStackSpec
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.masked_predictor import MaskedPredictor, MaskedPredictorSpec
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
from hwm.weights import foreign, huggingface_read, load, sizes
from hwm.weights.files import SafetensorsContent, hash_file, read_pickle
from hwm.weights.layouts import inspect
from hwm.weights.remap import Layout
from hwm.weights.strict import build_empty, check_state, checked_remap, shapes_of

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "vjepa2_checkpoint.pt"
Loader = Callable[[Path], object]


@cache
def backbone(variant: str) -> load.LoadedWeights[DINOv2]:
    return load.read_backbone(GOLDEN / f"dinov2_{variant}.pth", num_heads=3)


# Every golden file: how to load it, and the model inside of it (None: the whole file).
FILES: dict[str, tuple[str, str | None, Loader]] = {
    "encoder": ("vjepa2_checkpoint.pt", "target_encoder", lambda p: load.load_encoder(p, num_heads=4)),
    "masked_predictor": ("vjepa2_checkpoint.pt", "predictor", lambda p: load.load_masked_predictor(p, num_heads=3)),
    "encoder_2_1": ("vjepa2_1_distilled.pt", "ema_encoder", lambda p: load.load_encoder(p, num_heads=2)),
    "dense_predictor": ("vjepa2_1.pt", "predictor", lambda p: load.load_masked_predictor(p, num_heads=2)),
    "distilled_predictor": ("vjepa2_1_distilled.pt", "predictor", lambda p: load.load_masked_predictor(p, num_heads=2)),
    "causal_stack": ("causal_predictor_weights.safetensors", None, lambda p: load.read_causal_stack(p, num_heads=3)),
    "probe": ("probe_weights.safetensors", None, lambda p: load.load_probe(p, num_heads=4)),
    "probe3": ("probe3_weights.safetensors", None, lambda p: load.load_probe(p, num_heads=4)),
    "gazelle_inout": ("gazelle_inout.pt", None, lambda p: load.read_gazelle_decoder(p, backbone("inout"))),
    "gazelle_plain": ("gazelle_plain.pt", None, lambda p: load.read_gazelle_decoder(p, backbone("plain"))),
    "dinov2": ("dinov2_plain.pth", None, lambda p: load.read_backbone(p, num_heads=3)),
    # Written by transformers in bfloat16: a VJEPA2ForVideoClassification with its predictor, and a Dinov2Model.
    "hf_encoder": ("huggingface_vjepa2.safetensors", None, lambda p: load.load_encoder(p, num_heads=2)),
    "hf_predictor": ("huggingface_vjepa2.safetensors", None, lambda p: load.load_masked_predictor(p, num_heads=2)),
    "hf_probe": ("huggingface_vjepa2.safetensors", None, lambda p: load.load_probe(p, num_heads=2)),
    "hf_dinov2": ("huggingface_dinov2.safetensors", None, lambda p: load.read_backbone(p, num_heads=3)),
}


def ac_checkpoint(folder: Path) -> Path:
    """An AC file as released, out of the golden stack: keys `module.*`, action tokens, and no `target_encoder`."""
    encoder = read_state("vjepa2_checkpoint.pt", "encoder")
    stack = {key: value for key, value in read_state("causal_predictor_weights.safetensors", None).items()}
    width = stack["predictor_norm.weight"].shape[0]
    inputs = {"action_encoder": 7, "state_encoder": 7, "extrinsics_encoder": 6}
    actions = {f"{name}.weight": torch.randn(width, size) for name, size in inputs.items()}
    actions |= {f"{name}.bias": torch.randn(width) for name in inputs}
    predictor = {f"module.{k}": v for k, v in (stack | actions).items() if not k.startswith("scene_proj")}
    content = {"encoder": {k.replace("backbone.", ""): v for k, v in encoder.items()}, "predictor": predictor}
    torch.save(content | {"epoch": 315, "opt": {}}, folder / "vjepa2-ac.pt")
    return folder / "vjepa2-ac.pt"


def probe_checkpoint(folder: Path, *probes: dict[str, Tensor]) -> Path:
    """A probe file as V-JEPA 2's harness saves it: a list of classifiers, keys `module.*`."""
    states = [{f"module.{key}": value for key, value in probe.items()} for probe in probes]
    beside = {"opt": [{} for _ in states], "scaler": None, "epoch": 20, "batch_size": 2, "world_size": 64}
    torch.save({"classifiers": states} | beside, folder / "ek100-tiny.pt")
    return folder / "ek100-tiny.pt"


def read_state(name: str, part: str | None) -> dict[str, Tensor]:
    path = GOLDEN / name
    whole = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return whole if part is None else whole[part]


def write_state(folder: Path, name: str, part: str | None, state: dict[str, Tensor]) -> Path:
    path = folder / name
    content = state if part is None else {part: state, "epoch": 1}
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def changes(state: dict[str, Tensor], key: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """One key of a state dict dropped, renamed, reshaped, retyped or spoilt."""
    tensor = state[key]
    others = {name: value for name, value in state.items() if name != key}
    turn = list(state).index(key)  # of several ways to reshape or to retype, each key takes its turn
    reshaped = (tensor[None].clone(), tensor.reshape(-1, 1).clone(), torch.cat((tensor, tensor[:1])))
    retyped = (tensor.to(torch.int64), tensor.half(), tensor.double())
    if turn == 0:
        yield "an unknown key beside", state | {f"{key}_beside": tensor}
    yield "dropped", others
    yield "renamed", others | {f"{key}_new": tensor}
    yield f"reshaped ({turn % 3})", others | {key: reshaped[turn % 3]}
    yield f"retyped ({turn % 3})", others | {key: retyped[turn % 3]}


def refusal(loader: Loader, path: Path) -> str:
    """What a loader says against a file; empty if it took it."""
    try:
        loader(path)
    except WeightsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("case", FILES)
def test_every_key_of_every_file_counts(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, part, loader = FILES[case]
    state = read_state(name, part)
    path = write_state(tmp_path, name, part, state)
    loader(path)
    for key in state:
        for change, changed in changes(state, key):
            # The file is there and fine; only what was read from it differs (over a thousand files would take long).
            content = changed if part is None else {part: changed, "epoch": 1}
            monkeypatch.setattr(foreign, "read_pickle", lambda _, content=content: content)
            for module in (foreign, huggingface_read):
                read = lambda _, changed=changed: SafetensorsContent(changed, {})  # noqa: E731
                monkeypatch.setattr(module, "read_safetensors", read)
            message = refusal(loader, path)
            assert key.removeprefix("module.backbone.") in message, f"{change} {key}: {message}"
            assert path.name in message, f"{change} {key}: {message}"


def test_heads_that_no_tensor_tells_are_the_published_ones() -> None:
    """With any other number a released file loads without a word, and its latents are others."""

    def shapes(model: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
        return shapes_of(build_empty(model))

    for width, heads in {768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}.items():  # ViT-B, L, H, g, G
        encoder = shapes(lambda width=width: VJEPA2Encoder(EncoderSpec(width, 1, 1)))
        assert sizes.encoder_spec(encoder, None).num_heads == heads
    for width, heads in {384: 6, 768: 12, 1024: 16, 1536: 24}.items():  # ViT-S, B, L, g
        dinov2 = shapes(lambda width=width: DINOv2(DINOv2Spec(width, 1, 1)))
        assert sizes.dinov2_spec(dinov2, None).num_heads == heads
    masked = shapes(lambda: MaskedPredictor(MaskedPredictorSpec(32, 384, 1, 1)))
    assert sizes.masked_predictor_spec(masked, None).num_heads == 12
    causal = shapes(lambda: CausalStack(CausalStackSpec(32, 1024, 1, 1)))
    assert sizes.causal_stack_spec(causal, None).num_heads == 16
    assert load.load_probe(GOLDEN / "probe_weights.safetensors").spec.num_heads == 16
    assert load.read_gazelle_decoder(GOLDEN / "gazelle_plain.pt", backbone("plain")).module.spec.num_heads == 8


def test_only_floating_point_tensors_are_weights_and_what_is_loaded_is_a_copy() -> None:
    source = Path("a.pt")
    layout = Layout(("module.", ""), {"pos_embed": "not needed"})
    for tensor in (torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int8)):
        with pytest.raises(WeightsError, match=r"wrong type(.|\n)*torch\.float32 like the others"):
            checked_remap(source, {"a": tensor, "b": tensor}, layout)
    for tensor in (torch.zeros(2).to_sparse(), torch.zeros(2, device="meta")):
        with pytest.raises(WeightsError, match="b is no tensor"):
            checked_remap(source, {"a": torch.zeros(2), "b": tensor}, layout)
    shared = torch.zeros(2)
    mapped = checked_remap(source, {"module.a": shared, "module.b": shared, "module.pos_embed": shared}, layout)
    assert mapped.dropped == {"pos_embed": "not needed"}
    state = check_state(source, mapped, {"a": (2,), "b": (2,)})
    state["a"].add_(1)
    assert not shared.any()
    assert not state["b"].any()
    for key in ("module.c", "c"):
        mapped = checked_remap(source, {"module.a": shared, "module.b": shared, key: shared}, layout)
        shown = key if key == "module.c" else r"\(without module\.\) c"
        with pytest.raises(WeightsError, match=rf"unknown keys: {shown}\n"):
            check_state(source, mapped, {"a": (2,), "b": (2,)})


def test_released_checkpoint_reads_the_model_asked_for() -> None:
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    for key in (None, "encoder", "target_encoder"):
        module = load.load_encoder(CHECKPOINT, key, num_heads=4)
        name = key or "target_encoder"
        assert torch.equal(module.norm.weight, checkpoint[name]["module.backbone.norm.weight"])
        assert module.spec == EncoderSpec(64, 3, 4)
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_ac_checkpoints_give_an_encoder_and_a_causal_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ac_checkpoint(tmp_path)
    encoder = load.read_encoder(path, num_heads=4)
    assert encoder.account.model == "encoder"
    released = read_state("vjepa2_checkpoint.pt", "encoder")
    assert torch.equal(encoder.module.norm.weight, released["module.backbone.norm.weight"])
    stack = load.read_causal_stack(path, num_heads=3)
    golden = load.read_causal_stack(GOLDEN / "causal_predictor_weights.safetensors", num_heads=3)
    assert all(torch.equal(value, golden.module.state_dict()[key]) for key, value in stack.module.state_dict().items())
    assert sorted(stack.account.dropped) == sorted(
        f"{name}_encoder.{part}" for name in ("action", "state", "extrinsics") for part in ("weight", "bias")
    )
    checkpoint = torch.load(path, weights_only=True)
    for key in checkpoint["predictor"]:
        for change, changed in changes(checkpoint["predictor"], key):
            content = {"predictor": changed}
            monkeypatch.setattr(foreign, "read_pickle", lambda _, content=content: content)
            message = refusal(lambda p: load.read_causal_stack(p, num_heads=3), path)
            assert key.removeprefix("module.") in message, f"{change} {key}: {message}"


def test_probe_checkpoints_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = read_state("probe3_weights.safetensors", None)
    other = {key: value + 1 for key, value in state.items()}
    path = probe_checkpoint(tmp_path, state, other)
    with pytest.raises(WeightsError, match=r"holds 2 probes.*\n.*index 0\.\.1"):
        load.load_probe(path, num_heads=4)
    for index in (2, -1):
        with pytest.raises(WeightsError, match=f"index {index}"):
            load.load_probe(path, num_heads=4, index=index)
    broken = inspect(probe_checkpoint(tmp_path, state, {**other, "unknown": torch.zeros(1)})).models
    assert [(found.name, "unknown keys: module.unknown" in (found.problem or "")) for found in broken] == [
        ("classifiers[0]", False), ("classifiers[1]", True),
    ]  # fmt: skip
    path = probe_checkpoint(tmp_path, state, other)
    second = load.read_probe(path, num_heads=4, index=1)
    assert second.account.model == "classifiers[1]"
    assert torch.equal(second.module.get_submodule("noun_classifier").bias, other["noun_classifier.bias"])
    alone = probe_checkpoint(tmp_path, state)
    assert load.load_probe(alone, num_heads=4).tasks == ("verb", "noun", "action")
    for key in state:
        for change, changed in changes(state, key):
            content = {"classifiers": [changed]}
            monkeypatch.setattr(foreign, "read_pickle", lambda _, content=content: content)
            message = refusal(lambda p: load.load_probe(p, num_heads=4), alone)
            assert key in message, f"{change} {key}: {message}"


def test_classification_probes_have_a_head_called_linear(tmp_path: Path) -> None:
    state = read_state("probe_weights.safetensors", None)
    renamed = {key.replace("action_classifier", "linear"): value for key, value in state.items()}
    probe = load.load_probe(probe_checkpoint(tmp_path, renamed), num_heads=4)
    assert probe.tasks == ("label",)
    renamed["linear.weight"] = torch.full_like(renamed["linear.weight"], float("nan"))
    with pytest.raises(WeightsError, match=r"not finite(.|\n)*module\.linear\.weight"):
        load.load_probe(probe_checkpoint(tmp_path, renamed), num_heads=4)
    assert torch.equal(probe.get_submodule("label_classifier").weight, state["action_classifier.weight"])
    with pytest.raises(WeightsError, match=r"module\.linear\.bias"):
        load.load_probe(probe_checkpoint(tmp_path, {k: v for k, v in renamed.items() if k != "linear.bias"}), 4)


def test_inspection_tells_every_layout(tmp_path: Path) -> None:
    probe = read_state("probe3_weights.safetensors", None)
    expected = {
        ac_checkpoint(tmp_path): ("V-JEPA 2 checkpoint", ["encoder", "predictor"]),
        probe_checkpoint(tmp_path, probe, probe): (
            "V-JEPA 2 attentive probe",
            ["classifiers[0]", "classifiers[1]"],
        ),
        GOLDEN / "vjepa2_1_distilled.pt": ("V-JEPA 2 checkpoint", ["ema_encoder", "predictor"]),
        GOLDEN / "vjepa2_1.pt": ("V-JEPA 2 checkpoint", ["target_encoder", "predictor"]),
        GOLDEN / "huggingface_vjepa2.safetensors": ("Hugging Face", ["encoder", "predictor", "probe"]),
        GOLDEN / "huggingface_dinov2.safetensors": ("Hugging Face", ["backbone"]),
        GOLDEN / "probe3_weights.safetensors": ("V-JEPA 2 attentive probe", ["probe"]),
        GOLDEN / "causal_predictor_weights.safetensors": ("block-causal stack", ["causal_stack"]),
    }
    for path, (layout, models) in expected.items():
        found = inspect(path)
        assert (found.layout, [model.name for model in found.models]) == (layout, models)
        assert all(model.problem is None and model.num_parameters > 5000 for model in found.models)


def test_account_names_every_key_and_the_file() -> None:
    loaded = load.read_encoder(CHECKPOINT, num_heads=4)
    assert loaded.sha256 == hash_file(CHECKPOINT).sha256
    assert loaded.path == CHECKPOINT
    assert set(loaded.account.used) == set(loaded.module.state_dict())
    gazelle = load.read_gazelle(GOLDEN / "gazelle_inout.pt", GOLDEN / "dinov2_inout.pth", 3)
    assert list(gazelle.account.dropped) == ["mask_token"]
    assert [file.path.name for file in gazelle.files] == ["gazelle_inout.pt", "dinov2_inout.pth"]


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_released_prefixes_and_sine_positions(tmp_path: Path, prefix: str) -> None:
    state = {
        prefix + key.removeprefix("module.backbone."): value
        for key, value in torch.load(CHECKPOINT, weights_only=True)["encoder"].items()
    }
    torch.save({"encoder": state | {f"{prefix}pos_embed": torch.zeros(1, 64, 64)}, "epoch": 3}, tmp_path / "e.pt")
    loaded = load.read_encoder(tmp_path / "e.pt", "encoder", num_heads=4)
    assert list(loaded.account.dropped) == ["pos_embed"]


def test_a_key_without_the_prefix_of_the_others_is_refused(tmp_path: Path) -> None:
    state = read_state("vjepa2_checkpoint.pt", "target_encoder")
    state["norm.weight"] = state.pop("module.backbone.norm.weight")
    path = write_state(tmp_path, "e.pt", "target_encoder", state)
    with pytest.raises(WeightsError, match=r"norm\.weight"):
        load.load_encoder(path, num_heads=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"predictor": {}}, "'ema_encoder' or 'target_encoder' or 'encoder'"),
        ({"target_encoder": {}, "surprise": 1}, "surprise"),
        ({"target_encoder": {}}, "holds no tensors"),
        ({"target_encoder": {"norm.weight": 3}}, "norm.weight is no tensor"),
        ([1, 2], "no checkpoint"),
        ({3: torch.zeros(1)}, "no checkpoint"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "e.pt")
    with pytest.raises(WeightsError, match=message):
        load.load_encoder(tmp_path / "e.pt")


def test_a_million_blocks_are_refused_before_they_are_built(tmp_path: Path) -> None:
    state = read_state("vjepa2_checkpoint.pt", "target_encoder")
    state["module.backbone.blocks.9999999.norm1.weight"] = torch.ones(64)
    path = write_state(tmp_path, "e.pt", "target_encoder", state)
    with pytest.raises(WeightsError, match="9999999"):
        load.load_encoder(path, num_heads=4)


def test_grids_and_patches_that_are_not_square_are_refused(tmp_path: Path) -> None:
    for case, key, axis in (("encoder", "patch_embed.proj.weight", 4), ("dinov2", "patch_embed.proj.weight", 3),
                            ("gazelle_plain", "pos_embed", 2)):  # fmt: skip
        name, part, loader = FILES[case]
        state = read_state(name, part)
        (whole,) = (stored for stored in state if stored.endswith(key))
        state[whole] = state[whole].narrow(axis, 0, state[whole].shape[axis] - 1).clone()
        with pytest.raises(WeightsError, match=r"has the wrong shape(.|\n)*square"):
            loader(write_state(tmp_path, name, part, state))


def test_heads_that_nothing_tells_are_asked_for() -> None:
    with pytest.raises(WeightsError, match="attention heads"):
        load.load_encoder(CHECKPOINT)
    with pytest.raises(WeightsError, match="does not fit the width"):
        load.load_encoder(CHECKPOINT, num_heads=5)


def test_a_decoder_needs_its_backbone() -> None:
    with pytest.raises(WeightsError, match="decoder alone"):
        load.load_gazelle(GOLDEN / "gazelle_plain.pt")
    with pytest.raises(WeightsError, match="does not tell the width"):
        load.load_gazelle(GOLDEN / "dinov2_plain.pth", GOLDEN / "dinov2_plain.pth", 3)


class RunsCode:
    """A pickle that creates a file when it is opened without care."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.canary,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_did_not_run(tmp_path: Path, zipped: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    torch.save({"target_encoder": RunsCode(canary)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="refused") as caught:
        load.load_encoder(path)
    assert not canary.exists()
    assert "weights_only=False" not in str(caught.value)  # no advice to open the gate
    torch.load(path, weights_only=False)
    assert canary.exists()  # the pickle does what it says when it is let


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_is_refused_and_did_not_run(tmp_path: Path, protocol: int) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(RunsCode(canary), protocol))
    with pytest.raises(WeightsError, match=r"refused|cannot be read"):
        load.load_encoder(path)
    assert not canary.exists()


def test_values_must_be_finite(tmp_path: Path) -> None:
    state = read_state("vjepa2_checkpoint.pt", "target_encoder")
    state["module.backbone.norm.bias"][3] = torch.inf
    path = write_state(tmp_path, "e.pt", "target_encoder", state)
    with pytest.raises(WeightsError, match=r"not finite\s+found: module\.backbone\.norm\.bias"):
        load.load_encoder(path, num_heads=4)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("name", ["vjepa2_checkpoint.pt", "dinov2_plain.pth", "probe_weights.safetensors"])
def test_truncated_files_are_one_clear_error(tmp_path: Path, name: str, share: float) -> None:
    content = (GOLDEN / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * share)])
    loader = load.load_probe if path.suffix == ".safetensors" else read_pickle
    with pytest.raises(WeightsError, match=r"cannot be read|damaged") as caught:
        loader(path)
    assert "\n" not in caught.value.problem
    assert "\n" not in str(caught.value.found)
    assert str(path) in caught.value.problem


@pytest.mark.parametrize("length", [1 << 60, 1 << 30, 200])
def test_a_header_larger_than_its_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a":')
    with pytest.raises(WeightsError, match="header does not fit") as caught:
        load.load_probe(path)
    assert "\n" not in caught.value.problem


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(WeightsError, match="cannot be read"):
        load.load_probe(path)


def test_compressed_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "packed.pt"
    with zipfile.ZipFile(CHECKPOINT) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(WeightsError, match="holds compressed records"):
        load.load_encoder(path, num_heads=4)


@pytest.mark.parametrize("name", ["nothing.pt", "nothing.safetensors", "nothing"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=name):
        load.load_encoder(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match="no weight file"):
        load.load_encoder(tmp_path / "notes.txt")
