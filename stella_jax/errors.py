"""The error that users read, and the words that errors are made of."""

import re
import reprlib
from collections.abc import Iterable

# Limits of an error's length: files and callers may hold values of any size.
MAX_SENTENCE = 500
MAX_LINES = 50
MAX_NAMES = 20
MAX_VALUE = 100


class StellaError(ValueError):
    """Invalid input: a file, a text, an argument.

    The message is one sentence, `<thing>: <what is wrong>; <what to do>.`, or a list under one. The command lines print
    it to stderr without a traceback and exit with 1. A line longer than MAX_SENTENCE is cut in the middle.
    """

    def __init__(self, message: str):
        lines = message.split("\n", MAX_LINES)[:MAX_LINES]
        super().__init__("\n".join(map(_printable, lines)))


class ErrorWithFields(StellaError):
    """With attributes besides its message, which another process, such as the driver of a Ray actor, does not get."""

    def __reduce__(self) -> tuple[type[StellaError], tuple[str]]:
        return StellaError, (str(self),)


def lone_surrogate(text: str) -> str:
    """Names the first lone surrogate of a text, which UTF-8 cannot encode, and its place; "" if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"lone surrogate (U+{ord(text[error.start]):04X} at character {error.start})"
    return ""


def _printable(line: str) -> str:
    """The line with control characters escaped: it may quote a file, and must not steer a terminal."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in _shorten(line))
    return _shorten(text)


def _shorten(text: str) -> str:
    half = (MAX_SENTENCE - 3) // 2
    return text if len(text) <= MAX_SENTENCE else f"{text[:half]}...{text[-half:]}"


def short_repr(value: object) -> str:
    """A value in an error: its repr on one line, shortened, since a value from a file may have any size and depth."""
    short = reprlib.Repr()
    short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = short.maxdict = MAX_NAMES
    short.maxstring = short.maxlong = short.maxother = 3 * MAX_VALUE
    try:
        text = re.sub(r"\n\s*", " ", short.repr(value))
    except (RecursionError, ValueError):  # too deep, or a number of too many digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def quoted(name: object) -> str:
    """A name in an error: as it is if it fits in a sentence, else as `short_repr`."""
    text = str(name)
    return text if text and text.isprintable() and len(text) <= 200 else short_repr(text)


def join_words(names: Iterable[object], conjunction: str = "and") -> str:
    """Joins names: "a, b and c"; of many names, the first MAX_NAMES."""
    names = [*names]
    if len(names) > MAX_NAMES:
        names[MAX_NAMES:] = [f"{len(names) - MAX_NAMES} more"]
    names = [quoted(name) for name in names]
    return f" {conjunction} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "none"


def first_line(error: BaseException) -> str:
    """The first line of a library's error without its full stop, or the error's type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
