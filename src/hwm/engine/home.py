"""Where weights and tokens are kept between runs: `$HWM_HOME`, or `~/.cache/hwm`."""

import os
from pathlib import Path


def home() -> Path:
    """The folder; it may not exist yet."""
    return Path(os.environ.get("HWM_HOME") or Path.home() / ".cache" / "hwm").expanduser()
