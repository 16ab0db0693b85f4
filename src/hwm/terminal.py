"""Text that is safe to show: names from files must not steer the terminal."""


def printable(text: str) -> str:
    """The text with control characters spelled out; line breaks stay."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
