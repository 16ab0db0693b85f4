"""`hwm extract`: how it is asked, and how what it finds is printed. Nothing here imports torch by itself."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from hwm.cli_arguments import Checkpoint, ConfigArgument, Folder, Overrides, with_options
from hwm.config import AnticipateConfig, PretrainConfig
from hwm.engine.requirements import require_inputs
from hwm.errors import ConfigError
from hwm.recipes import load_any
from hwm.terminal import counted, printable, readable_bytes

if TYPE_CHECKING:
    from hwm.pipelines.extract import Estimate, Pruned
    from hwm.tokens.maintenance import Checked

_CACHED = "tokens.source="


def extract(
    config: ConfigArgument,
    overrides: Overrides = None,
    checkpoint: Checkpoint = None,
    folder: Folder = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every token file and compare it with its hash.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove tokens of other weights, settings or versions, and damaged ones.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --prune: only say what would go.")] = False,
) -> None:
    """Fill the token cache for all videos of a recipe of pretrain or anticipate, once, ahead of its runs."""
    if verify and prune:
        raise ConfigError("--verify and --prune are two commands", fix="give one of them (--prune verifies as well)")
    if dry_run and not prune:
        raise ConfigError("--dry-run belongs to --prune")
    checked = _config(config, with_options(overrides, folder=folder, checkpoint=checkpoint))
    if not verify and isinstance(checked, AnticipateConfig) and checked.checkpoint is None:
        raise ConfigError("no world model was given", fix=f"hwm extract {config} --checkpoint runs/NAME")
    if not (verify or prune):
        require_inputs(checked)
    from hwm.pipelines import extract as pipeline

    if verify:
        _show_bad(pipeline.verify(checked), "damaged")
    elif prune:
        _show_pruned(pipeline.prune(checked, dry_run=dry_run), "would be removed" if dry_run else "removed")
    else:
        done = pipeline.run(checked, _show_estimate)
        for name, value in done._asdict().items():
            _line(f"{name.replace('_', ' ')}: {readable_bytes(value) if name == 'bytes_made' else value}")


def _config(source: str, overrides: list[str]) -> PretrainConfig | AnticipateConfig:
    """The recipe, with cached tokens whatever it says itself."""
    if not any(override.startswith(_CACHED) for override in overrides):
        overrides = [*overrides, f"{_CACHED}cached"]
    config = load_any((PretrainConfig, AnticipateConfig), source, overrides)
    assert isinstance(config, PretrainConfig | AnticipateConfig)
    if config.tokens.source != "cached":
        raise ConfigError("hwm extract fills the cache, and tokens.source=live keeps none", fix="leave it out")
    return config


def _show_estimate(estimate: "Estimate") -> None:
    survey = estimate.survey
    _line(f"tokens: {estimate.folder}")
    _line(
        f"crops: {survey.num_crops} of {counted(survey.num_videos, 'video')}, {survey.crops_held} there already; "
        f"{estimate.hours:.2f} hours to decode"
    )
    _line(
        f"size: {readable_bytes(survey.bytes_missing)} to make "
        f"({readable_bytes(survey.bytes_per_hour)} an hour of each crop), {readable_bytes(estimate.bytes_free)} free"
    )


def _show_bad(checked: "Checked", word: str) -> None:
    for path, num_bytes, reason in checked.bad:
        _line(f"{word}: {path}  {readable_bytes(num_bytes)}  {reason}")
    bad = sum(file.num_bytes for file in checked.bad)
    _line(
        f"{len(checked.bad)} of {counted(len(checked.files), 'file')} {word} ({readable_bytes(bad)}); "
        f"{len(checked.files) - len(checked.bad)} whole ({readable_bytes(checked.num_bytes - bad)})"
    )
    if checked.bad and word == "damaged":
        raise typer.Exit(1)


def _show_pruned(pruned: "Pruned", word: str) -> None:
    _show_bad(pruned.checked, word)
    dropped, kept = pruned.hashes
    if dropped:
        _line(f"{dropped} of {dropped + kept} hashes of videos {word} (changed, gone, damaged, or there twice)")


def _line(text: str) -> None:
    Console().print(Text(printable(text)), soft_wrap=True)
