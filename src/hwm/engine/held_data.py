"""Holding a run to its data manifest, and saying so in its record.

manifest (or none) + run log -> `data_manifest` in `run.json`: path, sha256 and counts, or null where none is set
"""

from pathlib import Path

from hwm.data.content import content_sha256
from hwm.data.manifest import read_manifest, require_unchanged
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import StopFlag


def hold_to_manifest(path: Path | None, log: RunLog, stop: StopFlag) -> None:
    """Compare annotations and videos with the manifest that a recipe names, and record it; ends where `stop` is up.

    Raises:
        DataError: the manifest cannot be read, or a file in use has changed or is gone.
    """
    if path is None:
        log.record(data_manifest=None)
        return
    with Progress("videos compared with the manifest", total=len(read_manifest(path).videos)) as bar:
        manifest = require_unchanged(path, stop.checked(bar.set))
    log.record(
        data_manifest={"path": str(path), "sha256": content_sha256(path), "counts": manifest.used_and_excluded()}
    )
