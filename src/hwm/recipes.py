"""Recipes: a YAML file and dotted overrides become one validated, frozen configuration.

    CONFIG (a path, or a name such as `demo/quick`)  +  ["optim.lr=1e-4", ...]  ->  PretrainConfig(...)

Values come from three places in this order: the defaults of `hwm.config`, the recipe, the overrides. A recipe may say
`extends: other.yaml` (beside it) in its first level and then gives only what differs; lists are replaced, not joined.
Recipes are YAML 1.2: `1e-4` is a number, `no` is a word, a key given twice is an error, tags, anchors and dates are
refused. Relative paths inside a recipe are relative to the folder the command runs in, and `~` is the home folder.

What has no tag and passes `hwm.config` is all a recipe can say: it can name no code. Nothing here imports torch.
"""

import difflib
import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from os.path import expanduser
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from hwm.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)
Loc: TypeAlias = tuple[str | int, ...]
Origins: TypeAlias = dict[Loc, str]
"""Where each value was said: `("optim", "lr") -> "my.yaml:12"` or `"override optim.lr=3"`."""

_MAX_BYTES = 1_000_000
_PLAIN = (str, int, float, bool, type(None))


class _Said(NamedTuple):
    """Plain values, and where each was said."""

    tree: Any
    origins: Origins


def load_config(cls: type[Config], source: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe, applies overrides, validates.

    Args:
        cls: configuration class of the verb, e.g. `PretrainConfig`.
        source: a YAML file, or the name of a shipped recipe (`demo/quick`).
        overrides: `dotted.key=value`, the value read as YAML (`probe.lrs=[1e-3, 1e-4]`, `data.augment=null`).

    Raises:
        ConfigError: no such recipe, not YAML, an unknown key (the nearest is named) or a value that does not fit;
            all mistakes of a recipe are listed at once, each with file and line.
    """
    path = find_recipe(source)
    said = _read_file(path, seen=())
    seen: set[str] = set()
    for override in overrides:
        said = _apply_override(said, override, seen)
    try:
        config = cls.model_validate(said.tree)
    except ValidationError as error:
        raise _explain(cls, path, said, error) from None
    _require_same_kind(said.tree, config.model_dump(mode="json"), (), said.origins)
    return config


def load_any(classes: Sequence[type[Config]], source: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe of one of several verbs: of the first whose settings include most of the recipe's keys.

    Raises:
        ConfigError: as `load_config` of that verb.
    """
    keys = _read_file(find_recipe(source), seen=()).tree.keys()
    likeliest = max(classes, key=lambda cls: len(keys & cls.model_fields.keys()))
    return load_config(likeliest, source, overrides)


def dump_config(config: BaseModel, path: Path) -> None:
    """Writes a resolved configuration as a recipe that loads to an equal configuration."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    aside = path.with_name(f"{path.name}.tmp")  # where the disk is full, the one that is there stays
    with aside.open("w", encoding="utf-8") as file:
        yaml.dump(config.model_dump(mode="json"), file)
    aside.replace(path)


def find_recipe(source: Path | str) -> Path:
    """Resolves a path, or a shipped recipe's name with or without `configs/` and `.yaml`.

    Raises:
        ConfigError: there is no such file; the nearest shipped names are suggested.
    """
    path = Path(expanduser(source))
    if path.is_file():
        return path
    shipped = shipped_recipes()
    name = Path(source).as_posix().removeprefix("configs/").removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=3) or sorted(shipped)
    raise ConfigError(
        f"There is no recipe {str(source)!r}",
        expected="a YAML file, or a shipped recipe: " + ", ".join(near),
        found="a folder" if path.is_dir() else "nothing of that name",
    )


def shipped_recipes() -> dict[str, Path]:
    """All recipes that come with the package by their names, e.g. `pretrain/toyworld`."""
    return {name: folder / f"{name}.yaml" for folder in _shipped_folders() for name in _names_below(folder)}


def _shipped_folders() -> Iterator[Path]:
    """The checkout's `configs/` if this is one, else the copy inside the wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "configs").is_dir():
        yield checkout / "configs"
    elif (package / "configs").is_dir():
        yield package / "configs"


def _names_below(folder: Path) -> list[str]:
    return [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.yaml"))]


def _read_file(path: Path, seen: tuple[Path, ...]) -> _Said:
    """Reads one recipe and, first, those it extends."""
    if path.resolve() in seen:
        raise ConfigError(f"{path} extends itself", found=" -> ".join(str(step) for step in (*seen, path.resolve())))
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path} is too large to be a recipe", expected=f"at most {_MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text", expected="UTF-8", found=str(error)) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", found=str(error)) from error
    said = _parse(text, lambda line: f"{path}:{line}")
    if not isinstance(said.tree, dict):
        raise ConfigError(f"{path} is not a recipe", expected="`key: value` lines", found=_shown(said.tree))
    if "extends" not in said.tree:
        return said
    parent = said.tree.pop("extends")
    if not isinstance(parent, str) or not (path.parent / parent).is_file():
        where = said.origins[("extends",)]
        raise ConfigError(f"{where}: `extends` names no recipe", expected="a file beside this one", found=str(parent))
    base = _read_file(path.parent / parent, (*seen, path.resolve()))
    return _Said(_merged(base.tree, said.tree), base.origins | said.origins)


def _parse(text: str, place: Callable[[int], str]) -> _Said:
    """Parses YAML to plain values; refuses what is not plain. `place` names a line (from 1) in errors."""
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = 50  # a recipe is a few levels deep; deeper is an attack or an accident
    try:
        node = yaml.compose(text)
        origins = dict(_origins(node, place)) if node is not None else {}
        tree = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        problem = str(error.problem or error.context or "unreadable").split("\n")[0]
        raise ConfigError(f"{place(line)}: not a plain YAML 1.2 value: {problem}") from error
    except (YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{place(1)}: not a plain YAML 1.2 value: {type(error).__name__}") from error
    _require_plain(tree, (), origins)
    return _Said(tree, origins)


def _origins(node: Node, place: Callable[[int], str]) -> Iterator[tuple[Loc, str]]:
    """Walks the node tree once; an anchor used twice is refused (a few lines of them can unfold to gigabytes)."""
    seen: set[int] = set()
    todo: list[tuple[Loc, Node]] = [((), node)]
    while todo:
        loc, current = todo.pop()
        said_at = place(current.start_mark.line + 1)
        if id(current) in seen:
            raise ConfigError(f"{said_at}: anchors and aliases are not allowed in recipes", fix="write the value out")
        seen.add(id(current))
        yield loc, said_at
        if isinstance(current, MappingNode):
            for key, value in current.value:
                if not isinstance(key, ScalarNode):
                    raise ConfigError(f"{said_at}: a {key.id} is not a setting's name", expected="a word")
                todo.append(((*loc, key.value), value))
        elif isinstance(current.value, list):
            todo += [((*loc, index), value) for index, value in enumerate(current.value)]


def _require_plain(value: object, loc: Loc, origins: Origins) -> None:
    """Refuses dates, sets, bytes, infinities and keys that are not words: what YAML knows and recipes do not."""
    place = _place(loc, origins, "recipe")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{place}: {key!r} is not a setting's name", expected="a word")
            _require_plain(inner, (*loc, key), origins)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _require_plain(inner, (*loc, index), origins)
    elif not isinstance(value, _PLAIN):
        raise ConfigError(
            f"{place}: {_dotted(loc)} is a YAML {type(value).__name__}", expected="text, number, list or mapping",
            fix="put the value in quotes if it is text",
        )  # fmt: skip
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{place}: {_dotted(loc)} is {value}", expected="a finite number")


def _apply_override(said: _Said, override: str, seen: set[str]) -> _Said:
    """Sets one dotted key; a mapping on the way that is null or absent is made."""
    key, equals, text = override.partition("=")
    where = f"override {override}"
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{override!r} is not an override", expected="dotted.key=value", fix="e.g. optim.lr=1e-4")
    if key in seen:
        raise ConfigError(f"{where}: {key} was already given", fix="keep one of the two")
    seen.add(key)
    if not text.strip():
        raise ConfigError(f"{where}: no value", fix=f"{key}=null for none, {key}='\"\"' for empty text")
    try:
        value = _parse(text, lambda _: where).tree
    except ConfigError as error:
        quoted = shlex.quote(f"{key}={json.dumps(text, ensure_ascii=False)}")
        raise ConfigError(
            error.problem, expected=error.expected, found=error.found,
            fix=error.fix or f"if it is meant as text, quote it for YAML and for the shell: {quoted}",
        ) from error  # fmt: skip
    loc: Loc = tuple(key.split("."))
    branch: Any = value
    for part in reversed(loc):
        branch = {part: branch}
    # An override replaces the whole value it names, so the old one is taken away before the merge.
    cleared = _without(said.tree, loc, 0, where)
    kept = {place: origin for place, origin in said.origins.items() if place[: len(loc)] != loc}
    return _Said(_merged(cleared, branch), kept | {loc: where})


def _without(tree: Mapping[str, Any], loc: Loc, depth: int, where: str) -> dict[str, Any]:
    """The tree with no value at `loc`; `tree` is what stands at `loc[:depth]`."""
    head, last = str(loc[depth]), depth == len(loc) - 1
    if head not in tree:
        return dict(tree)
    if last or tree[head] is None:
        return {key: value for key, value in tree.items() if key != head}
    if not isinstance(tree[head], dict):
        name = _dotted(loc[: depth + 1])
        raise ConfigError(f"{where}: {name} has no parts", found=_shown(tree[head]), fix=f"set {name} as a whole")
    return dict(tree) | {head: _without(tree[head], loc, depth + 1, where)}


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _require_same_kind(said: object, read: object, loc: Loc, origins: Origins) -> None:
    """Refuses what pydantic would bend to fit: `true` taken for 1, the text "3" for a number."""
    if isinstance(said, dict) and isinstance(read, dict):
        for key, inner in said.items():
            _require_same_kind(inner, read[key], (*loc, key), origins)
    elif isinstance(said, list) and isinstance(read, list):
        for index, inner in enumerate(said):
            _require_same_kind(inner, read[index], (*loc, index), origins)
    elif _kind(said) != _kind(read):
        place = _place(loc, origins, "recipe")
        raise ConfigError(f"{place}: {_dotted(loc)} should be a {_kind(read)}, found {_shown(said)}")


def _kind(value: object) -> str:
    names = {bool: "switch (true or false)", int: "number", float: "number", str: "text"}
    return names.get(type(value), type(value).__name__)


def _explain(cls: type[BaseModel], path: Path, said: _Said, error: ValidationError) -> ConfigError:
    """Turns pydantic's errors into one line each: where, which setting, what is wrong, what was meant."""
    lines = []
    for detail in error.errors(include_url=False):
        loc = _without_tags(detail["loc"], said.tree)
        place, key = _place(loc, said.origins, str(path)), _dotted(loc)
        if detail["type"] == "extra_forbidden":
            lines.append(f"{place}: there is no setting {key!r}{_meant(cls, loc)}")
        elif detail["type"] == "missing":
            lines.append(f"{place}: {key!r} is missing and has no default")
        else:
            message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
            found = "" if isinstance(detail["input"], dict) else f", found {_shown(detail['input'])}"
            lines.append(f"{place}: {key}{': ' if key else ''}{message}{found}")
    if len(lines) == 1:
        return ConfigError(lines[0])
    return ConfigError("\n  ".join([f"{len(lines)} mistakes in {path} as a {cls.__name__}", *lines]))


def _without_tags(loc: Loc, tree: Any) -> Loc:
    """The place as it was written: pydantic puts the kind of a setting that has kinds into the place of its parts."""
    written: list[str | int] = []
    for part in loc[:-1]:
        inside = part in tree if isinstance(tree, dict) else isinstance(tree, list)
        if inside:
            written.append(part)
            tree = tree[part]
    return (*written, *loc[-1:])


def _meant(cls: type[BaseModel], loc: Loc) -> str:
    """Suggests the nearest setting: beside the unknown one, or of the same name elsewhere in the tree."""
    parent = _dotted(loc[:-1])
    names = sorted(set(_settings(cls, ())))
    if _dotted(loc) in names:
        return f" of this kind; it belongs to another {parent}.kind"
    beside = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == parent}
    word = str(loc[-1])
    near = [beside[match] for match in difflib.get_close_matches(word, beside, n=1)]
    near = near or [name for name in names if name.rpartition(".")[2] == word]
    near = near or difflib.get_close_matches(_dotted(loc), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(beside))}"


def _settings(cls: type[BaseModel], prefix: Loc) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield _dotted((*prefix, name))
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _settings(kind, (*prefix, name))


def _place(loc: Loc, origins: Origins, default: str) -> str:
    """Line of the value, or of the nearest mapping around it that was written somewhere."""
    for end in range(len(loc), -1, -1):
        if loc[:end] in origins:
            return origins[loc[:end]]
    return default


def _dotted(loc: Loc) -> str:
    return ".".join(str(part) for part in loc)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
