"""Types of command line options; argparse reports a mistake as wrong usage."""

from argparse import ArgumentTypeError
from functools import partial

from stella_jax.errors import short_repr

# Maximum of whole numbers, and of numbers of bytes.
MAX_INT = 2**31 - 1
MAX_BYTES = 2**50


def whole(text: str, least: int = 0, most: int = MAX_INT) -> int:
    """A whole number in a range."""
    # The length first: int() raises its own error for thousands of digits.
    if not text.isdecimal() or len(text) > 20 or not least <= int(text) <= most:
        raise ArgumentTypeError(f"{short_repr(text)} is not a whole number from {least} to {most}")
    return int(text)


positive = partial(whole, least=1)
byte_count = partial(whole, least=1, most=MAX_BYTES)
