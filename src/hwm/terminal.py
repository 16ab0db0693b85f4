"""Text that is shown: names from files must not steer the terminal, and one of a thing is not several."""


def printable(text: str) -> str:
    """The text with control characters spelled out; line breaks stay."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def counted(number: int, noun: str) -> str:
    """A number of things: `1 video`, `1,024 videos`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
