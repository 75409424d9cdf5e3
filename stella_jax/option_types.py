"""Types of options: texts of the command line, checked; a mistake becomes argparse's line about wrong usage."""

from argparse import ArgumentTypeError
from functools import partial

from stella_jax.errors import short_repr

# Of whole numbers in general, and of bytes.
MOST = 2**31 - 1
MOST_BYTES = 2**50


def whole(text: str, least: int = 0, most: int = MOST) -> int:
    """A whole number within bounds."""
    # The length first: int() refuses thousands of digits with an error of its own.
    if not text.isdecimal() or len(text) > 20 or not least <= int(text) <= most:
        raise ArgumentTypeError(f"{short_repr(text)} is not a whole number from {least} to {most}")
    return int(text)


positive = partial(whole, least=1)
byte_count = partial(whole, least=1, most=MOST_BYTES)
