"""What a line of a text is. str.splitlines() also ends one at form feeds, \\x0b, \\x1c to \\x1e, U+0085, U+2028 and
U+2029, which sources and diffs may hold inside of a line: it is for neither."""

import io


def split_lines(text: str) -> list[str]:
    """As git sees them: each ends at a line feed alone, which it keeps."""
    return list(io.StringIO(text, newline="\n"))


def one_line(text: object) -> str:
    """What it says, such as an exception, as one line: all blanks and line ends are single spaces."""
    return " ".join(str(text).split())


def python_lines(text: str) -> list[str]:
    """As Python's parser counts them: each ends at a line feed, a carriage return or both, which it keeps."""
    return list(io.StringIO(text, newline=""))
