"""Arguments and options that several verbs of the command line share."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from hwm.errors import ConfigError
from hwm.terminal import is_text

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML recipe, or a shipped one's name.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads the older form)
    typer.Argument(metavar="KEY=VALUE", help="Settings to change, by dotted names, e.g. seed=1", show_default=False),
]
Folder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--folder", help="Folder that holds run folders (the setting `folder`).", show_default=False),
]
Checkpoint = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--checkpoint", help="Run folder of stage 1, a checkpoint in it, or a saved world model."),
]


def with_options(overrides: Sequence[str] | None, **options: Path | None) -> list[str]:
    """Options that have a setting of their own become overrides; JSON text is YAML that needs no further care.

    Raises:
        ConfigError: one holds bytes that are no text.
    """
    given = [f"{key}={json.dumps(str(path), ensure_ascii=False)}" for key, path in options.items() if path is not None]
    told = [*(overrides or ()), *given]
    for override in told:
        if not is_text(override):
            raise ConfigError(
                f"{override} holds bytes that are not {sys.getfilesystemencoding()}",
                expected="text, as in a recipe",
                fix="for a file or folder: rename it, or make a link to it (ln -s) and name the link; "
                "for a name that is right on your screen: export LC_ALL=C.UTF-8",
            )
    return told
