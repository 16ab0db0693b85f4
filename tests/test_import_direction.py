"""The house: a room imports only from rooms below it, importing runs nothing, and files stay readable."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hwm

SOURCE = Path(hwm.__file__).resolve().parent
FLOORS = (
    {"errors", "shapes", "terminal"},
    {"config"},
    {"losses", "recipes"},
    {"evaluation", "viz"},
    {"models"},
    {"data"},
    {"weights"},
    {"engine"},
    {"tokens"},
    {"pipelines"},
    {"cli_arguments", "cli_show"},
    {"cli_weights", "cli_extract", "cli_predict"},
    {"cli"},
    {"__main__"},
)
"""Rooms from the ground up; rooms of one floor do not import each other."""
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            yield from ((node.lineno, f"{module}.{alias.name}" if module == "hwm" else module) for alias in node.names)


def wrong_imports(tree: ast.Module, path: Path) -> list[str]:
    room, wrong = room_of(path), []
    for line, module in imports(tree, path):
        target = module.split(".")[1] if module.startswith("hwm.") else None
        if target in FLOOR_OF and target != room and FLOOR_OF[target] >= FLOOR_OF[room]:
            wrong.append(f"{path.relative_to(SOURCE)}:{line} imports {module}")
    return wrong


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name != "__init__.py" or path.parent != SOURCE], ids=str
)
def test_a_room_imports_only_rooms_below(path: Path) -> None:
    assert room_of(path) in FLOOR_OF, f"{room_of(path)} has no place in the house"
    assert not wrong_imports(ast.parse(path.read_text(encoding="utf-8")), path)


def test_the_rule_can_fail() -> None:
    planted = ast.parse("from hwm.engine import runlog\nimport hwm.data.video\nfrom hwm import losses\n")
    assert wrong_imports(planted, SOURCE / "models" / "x.py") == [
        "models/x.py:1 imports hwm.engine",
        "models/x.py:2 imports hwm.data.video",
    ]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_say_what_they_are_and_do_nothing_on_import(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no module docstring"
    quiet = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)
    for node in tree.body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_entry = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
        is_sub_command = path.name == "cli.py" and ast.unparse(node).startswith(("app.command(", "app.add_typer("))
        assert is_text or is_entry or is_sub_command or (isinstance(node, quiet) and not isinstance(node, ast.If)), (
            ast.unparse(node)
        )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_catch_all_and_no_print_outside_the_command_line(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            names = ast.unparse(node.type) if node.type else "everything"
            reraises = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            broad = names in ("everything", "Exception", "BaseException")
            assert not broad or reraises, f"{path}:{node.lineno} catches {names}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            assert path.name == "cli.py", f"{path}:{node.lineno} prints"
