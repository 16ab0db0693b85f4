"""The catalogue, the names of weights in recipes, and `hwm weights`: what each command says and refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save_file

from hwm.cli import main
from hwm.config import EncoderConfig, GazelleConfig, PretrainConfig
from hwm.engine.assemble import load_frozen_encoder, load_gazelle, new_world
from hwm.engine.named_weights import is_offline, weights_folder, weights_path
from hwm.errors import ConfigError, WeightsError
from hwm.pipelines.convert import convert
from hwm.pipelines.weights import listed, verify_all
from hwm.weights import catalog, layouts, load
from hwm.weights.catalog import CATALOG
from hwm.weights.files import digest_of
from hwm.weights.layouts import inspect
from hwm.weights.record import RECORD_NAME, read_record

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "vjepa2_checkpoint.pt"
PAGE = Path(__file__).parents[1] / "docs" / "weights.md"
MINI = Path(load.__file__).parent / "mini"


@pytest.fixture(autouse=True)
def weights_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$HWM_HOME`, no switch for offline, and a wide terminal."""
    monkeypatch.setenv("HWM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home" / "weights"


def ends(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def put(folder: Path, name: str, source: Path = CHECKPOINT) -> Path:
    path = folder / catalog.require(name).file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.read_bytes())
    return path


# The catalogue


def test_names_and_places_are_unique_even_where_case_does_not_count() -> None:
    for values in ([release.name for release in CATALOG], [release.file for release in CATALOG]):
        assert len({value.lower() for value in values}) == len(values)


@pytest.mark.parametrize("release", CATALOG, ids=lambda release: release.name)
def test_every_entry_is_complete(release: catalog.Release) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", release.name)
    assert release.licence in ("MIT", "Apache-2.0")
    assert not release.file.startswith(("/", ".")) and ".." not in release.file  # noqa: PT018
    assert urlsplit(release.url).scheme == "https"
    assert urlsplit(release.url).hostname in ("dl.fbaipublicfiles.com", "github.com", "huggingface.co")
    assert release.architecture
    assert release.holds
    assert release.stage
    assert release.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", release.sha256)
    assert (release.repo is not None) == (urlsplit(release.url).hostname == "huggingface.co")
    if release.repo is not None:
        assert release.url == f"https://huggingface.co/{release.repo}/resolve/main/model.safetensors"


def test_all_released_files_that_hwm_can_use_are_there() -> None:
    files = {release.released_name for release in CATALOG}
    assert {"vitl.pt", "vith.pt", "vitg.pt", "vitg-384.pt", "vjepa2-ac-vitg.pt"} <= files
    assert {f"vjepa2_1_{size}_384.pt" for size in ("vitb_dist_vitG", "vitl_dist_vitG", "vitg", "vitG")} <= files
    assert {f"gazelle_dinov2_vit{size}14{inout}.pt" for size in "bl" for inout in ("", "_inout")} <= files
    repos = {release.repo for release in CATALOG}
    assert {f"facebook/vjepa2-vit{size}" for size in ("l-fpc64-256", "h-fpc64-256", "g-fpc64-256")} <= repos


def test_the_page_has_every_entry_with_its_facts() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `hwm weights fetch")]
    assert rows == [
        f"| `hwm weights fetch {release.name}` | [{release.architecture}]({release.url}) | {', '.join(release.holds)} "
        f"| {release.stage} | {'' if release.size is None else f'{release.size:,}'} | {release.licence} |"
        for release in CATALOG
    ]


def test_an_unknown_name_suggests_the_nearest() -> None:
    for wrong, meant in (
        ("vjepa2-vitl256", "vjepa2-vitl-256"),
        ("VJEPA2-ViTL-256", "vjepa2-vitl-256"),
        ("dinov2_vitb14", "dinov2-vitb14"),
        ("gazelle_dinov2_vitl14_inout", "gazelle-vitl14-inout"),
    ):
        assert catalog.near(wrong)[0] == meant
        with pytest.raises(ConfigError, match=f"did you mean {meant}"):
            catalog.require(wrong)
    with pytest.raises(ConfigError, match="hwm weights list"):
        catalog.require("something else")


def test_a_released_file_name_is_known_only_where_it_is_one_file() -> None:
    found = catalog.find_file("vitl.pt")
    assert found is not None
    assert found.name == "vjepa2-vitl-256"
    assert catalog.find_file("model.safetensors") is None
    gigantic = catalog.find_file("vjepa2_1_vitG_384.pt")  # which is kept under another name
    assert gigantic is not None
    assert gigantic.name == "vjepa2.1-vitgigantic-384"


# Names in recipes


def test_a_name_means_the_file_below_hwm_home(weights_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert weights_folder() == weights_home
    assert weights_path("vjepa2-vitl-256") == str(weights_home / "vitl.pt")
    assert weights_path("dinov2-base") == str(weights_home / "dinov2-base" / "model.safetensors")
    assert (weights_path("mini"), weights_path("runs/x.pt")) == ("mini", "runs/x.pt")
    assert weights_path("./dinov2-base") == "dinov2-base"
    assert weights_path("~/x.pt") == "/somewhere/x.pt"


def test_a_recipe_that_names_weights_reads_the_fetched_file(weights_home: Path) -> None:
    put(weights_home, "vjepa2-vitl-256")
    by_name = load_frozen_encoder(EncoderConfig(weights="vjepa2-vitl-256", num_heads=4))
    by_path = load.read_encoder(CHECKPOINT, None, 4)
    assert by_name.sha256 == digest_of(by_path.files, None, 4)  # the file, and how it was read
    for name, tensor in by_path.module.state_dict().items():
        assert torch.equal(by_name.module.state_dict()[name], tensor)


def test_gazelle_and_its_backbone_may_be_named(weights_home: Path) -> None:
    put(weights_home, "gazelle-vitb14-inout", GOLDEN / "gazelle_inout.pt")
    put(weights_home, "dinov2-vitb14", GOLDEN / "dinov2_inout.pth")
    config = GazelleConfig(weights="gazelle-vitb14-inout", backbone="dinov2-vitb14", resolution=56)
    with pytest.raises(WeightsError, match=r"dinov2_vitb14_pretrain\.pth.*attention heads"):
        load_gazelle(config)  # both files were found; the golden backbone's width is not a published one


def test_missing_named_weights_are_told_with_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: x\ndata:\n  train: [{tmp_path}]\n  val: [{tmp_path}]\n")
    named = ("encoder.weights=vjepa2-vitl-256", "gazelle.weights=gazelle-vitb14", "gazelle.backbone=dinov2-vitb14")
    assert ends("pretrain", recipe, *named) == 2
    assert "    hwm weights fetch vjepa2-vitl-256 gazelle-vitb14 dinov2-vitb14\n" in capsys.readouterr().err
    assert ends("pretrain", recipe, "encoder.weights=vjepa2-vitl") == 2
    assert "encoder.weights: did you mean vjepa2-vitl-256" in capsys.readouterr().err


# list, fetch, verify


def test_list_shows_every_entry_and_its_state(weights_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(weights_home, "vjepa2-vitl-256")
    put(weights_home, "dinov2-vitb14")
    verify_all(["dinov2-vitb14"])
    states = {line.release.name: line.state for line in listed()}
    assert states.pop("vjepa2-vitl-256") == "here"
    assert states.pop("dinov2-vitb14") == "verified"
    assert set(states.values()) == {"absent"}
    assert ends("weights", "list") == 0
    out = capsys.readouterr().out
    assert all(release.name in out and release.licence in out for release in CATALOG)
    assert re.search(r"dinov2-vitb14 .*1\.28 MB .*Apache-2\.0 .*verified", out)


def test_names_are_whole_in_a_narrow_terminal(
    weights_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert ends("weights", "list") == 0
    out = capsys.readouterr().out
    first = [line.split()[0] for line in out.splitlines()]
    assert "…" not in out
    assert all(release.name in first for release in CATALOG)
    words = " ".join(out.split())
    assert all(word in words for release in CATALOG for word in release.architecture.split())
    assert max(map(len, out.splitlines())) <= 60
    assert out.count("absent") == len(CATALOG)


@pytest.mark.parametrize("switch", ["option", "variable"])
def test_fetch_offline_is_an_error_with_address_and_place(
    weights_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], switch: str
) -> None:
    if switch == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert is_offline()
    assert ends("weights", "fetch", "vjepa2-vitl-256", *(["--offline"] if switch == "option" else [])) == 1
    assert f"https://dl.fbaipublicfiles.com/vjepa2/vitl.pt -> {weights_home / 'vitl.pt'}" in capsys.readouterr().err


def test_fetch_refuses_a_wrong_name_before_it_fetches_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends("weights", "fetch", "vjepa2-vitl-256", "vjepa2-vitl256") == 2
    assert "did you mean vjepa2-vitl-256" in capsys.readouterr().err


def test_fetch_of_what_is_here_checks_it(weights_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(weights_home, "vjepa2-vitl-256")
    assert ends("weights", "fetch", "vjepa2-vitl-256", "--offline") == 0
    assert ends("weights", "fetch", "vjepa2-vitl-256", "--offline") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["recorded", "verified"]
    path.write_bytes(b"x")
    assert ends("weights", "fetch", "vjepa2-vitl-256", "--offline") == 1


def test_verify_names_every_file_that_differs(weights_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends("weights", "verify") == 0
    assert "nothing to verify" in capsys.readouterr().out
    first, second = put(weights_home, "vjepa2-vitl-256"), put(weights_home, "dinov2-vitb14")
    third = put(weights_home, "dinov2-base")
    assert ends("weights", "verify") == 0
    recorded = read_record(weights_home)
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    capsys.readouterr()
    assert ends("weights", "verify") == 1
    error = capsys.readouterr().err
    assert str(first) in error
    assert str(second) in error
    assert str(third) not in error
    assert recorded["vitl.pt"].sha256 in error
    assert read_record(weights_home) == recorded | {
        "dinov2-base/model.safetensors": read_record(weights_home)["dinov2-base/model.safetensors"]
    }


def test_verify_takes_paths_and_compares_where_it_can(weights_home: Path, tmp_path: Path) -> None:
    put(weights_home, "vjepa2-vitl-256")
    elsewhere = tmp_path / "vitl.pt"
    elsewhere.write_bytes(CHECKPOINT.read_bytes())
    assert [done.outcome for done in verify_all([str(elsewhere)])] == ["nothing to compare with"]
    verify_all(["vjepa2-vitl-256"])
    assert [done.outcome for done in verify_all([str(elsewhere)])] == ["same as vjepa2-vitl-256"]
    elsewhere.write_bytes(b"other")
    with pytest.raises(WeightsError, match=r"not the vitl\.pt that was fetched"):
        verify_all([str(elsewhere)])
    with pytest.raises(ConfigError, match="did you mean vjepa2-vitl-256"):
        verify_all(["vjepa2-vitl256"])
    with pytest.raises(WeightsError, match="hwm weights fetch dinov2-vitb14"):
        verify_all(["dinov2-vitb14"])
    assert (weights_home / RECORD_NAME).is_file()
    assert not (tmp_path / RECORD_NAME).exists()


# inspect


@pytest.mark.parametrize(
    ("path", "layout", "models"),
    [
        (CHECKPOINT, "V-JEPA 2 checkpoint", ["target_encoder", "encoder", "predictor"]),
        (GOLDEN / "gazelle_inout.pt", "Gaze-LLE decoder", ["decoder"]),
        (GOLDEN / "gazelle_plain.pt", "Gaze-LLE decoder", ["decoder"]),
        (GOLDEN / "dinov2_plain.pth", "DINOv2", ["backbone"]),
        (GOLDEN / "probe3_weights.safetensors", "V-JEPA 2 attentive probe", ["probe"]),
        (GOLDEN / "causal_predictor_weights.safetensors", "block-causal stack", ["causal_stack"]),
        (MINI / "encoder", layouts.OURS, ["encoder"]),
        (MINI / "gazelle" / "model.safetensors", layouts.OURS, ["gazelle"]),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_inspect_knows_every_layout(path: Path, layout: str, models: list[str]) -> None:
    found = inspect(path)
    assert (found.layout, [model.name for model in found.models]) == (layout, models)
    assert not [model.problem for model in found.models if model.problem]
    assert found.sha256 == load.hash_file(found.path).sha256
    assert found.size == found.path.stat().st_size


def test_inspect_tells_the_true_sizes() -> None:
    true = json.loads((GOLDEN / "vjepa2.json").read_text())["config"]
    encoder, _, predictor = inspect(CHECKPOINT).models
    assert (encoder.sizes["width"], encoder.sizes["depth"], encoder.dtype) == (true["dim"], true["depth"], "float32")
    assert (predictor.sizes["width"], predictor.sizes["depth"]) == (true["pdim"], true["pdepth"])
    module = load.load_encoder(CHECKPOINT, num_heads=true["heads"])
    assert encoder.num_parameters == sum(parameter.numel() for parameter in module.parameters())
    assert encoder.heads.startswith("not known")
    assert "num_heads" not in encoder.sizes
    decoder = inspect(GOLDEN / "gazelle_inout.pt").models[0]
    state = torch.load(GOLDEN / "gazelle_inout.pt", weights_only=True)
    assert decoder.num_parameters == sum(t.numel() for name, t in state.items() if name != "pos_embed")
    assert inspect(MINI / "encoder").models[0].heads == "4, as stored"
    assert "opt" in inspect(CHECKPOINT).beside
    assert set(inspect(GOLDEN / "dinov2_plain.pth").models[0].dropped) == {"mask_token"}


def test_inspect_of_a_world_model(tmp_path: Path, tiny_weights: Path) -> None:
    settings = {
        "name": "world",
        "encoder": {"weights": str(tiny_weights / "encoder"), "resolution": 64},
        "gazelle": {"weights": str(tiny_weights / "gazelle"), "resolution": 56},
        "data": {"train": ["a"], "val": ["b"]},
        "predictor": {"width": 24, "depth": 2, "num_heads": 2},
    }
    world = new_world(PretrainConfig.model_validate(settings)).world
    world.save_pretrained(tmp_path / "world")
    found = inspect(tmp_path / "world").models[0]
    assert (found.name, found.problem) == ("world_model", None)
    assert found.num_parameters == sum(parameter.numel() for parameter in world.parameters())
    assert found.sizes["encoder.width"] == 32
    assert inspect(tmp_path / "world" / "model.safetensors").models[0] == found


def test_inspect_says_which_model_would_not_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(CHECKPOINT, weights_only=True)
    content["predictor"]["module.backbone.surplus\x1b[31m"] = torch.zeros(2)
    path = tmp_path / "x.pt"
    torch.save(content, path)
    assert ends("weights", "inspect", path) == 1
    shown = capsys.readouterr()
    assert "surplus\\x1b[31m" in shown.out
    assert "\x1b" not in shown.out + shown.err
    assert shown.out.count("loads: yes") == 2
    assert "predictor would not load" in shown.err


def test_inspect_of_an_unknown_file_says_what_it_found(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no known layout[\s\S]*labels, logits"):
        inspect(GOLDEN / "metrics.safetensors")
    torch.save({"model": {"some.weight": torch.zeros(1)}, "step": 3}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"step, model\.some\.weight"):
        inspect(tmp_path / "x.pt")
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"format": "hwm-weights", "kind": "other"})
    with pytest.raises(WeightsError, match="no reader"):
        inspect(tmp_path / "x.safetensors")
    (tmp_path / "x.bin").write_bytes(b"0")
    with pytest.raises(WeightsError, match="no weight file"):
        inspect(tmp_path / "x.bin")
    with pytest.raises(WeightsError, match="no weight file"):
        inspect(tmp_path / "nothing.pt")


# convert


@pytest.mark.parametrize("model", [None, "encoder", "predictor"])
def test_converted_weights_are_the_same_tensors(tmp_path: Path, model: str | None) -> None:
    content = torch.load(CHECKPOINT, weights_only=True)
    content["target_encoder"] = {key: 2 * tensor for key, tensor in content["encoder"].items()}
    source, heads = tmp_path / "x.pt", 3 if model == "predictor" else 4
    torch.save(content, source)
    done = convert(source, tmp_path / "out", model=model, num_heads=heads)
    if model == "predictor":
        before, after = load.load_masked_predictor(source, heads), load.load_masked_predictor(tmp_path / "out")
    else:
        before, after = load.load_encoder(source, model, heads), load.load_encoder(tmp_path / "out")
    assert before.spec == after.spec
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())
    assert done.num_loaded == len(before.state_dict())
    assert {"opt", "epoch"} <= set(done.left_out)
    assert done.bytes_after < done.bytes_before


def test_convert_takes_the_averaged_encoder_by_itself(tmp_path: Path) -> None:
    assert convert(CHECKPOINT, tmp_path / "out", num_heads=4).model == "target_encoder"
    notes = json.loads((tmp_path / "out" / "config.json").read_text())["notes"]
    assert notes["source_sha256"] == load.hash_file(CHECKPOINT).sha256


def test_convert_to_half_and_of_gazelle(tmp_path: Path) -> None:
    whole = convert(CHECKPOINT, tmp_path / "whole.safetensors", num_heads=4)
    half = convert(tmp_path / "whole.safetensors", tmp_path / "half.safetensors", dtype="float16")
    assert half.bytes_after < 0.6 * whole.bytes_after
    assert inspect(half.path).models[0].dtype == "float16"
    decoder, backbone = GOLDEN / "gazelle_inout.pt", GOLDEN / "dinov2_inout.pth"
    convert(decoder, tmp_path / "gaze", backbone=backbone, num_heads=3)
    before, after = load.load_gazelle(decoder, backbone, 3), load.load_gazelle(tmp_path / "gaze")
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())


@pytest.mark.parametrize("there", ["out", "out.safetensors", "out.json"])
def test_convert_overwrites_nothing(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    target = tmp_path / ("out.safetensors" if there != "out" else "out")
    with pytest.raises(ConfigError, match="is there already"):
        convert(CHECKPOINT, target, num_heads=4)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [there]
    assert (tmp_path / there).read_text() == "mine"


def test_convert_says_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert ends("weights", "convert", CHECKPOINT, out) == 1
    assert "number of attention heads is not known" in capsys.readouterr().err
    assert ends("weights", "convert", CHECKPOINT, out, "--model", "decoder") == 2
    assert "--model target_encoder or encoder or predictor" in capsys.readouterr().err
    assert ends("weights", "convert", CHECKPOINT, out, "--dtype", "int8") == 2
    assert ends("weights", "convert", CHECKPOINT, out, "--backbone", "mini", "--num-heads", "4") == 2
    assert ends("weights", "convert", GOLDEN / "gazelle_inout.pt", out) == 1
    assert ends("weights", "convert", GOLDEN / "dinov2_plain.pth", out, "--num-heads", "3") == 1
    assert "no format of its own" in capsys.readouterr().err
    assert not out.exists()


def test_convert_tells_the_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--backbone", GOLDEN / "dinov2_inout.pth", "--num-heads", "3")
    assert ends("weights", "convert", GOLDEN / "gazelle_inout.pt", tmp_path / "out", *arguments) == 0
    out = capsys.readouterr().out
    assert "loaded: 79 tensors" in out
    assert "dropped: mask_token (stands in for hidden patches" in out
    assert re.search(r"size: 214 kB -> \d", out)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["fetch", "vjepa2-vitl-256", "--offline"], ["verify"]], ids=lambda a: a[0]
)
def test_listing_fetching_and_verifying_need_no_torch(arguments: list[str]) -> None:
    code = (
        f"import sys\nfrom hwm.cli import main\ntry: main({['weights', *arguments]!r})\nexcept SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'av', 'scipy', 'matplotlib'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr
