"""What made a result: versions of the program and of what computes with it, the commit, the machine, the command.

Nothing in, one JSON-ready dict out; it goes into every `run.json`.
"""

import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hwm

_PACKAGES = ("torch", "numpy", "av", "lightning-fabric", "safetensors", "pydantic", "scipy", "einops")
_GIT_TIMEOUT_SEC = 10


def provenance() -> dict[str, Any]:
    """Versions, commit (null outside a checkout), platform, command line and time (UTC)."""
    return {
        "versions": {"hwm": hwm.__version__, "python": platform.python_version()}
        | {package: _version(package) for package in _PACKAGES},
        "git": _commit(Path(hwm.__file__).resolve().parents[2]),
        "platform": platform.platform(),
        "command": sys.argv,
        "started": now(),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(checkout: Path) -> dict[str, Any] | None:
    """Commit of the checkout that the package is imported from, and whether files differ from it."""
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None
    try:
        commit = _git(git, checkout, "rev-parse", "HEAD")
        changed = _git(git, checkout, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed_files": len(changed.splitlines())}


def _git(git: str, checkout: Path, *arguments: str) -> str:
    done = subprocess.run(
        [git, "-C", str(checkout), *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT_SEC, check=True
    )
    return done.stdout.strip()
