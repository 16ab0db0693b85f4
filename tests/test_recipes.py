"""Recipes: what is accepted, what is refused and how it is said, and the round trip."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwm import config
from hwm.config import AnticipateConfig, ClipDataConfig, OptimConfig, PretrainConfig
from hwm.errors import ConfigError
from hwm.recipes import dump_config, find_recipe, load_config, shipped_recipes

SMALL = """\
name: small
data:
  train: [a.txt]
  val: [b.txt]
optim:
  lr: 1e-4
"""

VERBS = {
    "adapt": config.AdaptConfig,
    "adapt-gaze": config.AdaptGazeConfig,
    "pretrain": PretrainConfig,
    "anticipate": AnticipateConfig,
    "gaze-score": config.GazeScoreConfig,
    "demo": config.DemoConfig,
    "compare": config.CompareConfig,
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, path, overrides)
    return str(caught.value)


def test_defaults_then_recipe_then_overrides(recipe: Path) -> None:
    plain = load_config(PretrainConfig, recipe)
    assert (plain.optim.lr, plain.optim.weight_decay) == (1e-4, OptimConfig().weight_decay)
    overridden = load_config(
        PretrainConfig, recipe, ["optim.lr=3E-5", "gaze=none", "optim.betas=[0, 0.95]", "optim.num_steps=1e4"]
    )
    assert (overridden.optim.lr, overridden.gaze, overridden.optim.betas) == (3e-5, "none", (0.0, 0.95))
    assert overridden.optim.num_steps == 10_000


def test_overrides_reach_into_what_is_null_and_can_set_null(recipe: Path) -> None:
    made = load_config(PretrainConfig, recipe, ["data.augment.scale=[0.5, 0.9]"])
    assert made.data.augment is not None
    assert made.data.augment.scale == (0.5, 0.9)
    recipe.write_text(SMALL + "target_encoder:\n  weights: other\n")
    assert load_config(PretrainConfig, recipe, ["target_encoder=null"]).target_encoder is None


def test_a_pattern_is_given_as_the_refusal_of_a_bare_one_says(recipe: Path) -> None:
    (advised,) = shlex.split(refused(recipe, "data.glob=**/*.mp4").rpartition(": ")[2])
    assert load_config(PretrainConfig, recipe, [advised]).data.glob == "**/*.mp4"


def test_an_override_of_a_group_replaces_it(recipe: Path) -> None:
    assert load_config(PretrainConfig, recipe, ["optim={num_steps: 7}"]).optim == OptimConfig(num_steps=7)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1", ["override optim.lrr=1", "did you mean 'optim.lr'"]),
        ("lr=1", ["did you mean 'optim.lr'"]),
        ("optim.lr", ["dotted.key=value"]),
        ("=3", ["dotted.key=value"]),
        ("optim..lr=3", ["dotted.key=value"]),
        ("optim.lr=", ["no value"]),
        ("optim.lr=0", ["greater than 0", "found 0"]),
        ("optim.lr=fast", ["valid number", '"fast"']),
        ("optim.lr=.inf", ["finite"]),
        ("seed=true", ["should be a number", "true"]),
        ("seed='3'", ["should be a number", '"3"']),
        ("optim.lr.x=3", ["optim.lr has no parts", "0.0001"]),
        ("name.x=3", ["name has no parts"]),
        ("gaze=maybe", ["'none', 'estimated' or 'measured'"]),
        ("loss.rollout_steps=8", ["loss.rollout_steps (8)", "data.num_steps (8)"]),
        ("optim.betas=[1, 2, 3]", ["optim.betas"]),
        ("optim.betas=[0.9, 1]", ["optim.betas.1", "less than 1", "found 1"]),
        ("predictor.num_heads=0", ["predictor.num_heads", "greater than or equal to 1"]),
        ("encoder.num_heads=0", ["encoder.num_heads", "greater than or equal to 1"]),
        ("predictor.mlp_ratio=-1", ["predictor.mlp_ratio", "greater than 0"]),
        ("data.augment.scale=[0.5, 1.5]", ["data.augment.scale.1", "less than or equal to 1"]),
        ("data.augment.ratio=[2, 1]", ["data.augment.ratio", "lowest, highest"]),
        ("name=../evil", ["name"]),
        ("name=2024-01-01", ["date", "quotes"]),
        ("name=!!python/name:os.system", ["override name", "tag"]),
        ("data.train=[a", ["override data.train", "not a plain YAML"]),
        ("data.glob=*.mp4", ["override data.glob=*.mp4", """fix: if it is meant as text""", """'data.glob="*.mp4"'"""]),
    ],
)
def test_wrong_overrides_are_refused_and_explained(recipe: Path, override: str, words: list[str]) -> None:
    message = refused(recipe, override)
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("backbone.mask_idx=3", ["no setting 'backbone.mask_idx'", "did you mean 'backbone.mask_index'"]),
        ("backbone.encoder.weight=x", ["no setting 'backbone.encoder.weight'", "'backbone.encoder.weights'"]),
        ("backbone.kind=hwm", ["no setting 'backbone.fps' of this kind", "another backbone.kind"]),
        ("backbone.kind=vjepa", ["backbone: ", "'hwm', 'vjepa2'"]),
        ("backbone.fps=0", ["backbone.fps: ", "greater than 0"]),
    ],
)
def test_settings_of_a_kind_are_named_as_they_are_written(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(AnticipateConfig, "anticipate/keystep-vjepa2-baseline-vitl", [override])
    for word in words:
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("anticipate/toyworld", "probe.lrs=[-1]", ["probe.lrs.0", "greater than 0"]),
        ("anticipate/toyworld", "probe.lrs=[]", ["probe.lrs", "at least 1 item"]),
        ("anticipate/toyworld", "probe.weight_decays=[-1]", ["probe.weight_decays.0", "greater than or equal to 0"]),
        ("anticipate/toyworld", "probe.weight_decays=[]", ["probe.weight_decays", "at least 1 item"]),
        ("adapt/toyworld", "masks.aspect=[-1, 1]", ["masks.aspect.0", "greater than 0"]),
        ("adapt/toyworld", "ema=[0.9, 2]", ["ema.1", "less than or equal to 1"]),
        ("adapt-gaze/toyworld", "backbone.num_heads=0", ["backbone.num_heads", "greater than or equal to 1"]),
        ("adapt-gaze/toyworld", "decoder_width=8", ["decoder_width", "greater than or equal to 16"]),
    ],
)
def test_numbers_that_no_run_could_use_are_refused_before_it(name: str, override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(VERBS[name.split("/")[0]], name, [override])
    for word in words:
        assert word in str(caught.value), caught.value


def test_an_override_given_twice_is_refused(recipe: Path) -> None:
    assert "already given" in refused(recipe, "seed=1", "seed=2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SMALL + "  lr: 3\n", [":7", "duplicate key"]),
        (SMALL + "sed: 3\n", [":7", "'sed'", "did you mean 'seed'"]),
        (SMALL.replace("  lr: 1e-4", "  learning_rate: 1e-4"), [":6", "'optim.learning_rate'", "did you mean"]),
        (SMALL.replace("  val: [b.txt]\n", ""), [":3", "'data.val' is missing"]),
        (SMALL + "seed: !!int 3\n" + "x: !thing 4\n", [":8", "tag"]),
        (SMALL + "gazelle: !!python/object/apply:os.system [id]\n", [":7", "tag"]),
        (SMALL + "encoder: &e {weights: mini}\ntarget_encoder: *e\n", [":7", "anchors"]),
        (SMALL + "3: 4\n", ["3 is not a setting's name"]),
        (SMALL + "? [a, b]\n: 4\n", ["a sequence is not a setting's name", "a word"]),
        (SMALL + "optim2:\n  ? {a: b}\n  : 4\n", [":8", "a mapping is not a setting's name"]),
        ("- a\n- b\n", ["not a recipe"]),
        ("", ["not a recipe"]),
        ("name: [1\n", [":2", "not a plain YAML"]),
        ("a: 1\n---\nb: 2\n", [":2", "not a plain YAML"]),
        ("[" * 5000, ["not a plain YAML"]),
        (SMALL + "folder: !!binary aGVsbG8=\n", [":7", "bytes"]),
    ],
)
def test_wrong_recipes_are_refused_with_file_and_line(recipe: Path, text: str, words: list[str]) -> None:
    recipe.write_text(text)
    message = refused(recipe)
    for word in words:
        assert word in message, message
    assert "small.yaml" in message


def test_all_mistakes_are_listed_at_once(recipe: Path) -> None:
    recipe.write_text(SMALL.replace("name: small", "name: ''") + "sed: 3\n")
    message = refused(recipe, "optim.num_steps=0")
    assert message.startswith("3 mistakes in")
    assert all(word in message for word in ("small.yaml:1", "small.yaml:7", "override optim.num_steps=0"))


def test_laughing_recipes_are_refused_quickly(recipe: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    recipe.write_text("\n".join(lines))
    start = time.monotonic()
    assert "anchors" in refused(recipe)
    assert time.monotonic() - start < 1.0


def test_not_text_and_too_large_are_refused(recipe: Path) -> None:
    recipe.write_bytes(b"\xff\xfe\x00")
    assert "not text" in refused(recipe)
    recipe.write_bytes(b"#" * 1_000_001)
    assert "too large" in refused(recipe)


def test_yaml_numbers_and_words_are_those_of_version_1_2(recipe: Path) -> None:
    recipe.write_text(SMALL.replace("name: small", "name: no").replace("1e-4", "1E-4"))
    loaded = load_config(PretrainConfig, recipe)
    assert (loaded.name, loaded.optim.lr) == ("no", 1e-4)


def test_extends_gives_only_what_differs(recipe: Path) -> None:
    child = recipe.with_name("child.yaml")
    child.write_text("extends: small.yaml\nname: child\ndata:\n  val: [c.txt]\n")
    loaded = load_config(PretrainConfig, child)
    assert (loaded.name, loaded.data.train, loaded.data.val) == ("child", ("a.txt",), ("c.txt",))
    assert loaded.optim.lr == 1e-4
    recipe.write_text(SMALL + "sed: 1\n")
    assert "small.yaml:7" in refused(child)


def test_extending_itself_or_nothing_is_refused(recipe: Path) -> None:
    recipe.write_text("extends: other.yaml\n" + SMALL)
    assert "small.yaml:1" in refused(recipe)
    recipe.with_name("other.yaml").write_text("extends: small.yaml\n")
    assert "extends itself" in refused(recipe)


def test_missing_recipes_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pretrain/toyworld"):
        load_config(PretrainConfig, "pretrain/toywold")
    with pytest.raises(ConfigError, match="a folder"):
        load_config(PretrainConfig, tmp_path)


def test_shipped_recipes_are_found_by_name_and_by_path() -> None:
    path = find_recipe("pretrain/toyworld")
    assert find_recipe(path) == path
    assert find_recipe("configs/pretrain/toyworld.yaml").samefile(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_survives_the_round_trip(name: str, tmp_path: Path) -> None:
    cls = VERBS[name.split("/")[0]]
    loaded = load_config(cls, name)
    dump_config(loaded, tmp_path / "config.yaml")
    assert load_config(cls, tmp_path / "config.yaml") == loaded


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_says_what_to_fetch_in_its_first_comment(name: str) -> None:
    first = find_recipe(name).read_text(encoding="utf-8").split("\n\n")[0]
    assert first.startswith("# ")
    assert "hwm " in first or "make " in first, "the command that runs the recipe"


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    lr=st.floats(1e-300, 1e300, allow_nan=False),
    names=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])), max_size=3),
)
def test_any_values_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, seed: int, lr: float, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("round") / "config.yaml"
    made = PretrainConfig(
        name="x",
        seed=seed,
        optim=OptimConfig(lr=lr),
        data=ClipDataConfig(train=tuple(names), val=("no", "1e-4", "null", "2024-01-01", "~", "a: b", "#c")),
    )
    dump_config(made, path)
    assert load_config(PretrainConfig, path) == made


def test_refusing_a_recipe_does_not_import_torch(tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(SMALL + "sed: 3\n")
    code = (
        "import sys, hwm\n"
        "from hwm.config import PretrainConfig\n"
        f"try: hwm.load_config(PretrainConfig, {str(recipe)!r})\n"
        "except hwm.HwmError as error: print(type(error).__name__, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "ConfigError False\n"
