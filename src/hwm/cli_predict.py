"""`hwm predict`: how it is asked, and how its answer is printed. Nothing here imports torch by itself."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from hwm.terminal import printable

if TYPE_CHECKING:
    from hwm.pipelines.predict import Prediction


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of hwm anticipate.")],
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video of the view that the run was trained on.")],
    at: Annotated[float, typer.Option("--at", metavar="SEC", help="Nothing after this time is seen.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes shown of each task (--json has all).")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
) -> None:
    """Name the next step in one video, from what is seen up to a time."""
    from hwm.pipelines import predict as pipeline

    said = pipeline.run(run, video, at)
    for warning in said.warnings:
        Console(stderr=True).print(Text(f"warning: {printable(warning)}", style="yellow"), soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(_plain(said), indent=1, allow_nan=False))
        return
    seen = f"seen up to {said.last_seen_sec:g} s; the step that starts at {said.starts_at_sec:g} s:"
    lines = [seen]
    if said.gaze_known_steps is not None:
        lines.append(f"measured gaze is known in {said.gaze_known_steps} of the {said.observed_steps} observed steps")
    for task, guesses in said.tasks.items():
        lines += [f"{task}: {guess.probability:6.1%}  {guess.name}" for guess in guesses[:top]]
    for line in lines:
        Console().print(Text(printable(line)), soft_wrap=True)


def _plain(said: "Prediction") -> dict[str, object]:
    tasks = {task: [guess._asdict() for guess in guesses] for task, guesses in said.tasks.items()}
    return said._asdict() | {"run": str(said.run), "video": str(said.video), "tasks": tasks}
