"""The command line: one function a verb; this file and the `cli_` files beside it alone print.

    hwm VERB CONFIG [key=value ...]

Configurations are read and checked before a pipeline, and with it torch, is imported. Errors are told in plain words
(`--debug` shows the traceback), those of the system too, such as a full disk: exit code 2 for a wrong command or
configuration, 1 for anything else, 143 for a run that was asked to stop and did so in order.
"""

import shlex
import sys
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Optional, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

import hwm
from hwm import cli_extract, cli_predict, cli_weights
from hwm.cli_arguments import Checkpoint, ConfigArgument, Folder, Overrides, with_options
from hwm.cli_show import show, tell
from hwm.config import (
    TOYWORLD_FORMATS,
    TOYWORLD_VIEWS,
    AdaptConfig,
    AdaptGazeConfig,
    AnticipateConfig,
    CompareConfig,
    DemoConfig,
    GazeScoreConfig,
    PretrainConfig,
    RunConfig,
    ToyWorldConfig,
)
from hwm.engine.requirements import require_data, require_inputs
from hwm.errors import ConfigError, HwmError
from hwm.recipes import load_any, load_config
from hwm.terminal import output_is_refused, printable, spell_out_what_does_not_fit


def _command_line() -> typer.Typer:
    """The application that the verbs below register with; those of other files join at the end."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["--help", "-h"]},
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        help="A gaze-conditioned human world model: watch people work, imagine what comes next, name the next step.",
    )


app = _command_line()

_Run = TypeVar("_Run", bound=RunConfig)
RECIPES: tuple[type[RunConfig], ...] = (
    PretrainConfig, AnticipateConfig, AdaptConfig, AdaptGazeConfig, CompareConfig, GazeScoreConfig,
)  # fmt: skip
"""Every kind of recipe that makes a run; where a verb takes any, its keys tell which it is."""
_Resume = Annotated[
    bool, typer.Option("--resume/--fresh", help="Go on from the newest checkpoint, or clear an earlier run first.")
]


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"hwm {hwm.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (may stand anywhere).")] = False,
) -> None:
    """Options of all verbs: `--version` ends here, `--debug` is read by `main`."""


@app.command(rich_help_panel="Start here")
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="The same at a size for a first look or CI.")] = False,
    overrides: Overrides = None,
    folder: Annotated[Optional[Path], typer.Option("--folder", help="Folder of all it makes.")] = None,  # noqa: UP045
) -> None:
    """Both stages on the toy world, with and without gaze, and a report of it all."""
    config = load_config(DemoConfig, "demo/quick" if quick else "demo/full", with_options(overrides, folder=folder))
    from hwm.pipelines import demo as pipeline

    tell(pipeline.run(config))


@app.command(rich_help_panel="Data")
def toyworld(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    takes: Annotated[int, typer.Option("--takes", min=2, help="Takes in all.")] = ToyWorldConfig().num_takes,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Everything follows from it.")] = ToyWorldConfig().seed,
    val_fraction: Annotated[
        float, typer.Option("--val-fraction", min=0.01, max=0.99, help="Share of takes to validate on.")
    ] = ToyWorldConfig().val_fraction,
    fps: Annotated[int, typer.Option("--fps", min=4, help="Frames a second of the videos.")] = ToyWorldConfig().fps,
    grid_fps: Annotated[
        float, typer.Option("--grid-fps", min=0.1, help="Steps a second of the observer of the best scores.")
    ] = ToyWorldConfig().grid_fps,
    gaze: Annotated[str, typer.Option("--gaze", help="informative or uninformative")] = ToyWorldConfig().gaze,
    ego_camera: Annotated[
        str, typer.Option("--ego-camera", help="follows the gaze, or still")
    ] = ToyWorldConfig().ego_camera,
    views: Annotated[str, typer.Option("--views", help="both, exo or ego")] = ToyWorldConfig().views,
    formats: Annotated[str, typer.Option("--formats", help="keystep, lta, goalstep, epic, parted by commas")] = "",
    traps: Annotated[bool, typer.Option("--traps", help="Break files on purpose, to test readers.")] = False,
) -> None:
    """Make a toy world: videos, key steps and gaze in the formats of Ego-Exo4D, with a known best score."""
    if gaze not in ("informative", "uninformative"):
        raise ConfigError("--gaze is neither of its two values", expected="informative or uninformative", found=gaze)
    if ego_camera not in ("follows", "still"):
        raise ConfigError("--ego-camera is neither of its two values", expected="follows or still", found=ego_camera)
    if views not in TOYWORLD_VIEWS:
        raise ConfigError("--views is none of its values", expected=", ".join(TOYWORLD_VIEWS), found=views)
    if views != "both" and (formats or traps):
        raise ConfigError("--formats and --traps need both views", found=f"--views {views}", fix="leave --views out")
    names = [name for name in formats.split(",") if name]
    if not set(names) <= set(TOYWORLD_FORMATS):
        raise ConfigError(
            "--formats names a format that is not there", expected=", ".join(TOYWORLD_FORMATS), found=formats
        )
    options = {
        "num_takes": takes, "val_fraction": val_fraction, "seed": seed, "fps": fps, "grid_fps": grid_fps, "gaze": gaze,
        "ego_camera": ego_camera, "views": views, "formats": tuple(names), "traps": traps,
    }  # fmt: skip
    try:
        config = ToyWorldConfig.model_validate(options)
    except ValidationError as error:
        said = (" ".join([*map(str, detail["loc"]), detail["msg"]]) for detail in error.errors())
        problems = "; ".join(text.removeprefix("Value error, ") for text in said)
        raise ConfigError("these options make no toy world", found=problems) from None
    from hwm.data.toyworld import generate
    from hwm.engine.progress import Progress
    from hwm.engine.runtime import StopFlag

    with StopFlag() as stop, Progress("takes drawn", total=config.num_takes) as bar:
        summary = generate(out, config, stop.checked(lambda done, total: bar.set(done)))
    tell(
        {
            "folder": summary.folder,
            "takes": summary.num_takes,
            "key steps": summary.num_segments,
            "seconds of video": round(summary.num_seconds),
        }
    )


@app.command(rich_help_panel="Train")
def pretrain(
    config: ConfigArgument, overrides: Overrides = None, folder: Folder = None, resume: _Resume = True
) -> None:
    """Stage 1: train the world model on videos."""
    checked = _checked(PretrainConfig, config, with_options(overrides, folder=folder))
    from hwm.pipelines import pretrain as pipeline

    tell(pipeline.run(checked, resume=resume))


@app.command(rich_help_panel="Train")
def anticipate(
    config: ConfigArgument,
    overrides: Overrides = None,
    checkpoint: Checkpoint = None,
    folder: Folder = None,
) -> None:
    """Stage 2: train and score a probe that names the next key step."""
    checked = _checked(AnticipateConfig, config, with_options(overrides, folder=folder, checkpoint=checkpoint))
    if checked.backbone.kind == "hwm" and checked.checkpoint is None:
        raise ConfigError("no world model was given", fix=f"hwm anticipate {config} --checkpoint runs/NAME")
    from hwm.pipelines import anticipate as pipeline

    tell(pipeline.run(checked))


@app.command(rich_help_panel="Start here")
def compare(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A recipe; with --from, the first run folder.")],
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="KEY=VALUE|RUN", help="Settings to change; with --from, more run folders."),
    ] = None,
    from_runs: Annotated[bool, typer.Option("--from", help="Train nothing: report on finished stage-2 runs.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show what it would train and what it costs.")] = False,
    no_frames: Annotated[bool, typer.Option("--no-frames", help="No frame of a video in the report.")] = False,
    folder: Folder = None,
) -> None:
    """Does gaze help? Arms, controls and baselines over seeds, and a report with a verdict."""
    if from_runs:
        if plan:
            raise ConfigError("--from trains nothing: there is no --plan of it", fix="leave one of the two out")
        out = Path(expanduser(folder or "runs/compared"))
        if out.exists() and not out.is_dir():
            raise ConfigError(f"{out} is no folder", expected="the folder of the report", fix="another --folder")
        from hwm.pipelines import compare_runs

        runs = [Path(run) for run in (config, *(overrides or ()))]
        tell(compare_runs.run(runs, out, frames=not no_frames))
        return
    given = [*(overrides or ()), *(["num_examples=0"] if no_frames else [])]
    checked = _checked(CompareConfig, config, with_options(given, folder=folder))
    from hwm.pipelines import compare as pipeline
    from hwm.pipelines.compare_cost import plan_table
    from hwm.pipelines.compare_units import make_plan

    made = make_plan(checked)
    show(plan_table(made))
    if not plan:
        tell(pipeline.run(made))


@app.command(rich_help_panel="Train the frozen parts")
def adapt(config: ConfigArgument, overrides: Overrides = None, folder: Folder = None, resume: _Resume = True) -> None:
    """Adapt an encoder to your videos, or make a small one, by the masked-latent objective."""
    checked = _checked(AdaptConfig, config, with_options(overrides, folder=folder))
    from hwm.pipelines import adapt as pipeline

    tell(pipeline.run(checked, resume=resume))


@app.command("adapt-gaze", rich_help_panel="Train the frozen parts")
def adapt_gaze(
    config: ConfigArgument, overrides: Overrides = None, folder: Folder = None, resume: _Resume = True
) -> None:
    """Train a small Gaze-LLE model on the toy world's gaze."""
    checked = _checked(AdaptGazeConfig, config, with_options(overrides, folder=folder))
    from hwm.pipelines import adapt_gaze as pipeline

    tell(pipeline.run(checked, resume=resume))


@app.command("gaze-score", rich_help_panel="Data")
def gaze_score(config: ConfigArgument, overrides: Overrides = None, folder: Folder = None) -> None:
    """Score Gazelle's heat maps against an eye tracker, beside a centre prior."""
    checked = _checked(GazeScoreConfig, config, with_options(overrides, folder=folder))
    from hwm.pipelines import gaze_score as pipeline

    tell(pipeline.run(checked))


@app.command(rich_help_panel="Start here")
def doctor(
    config: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="CONFIG", help="A recipe whose files and folders are looked at as well."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """What is installed, what is missing and how to get it; ends with a block for an issue."""
    checked = load_any(RECIPES, config, with_options(overrides)) if config is not None else None
    from hwm.pipelines import doctor as pipeline
    from hwm.pipelines.issue_block import issue_block

    diagnosis = pipeline.run(checked)
    console = Console()
    colours = {"ok": "green", "missing": "yellow", "broken": "bold red"}
    for name, state, text, fix, *_ in diagnosis.findings:
        shown = Text.assemble((f"{state:<8}", colours[state]), f"{printable(name)}: {printable(text)}")
        console.print(shown, soft_wrap=True)
        if fix is not None:
            console.print(Text(f"        fix: {printable(fix)}"), soft_wrap=True)
    console.print(Text("\nFor an issue (no private paths in it):\n\n```text"))
    for line in issue_block(diagnosis):
        console.print(Text(printable(line)), soft_wrap=True)
    console.print(Text("```"))
    if not diagnosis.works:
        raise typer.Exit(1)


app.command("predict", rich_help_panel="Start here")(cli_predict.predict)
app.command("extract", rich_help_panel="Data")(cli_extract.extract)
app.add_typer(cli_weights.app, name="weights", rich_help_panel="Weights")
data_app = typer.Typer(no_args_is_help=True, help="Look at data before a run does.")
app.add_typer(data_app, name="data", rich_help_panel="Data")


@data_app.command("check")
def data_check(
    config: ConfigArgument,
    overrides: Overrides = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1.0, help="Seconds a video may take, on top of its size at 10 MB/s.")
    ] = 60.0,
) -> None:
    """Check annotations, metadata and every video of a recipe, and write data_manifest.json."""
    checked = load_any(RECIPES, config, with_options(overrides))
    if not isinstance(checked, PretrainConfig | AnticipateConfig | AdaptConfig):
        raise ConfigError(f"{config} names no videos of yours", expected="a recipe of pretrain, adapt or anticipate")
    require_data(checked)
    from hwm.pipelines import data_check as pipeline
    from hwm.pipelines.data_summary import closing, tables

    result = pipeline.run(checked, timeout)
    for table in tables(result.manifest):
        show(table)
    for line in closing(result, shlex.join([config, *(overrides or ())])):
        Console().print(Text(printable(line)), soft_wrap=True)
    if result.manifest.unusable:
        raise typer.Exit(1)


def _checked(cls: type[_Run], source: str, overrides: Sequence[str]) -> _Run:
    """The configuration, after a look whether the files that it names are there."""
    config = load_config(cls, source, overrides)
    require_inputs(config)
    return config


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point `hwm`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    kept = [argument for argument in given if argument != "--debug"]
    spell_out_what_does_not_fit()
    try:
        app(args=kept, prog_name="hwm")
    except (HwmError, OSError) as error:
        if len(kept) < len(given):
            raise
        said = _told_by_the_system(error) if isinstance(error, OSError) else str(error)
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), printable(said)), soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def _told_by_the_system(error: OSError) -> str:
    """The file that could not be read or written, and why: the disk is full, it is not allowed."""
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    if not names and output_is_refused():
        names = "standard output"
    reason = error.strerror or str(error) or type(error).__name__
    return f"{names}: {reason}" if names else reason
