"""The key-step annotations of a world while traps are laid: what the rows are called, and adding some.

In: a drawn world. Out: names of rows as the readers give them, changed annotation files.
"""

import json
from pathlib import Path
from typing import Any

from hwm.data.toyworld.formats import TakePlan, stable_uuid, write_json
from hwm.data.toyworld.formats_keystep import BENCHMARK


class KeystepFiles:
    """All annotation files of key steps, held in memory until `save`."""

    def __init__(self, out: Path, seed: int) -> None:
        folder = out / "annotations"
        paths = [folder / f"keystep_{split}.json" for split in ("train", "val")]
        flat = [out / BENCHMARK / f"keystep_segment_{split}.json" for split in ("train", "val")]
        self._seed = seed
        self._files: dict[Path, Any] = {
            path: json.loads(path.read_text(encoding="utf-8")) for path in (*paths, *flat) if path.is_file()
        }

    def save(self) -> None:
        """Write all files back."""
        for path, content in self._files.items():
            write_json(path, content)

    def rows(self, plan: TakePlan) -> tuple[str, ...]:
        """Names of all rows of a take, in all files."""
        uid, names = self.uid(plan), []
        for path, content in self._files.items():
            if "annotations" in content:
                count = len(content["annotations"].get(uid, {"segments": []})["segments"])
                names += [f"{path.name}#{uid}[{number}]" for number in range(count)]
            else:
                mine = [number for number, row in enumerate(content["segments"]) if row["take_uid"] == uid]
                names += [f"{path.name}#segments[{number}]" for number in mine]
        return tuple(names)

    def uid(self, plan: TakePlan) -> str:
        """The take's uid."""
        return stable_uuid(self._seed, "take", plan.name)

    def segments(self, plan: TakePlan) -> list[dict[str, Any]]:
        """The take's segments in `keystep_<split>.json`."""
        return self._of(plan)["annotations"][self.uid(plan)]["segments"]

    def add(self, plan: TakePlan, fields: dict[str, Any]) -> str:
        """Append a segment to the take; returns the row's name."""
        segments = self.segments(plan)
        segments.append(fields)
        return f"keystep_{plan.split}.json#{self.uid(plan)}[{len(segments) - 1}]"

    def add_flat(self, plan: TakePlan, changes: dict[str, Any]) -> tuple[str, ...]:
        """Append a changed copy of the take's first row to the benchmark file, if there is one; the row's name."""
        for path, content in self._files.items():
            if path.name == f"keystep_segment_{plan.split}.json":
                rows = content["segments"]
                row = next(row for row in rows if row["take_uid"] == self.uid(plan)) | changes
                same = (other for other in rows if other["step_unique_id"] == row["step_unique_id"])
                rows.append(row | {"label_id": next((other["label_id"] for other in same), row["label_id"])})
                return (f"{path.name}#segments[{len(content['segments']) - 1}]",)
        return ()

    def add_class(self, plan: TakePlan, unique_id: int, name: str) -> dict[str, Any]:
        """Add a leaf to the taxonomy of the take's scenario; returns the fields that a segment of it has."""
        content = self._of(plan)
        nodes = content["taxonomy"][content["annotations"][self.uid(plan)]["scenario"]]
        local = 1 + max(int(key) for key in nodes)
        root = nodes["0"]
        leaf = {"id": local, "is_leafnode": True, "name": name, "parent_id": 0, "parent_name": root["name"]}
        nodes[str(local)] = leaf | {"unique_id": unique_id}
        content["vocabulary"][str(unique_id)] = name
        return {"step_id": local, "step_name": name, "step_unique_id": unique_id}

    def _of(self, plan: TakePlan) -> Any:
        return next(content for path, content in self._files.items() if path.name == f"keystep_{plan.split}.json")
