"""Text that is shown: names from files must not steer the terminal, and one of a thing is not several."""

import io
import sys


def printable(text: str) -> str:
    """The text with control characters spelled out; line breaks stay."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def is_text(text: str) -> bool:
    """False where it holds bytes that Python could not read as text and keeps as surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def counted(number: int, noun: str) -> str:
    """A number of things: `1 video`, `1,024 videos`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def readable_bytes(num_bytes: int) -> str:
    """Bytes in decimal units, as disks are sold: `7.55 GB`."""
    size, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def spell_out_what_does_not_fit() -> None:
    """From now on, a letter that the encoding of the output does not have is written as its code and is no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def output_is_refused() -> bool:
    """Whether what was printed cannot be got rid of: the file that it goes to is on a full disk."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        return True
    return False
