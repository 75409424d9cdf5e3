"""Interrupts while modules are imported."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_after() -> Iterator[None]:
    """Ctrl-C in the block takes effect at its end.

    For imports of extension modules: an interrupt inside of them can crash the process, or be lost.

    Raises:
      KeyboardInterrupt: SIGINT came during the block.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as in a shell's background job
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
