"""Which takes of a toy world are for training and which for validation, read from its own `splits.json`."""

from pathlib import Path

from hwm.data.takes import read_json
from hwm.errors import DataError


def read_split(world: Path) -> dict[str, list[str]]:
    """Names of the takes of each split (`train`, `val`), sorted.

    Raises:
        DataError: the folder is no toy world.
    """
    if not (world / "toyworld.json").is_file():
        raise DataError(
            f"{world} is no toy world", expected="a folder with toyworld.json", fix=f"make one: hwm toyworld {world}"
        )
    names = {take["take_uid"]: take["take_name"] for take in read_json(world / "takes.json")}
    splits = read_json(world / "annotations" / "splits.json")["split_to_take_uids"]
    return {split: sorted(names[uid] for uid in uids) for split, uids in splits.items() if uids}
