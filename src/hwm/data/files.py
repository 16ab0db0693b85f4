"""Annotation files: JSON and CSV, read whole, with every fault named by file, line and column.

In: a path. Out: plain values; a key or a column given twice is an error, because one of the two would be lost.
"""

import csv
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwm.errors import DataError

_FIX = "check the path in the recipe's `annotations`"
_TEXT, _ENCODE = "text in UTF-8", "save the file as UTF-8"


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        DataError: missing, not UTF-8, malformed (with line and column), or with a key twice in one object.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_repeats)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", fix=_FIX) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}",
            fix="correct the file, or fetch it again",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: {error}", expected=_TEXT, fix=_ENCODE) from error
    except (OSError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except _RepeatedKeyError as error:
        raise DataError(
            f"{path} has the key {error.args[0]!r} twice in one object", fix="one of the two would be lost: remove it"
        ) from error
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"cannot read {path}: {error}") from error


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header line, each as column → text; a short row has "" for what it lacks.

    Args:
        path: the file.
        columns: columns it must have; others are kept too.

    Raises:
        DataError: missing, not UTF-8, no header, a column missing or given twice, a row longer than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", fix=_FIX) from error
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: {error}", expected=_TEXT, fix=_ENCODE) from error
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    absent = [name for name in columns if name not in header]
    if absent or len(set(header)) < len(header):
        raise DataError(
            f"{path} does not have the columns of its format",
            expected=f"a header line with {', '.join(columns)}, each column once",
            found=", ".join(header)[:300] or "an empty file",
            fix="fetch the file again" if absent else "remove the repeated column",
        )
    for line, row in rows:
        if len(row) > len(header):
            raise DataError(
                f"{path} has too many values in line {line}", expected=f"{len(header)}", found=f"{len(row)}"
            )
    return [dict(zip(header, row + [""] * (len(header) - len(row)), strict=True)) for _, row in rows]


def as_one_reads_it(name: str) -> str:
    """A name in one of the ways to write it: `é` may be one letter or two, as in files that come from a Mac."""
    return unicodedata.normalize("NFC", name)


class _RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKeyError(key)
            seen.add(key)
    return result
