"""Our own weight format: there and back, and every way in which its two files can be wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hwm.errors import WeightsError
from hwm.models.causal_stack import CausalStackSpec
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.gazelle import GazeLLE, GazelleSpec
from hwm.models.masked_predictor import MaskedPredictor, MaskedPredictorSpec
from hwm.models.probe import AttentiveProbe, ProbeSpec
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
from hwm.weights import load
from hwm.weights.files import WeightFile, digest_of, hash_tensors
from hwm.weights.ours import MAX_CONFIG_BYTES, read_model, spec_from_plain, spec_to_plain, write_model
from small_disk import files_of_at_most

Loader = Callable[..., object]


def small_models() -> dict[str, tuple[torch.nn.Module, Loader]]:
    torch.manual_seed(0)
    gazelle = GazeLLE(DINOv2(DINOv2Spec(16, 1, 2, 4)), GazelleSpec(16, 1, 2, position_grid=(4, 4), inout=True))
    return {
        "encoder": (VJEPA2Encoder(EncoderSpec(16, 1, 2, patch_size=4)), load.load_encoder),
        "masked_predictor": (MaskedPredictor(MaskedPredictorSpec(16, 16, 1, 2)), load.load_masked_predictor),
        "gazelle": (gazelle, load.load_gazelle),
        "probe": (AttentiveProbe(16, 2, 2, 2, {"verb": 3, "noun": 4}), load.load_probe),
    }


def test_the_folder_of_a_run_is_refused_and_its_model_named(tmp_path: Path) -> None:
    for kind in ("encoder", "gazelle"):
        module, loader = small_models()[kind]
        load.save_model(module, tmp_path / "run" / kind)  # pyright: ignore[reportArgumentType]
        with pytest.raises(WeightsError, match=rf"use .*run/{kind}$"):
            loader(tmp_path / "run")


@pytest.mark.parametrize("kind", ["encoder", "masked_predictor", "gazelle", "probe"])
@pytest.mark.parametrize("place", ["folder", "model.safetensors", "my.safetensors"])
def test_our_format_there_and_back(tmp_path: Path, kind: str, place: str) -> None:
    module, loader = small_models()[kind]
    saved = load.save_model(module, tmp_path / place, notes={"accuracy": 0.5})
    again = loader(tmp_path / place)
    assert again.spec == module.spec
    for key, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
    assert not any(p.requires_grad for p in again.parameters())
    stored = read_model(tmp_path / place, kind)
    assert stored.file == saved
    assert stored.notes == {"accuracy": 0.5}


@pytest.mark.parametrize("num_bytes", [100, 10_000], ids=["config", "tensors"])
def test_a_full_disk_is_one_error_that_names_the_file_and_leaves_what_was_there(tmp_path: Path, num_bytes: int) -> None:
    module = torch.nn.Linear(1, 1) if num_bytes == 100 else torch.nn.Linear(100, 100)
    write_model(tmp_path, "probe", {}, module.state_dict())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    notes = {"said": "x" * 20_000}
    with files_of_at_most(num_bytes), pytest.raises((WeightsError, OSError), match="too large") as caught:
        write_model(tmp_path, "probe", {}, module.state_dict(), notes=notes)
    assert str(tmp_path) in f"{caught.value}"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_whoever_may_read_the_config_may_read_the_tensors(tmp_path: Path) -> None:
    module, _ = small_models()["probe"]
    before = os.umask(0o027)
    try:
        load.save_model(module, tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()}
    assert modes == {"config.json": "0o640", "model.safetensors": "0o640"}


def test_half_precision_on_disk_is_single_in_memory(tmp_path: Path) -> None:
    module, _ = small_models()["encoder"]
    load.save_model(module, tmp_path, torch.float16)
    again = load.load_encoder(tmp_path)
    assert again.norm.weight.dtype == torch.float32
    assert (tmp_path / "model.safetensors").stat().st_size < 0.7 * sum(p.numel() * 4 for p in module.parameters())
    torch.testing.assert_close(dict(again.named_parameters()), dict(module.named_parameters()), atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        module.norm.weight.fill_(1e6)
    with pytest.raises(WeightsError, match=r"norm\.weight cannot be stored"):
        load.save_model(module, tmp_path, torch.float16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    module, _ = small_models()["encoder"]
    load.save_model(module, tmp_path / "ours")
    return tmp_path / "ours"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "wrong format"),
        ({"version": 2}, "wrong version"),
        ({"version": True}, "wrong version"),
        ({"kind": "probe"}, "wrong kind"),
        ({"surprise": 1}, "not ours"),
        ({"spec": 3}, "not ours"),
        ({"tensors_sha256": "0" * 64}, "does not belong"),
        ({"spec": {"width": 16}}, "does not have these fields"),
        ({"spec": {"width": "16"}}, "width"),
        ({"spec": {"width": 24}}, "does not fit the model"),
        ({"spec": {"depth": 10**9}}, "depth is out of range"),
        ({"spec": {"depth": 2}}, "blocks.1"),
        ({"spec": {"num_heads": 3}}, "num_heads"),
    ],
)
def test_a_changed_config_is_refused(folder: Path, change: dict[str, object], message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if isinstance(change.get("spec"), dict) and message != "does not have these fields":
        change = {"spec": config["spec"] | change["spec"]}
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(WeightsError, match=message):
        load.load_encoder(folder)


@pytest.mark.parametrize("key", ["format", "version", "kind", "spec", "tensors_sha256"])
def test_an_incomplete_config_is_refused(folder: Path, key: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="not ours"):
        load.load_encoder(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json"):
        load.load_encoder(folder)


def test_a_config_larger_than_any_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("a") as file:
        file.write(" " * MAX_CONFIG_BYTES)
    with pytest.raises(WeightsError, match=r"config\.json is too large"):
        load.load_encoder(folder)


def test_a_config_without_notes_or_a_field_that_came_later_is_read(folder: Path) -> None:
    whole = load.load_encoder(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["notes"], config["spec"]["version"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load.load_encoder(folder).spec == whole.spec
    assert read_model(folder, "encoder").notes == {}


def test_whole_numbers_are_stored_as_they_are_and_no_other_type_of_fractions(tmp_path: Path) -> None:
    tensors = {"count": torch.tensor([3, 2**40]), "weight": torch.tensor([0.5])}
    write_model(tmp_path, "probe", {}, tensors, torch.float16)
    stored = read_model(tmp_path, "probe").tensors
    assert torch.equal(stored["count"], tensors["count"])
    assert (stored["count"].dtype, stored["weight"].dtype) == (torch.int64, torch.float16)
    with pytest.raises(WeightsError, match="stored as float32 or float16"):
        write_model(tmp_path, "probe", {}, tensors, torch.bfloat16)


def test_the_hash_of_tensors_is_of_names_types_shapes_and_values() -> None:
    tensor = torch.zeros(2, 3)
    others = [
        {"a": tensor}, {"b": tensor}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.ones(2, 3)}, {"a": tensor, "b": tensor},
    ]  # fmt: skip
    assert len({hash_tensors(tensors) for tensors in others}) == len(others)
    turned = torch.arange(6.0).reshape(2, 3)
    assert hash_tensors({"b": tensor, "a": turned}) == hash_tensors({"a": turned.T.contiguous().T, "b": tensor})


def test_a_model_is_told_by_all_of_its_files_and_by_what_was_chosen_of_them() -> None:
    one, other = WeightFile(Path("one"), "0" * 64), WeightFile(Path("other"), "1" * 64)
    assert digest_of([one], None, None) == one.sha256
    told = [
        digest_of([one]), digest_of([other]), digest_of([one, other]), digest_of([one, one]), digest_of([one], "key"),
        digest_of([one], 4), digest_of([one], None, 4), digest_of([one, other], 4),
    ]  # fmt: skip
    assert len(set(told)) == len(told)


def test_changed_tensors_are_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="does not belong"):
        load.load_encoder(folder)


def test_files_of_two_models_do_not_mix(folder: Path, tmp_path: Path) -> None:
    module, _ = small_models()["encoder"]
    with torch.no_grad():
        module.norm.bias.add_(1.0)
    load.save_model(module, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "config.json", folder / "config.json")
    with pytest.raises(WeightsError, match="does not belong"):
        load.load_encoder(folder)


def test_settings_for_released_files_are_refused_for_ours(folder: Path) -> None:
    for given in ({"key": "encoder"}, {"num_heads": 2}):
        with pytest.raises(WeightsError, match="needs no such setting"):
            load.load_encoder(folder, **given)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("masked_predictor", {"num_heads": 2}), ("gazelle", {"num_heads": 2}), ("gazelle", {"backbone_path": "x.pth"}),
        ("probe", {"num_heads": 2}), ("probe", {"index": 0}),
    ],
)  # fmt: skip
def test_settings_that_our_format_knows_are_refused(tmp_path: Path, kind: str, given: dict[str, Any]) -> None:
    module, loader = small_models()[kind]
    load.save_model(module, tmp_path)  # pyright: ignore[reportArgumentType]
    with pytest.raises(WeightsError, match="needs no such setting") as caught:
        loader(tmp_path, **given)
    assert next(iter(given)) in str(caught.value)


def test_a_gazelle_without_its_backbone_or_decoder_is_refused(tmp_path: Path) -> None:
    module, loader = small_models()["gazelle"]
    load.save_model(module, tmp_path)  # pyright: ignore[reportArgumentType]
    config = json.loads((tmp_path / "config.json").read_text())
    for spec in ({"backbone": config["spec"]["backbone"]}, config["spec"] | {"more": {}}):
        (tmp_path / "config.json").write_text(json.dumps(config | {"spec": spec}))
        with pytest.raises(WeightsError, match=r"wrong spec\s+expected: backbone and decoder"):
            loader(tmp_path)


def test_loaded_weights_can_be_trained_further(folder: Path) -> None:
    module = load.load_encoder(folder).requires_grad_(True)
    module(torch.randn(1, 3, 2, 8, 8)).mean().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(
    "spec",
    [
        EncoderSpec(1408, 40, 22, 48 / 11),
        MaskedPredictorSpec(1024),
        DINOv2Spec(768, 12, 12),
        GazelleSpec(inout=True, position_grid=(16, 32)),
        CausalStackSpec(1024),
        ProbeSpec(1024, 16, 4, 3, {"verb": 97, "noun": 289, "action": 3568}),
    ],
)
def test_specs_survive_json(spec: object) -> None:
    again = spec_from_plain(type(spec), json.loads(json.dumps(spec_to_plain(spec))))
    assert again == spec
    if isinstance(spec, ProbeSpec):
        assert list(again.num_classes) == ["verb", "noun", "action"]
