"""The few file operations that durable writing is made of, in one place so that tests can make each of them fail."""

import os
import shutil
from pathlib import Path


class Disk:
    """Writes that have reached the disk when they return, and renames that happen whole or not at all."""

    def write(self, path: Path, content: bytes) -> None:
        """Writes a new file and flushes it."""
        try:
            with path.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = error.filename or str(path)  # a full disk names no file
            raise

    def replace(self, path: Path, content: bytes) -> None:
        """Puts new content in a file's place: readers see the old or the new one, never a part."""
        aside = path.with_name(f"{path.name}.tmp")
        aside.unlink(missing_ok=True)
        self.write(aside, content)
        self.rename(aside, path)
        self.sync_folder(path.parent)

    def sync_folder(self, folder: Path) -> None:
        """Flushes a folder's list of names, without which a rename may be undone by a power cut."""
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        """Renames; a file at `target` is replaced."""
        os.replace(source, target)

    def link(self, path: Path, target: str) -> None:
        """Points the symbolic link `path` at `target`, replacing an older link in one rename."""
        aside = path.with_name(f"{path.name}.tmp")
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        self.rename(aside, path)
        self.sync_folder(path.parent)

    def remove(self, folder: Path) -> None:
        """Removes a folder and all in it."""
        shutil.rmtree(folder)
