"""The one error a user is meant to read."""

import re
from collections.abc import Iterable


class StellaError(ValueError):
    """Bad input from outside: a file, a text, an argument.

    The message is one readable sentence (or a list under one) that says what is wrong, where, and what to do. The
    command lines print it to stderr without a traceback and exit with 1.
    """

    def __init__(self, message: str):
        # It may quote a file, whose control characters must not reach a terminal.
        super().__init__("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in message))


def short_repr(value: object) -> str:
    """A value in an error: its repr on one line, cut, since what stands in a file may be of any length and depth."""
    try:
        text = re.sub(r"\n\s*", " ", repr(value))
    except (RecursionError, ValueError):  # nested deeply, or a number of thousands of digits
        text = f"a vast {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}..."


def quoted(name: object) -> str:
    """A name in an error: as it is, if it fits in a sentence."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 200 else short_repr(text)


def join_words(names: Iterable[object]) -> str:
    """Names in words: "a, b and c"."""
    names = [quoted(name) for name in names]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "none"


def first_line(error: BaseException) -> str:
    """What a library's error says in its first line, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
