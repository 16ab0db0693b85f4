"""`hwm weights …`: its sub-commands, and how what they find is printed. Nothing here imports torch by itself."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from hwm.errors import WeightsError
from hwm.terminal import counted, printable, readable_bytes
from hwm.weights.record import Watch

app = typer.Typer(
    no_args_is_help=True, help="Released weight files: list, fetch, verify, inspect, convert.", rich_markup_mode="rich"
)


@app.command("list")
def list_() -> None:
    """Every released file that hwm knows: size, licence, architecture, use, and whether it is here."""
    from hwm.pipelines.weights import listed

    releases = listed()
    longest = max(len(line.release.name) for line in releases)  # names are copied: none is broken
    names = Column("name, use, architecture", min_width=longest)
    table = Table(names, *(Column(title, no_wrap=True) for title in ("size", "licence", "state")), box=None)
    for release, state, size in releases:
        use = Padding(Text(f"{release.stage} · {release.architecture}", "dim"), (0, 0, 0, 2))
        told = "?" if size is None else readable_bytes(size)
        table.add_row(Group(Text(release.name), use), told, release.licence, _coloured(state))
    Console().print(table)


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names of `hwm weights list`.")],
    offline: Annotated[
        bool, typer.Option("--offline", help="No network call; say what to put where (so does HF_HUB_OFFLINE=1).")
    ] = False,
) -> None:
    """Download released files into $HWM_HOME/weights; what is here is checked instead."""
    from hwm.engine.named_weights import is_offline
    from hwm.pipelines.weights import fetch_all

    for done in fetch_all(names, offline or is_offline(), _watching()):
        _line(f"{done.outcome:<9} {done.path}  {readable_bytes(done.size)}  sha256 {done.sha256}")


@app.command()
def verify(
    targets: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads the older form)
        typer.Argument(metavar="NAME|PATH", help="Names or files; none means all that were fetched."),
    ] = None,
) -> None:
    """Hash files and compare with what they were when they were first seen."""
    from hwm.pipelines.weights import verify_all

    checked = verify_all(targets or [], _watching())
    for done in checked:
        _line(f"{done.outcome:<9} {done.path}  sha256 {done.sha256}")
    if not checked:
        _line("nothing to verify: no released file is here")


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A weight file, a folder of ours, or a catalogue name.")],
) -> None:
    """Say what a weight file is and which models are inside, and prove that each of them loads."""
    from hwm.engine.named_weights import weights_path
    from hwm.weights.layouts import inspect as look

    found = look(Path(weights_path(path)))
    _line(f"{found.path}\nlayout: {found.layout}\nsize: {readable_bytes(found.size)}\nsha256: {found.sha256}")
    for model in found.models:
        _line(f"\n{model.name}: {model.num_parameters:,} parameters, {model.dtype}")
        for name, value in model.sizes.items():
            _line(f"  {name}: {value}")
        if model.heads:
            _line(f"  num_heads: {model.heads}")
        _lines("  dropped", model.dropped)
        _line(f"  does not load: {model.problem}" if model.problem else "  loads: yes, strictly")
    if found.beside:
        _line(f"\nbeside them: {', '.join(found.beside)}")
    broken = [model.name for model in found.models if model.problem]
    if broken:
        raise WeightsError(f"{found.path}: {', '.join(broken)} would not load", fix="the reason stands above")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A weight file, or a catalogue name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder or .safetensors file to make.")],
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model", help="Which model of a checkpoint: target_encoder (default), encoder, predictor …"),
    ] = None,
    num_heads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--num-heads", min=1, help="Attention heads, where the width is not a published one."),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, or float16 for half the bytes.")] = "float32",
    backbone: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--backbone", help="The DINOv2 file (or name) that goes with a Gaze-LLE decoder."),
    ] = None,
) -> None:
    """Write one model of a released file in our own format: the weights alone, no optimiser state."""
    from hwm.engine.named_weights import weights_path
    from hwm.pipelines.convert import convert as run

    beside = None if backbone is None else Path(weights_path(backbone))
    done = run(Path(weights_path(source)), out, model=model, num_heads=num_heads, dtype=dtype, backbone=beside)
    _line(f"{done.model} -> {done.path}\n  loaded: {counted(done.num_loaded, 'tensor')}")
    _lines("  dropped", done.dropped)
    if done.left_out:
        _line(f"  not converted: {', '.join(done.left_out)}")
    _line(f"  size: {readable_bytes(done.bytes_before)} -> {readable_bytes(done.bytes_after)}\n  sha256: {done.sha256}")


def _watching() -> Callable[[str], AbstractContextManager[Watch | None]]:
    """Bars in megabytes, one a file."""
    from hwm.engine.progress import Progress

    @contextmanager
    def watch(label: str) -> Iterator[Watch]:
        with ExitStack() as shown:
            bars: list[Progress] = []

            def told(done: int, total: int) -> None:
                megabytes = done // 1_000_000
                if not bars:  # only now is it known how much there is, and how much was there before
                    bar = Progress(f"{printable(label)} (MB)", total // 1_000_000, done=megabytes)
                    bars.append(shown.enter_context(bar))
                bars[0].set(megabytes)

            yield told

    return watch


def _coloured(state: str) -> Text:
    return Text(state, style={"verified": "green", "changed": "bold red", "here": "yellow"}.get(state, "dim"))


def _lines(title: str, named: dict[str, Any]) -> None:
    for name, reason in named.items():
        _line(f"{title}: {name} ({reason})")


def _line(text: str) -> None:
    Console().print(Text(printable(text)), soft_wrap=True)
