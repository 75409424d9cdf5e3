"""Exit codes of the commands, and one sentence on stderr in place of a traceback."""

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stella_jax.errors import StellaError, quoted
from stella_jax.graceful_shutdown import Stopped

FAILED = 1
INTERRUPTED = 130  # as a shell reports SIGINT
TERMINATED = 143  # SIGTERM
PIPE_CLOSED = 141  # and SIGPIPE


def exit_code(program: str, work: Callable[[], None], when_interrupted: str = "") -> int:
    """Does the work and returns the exit code: 0, or 1 after an error that a user can fix, with a line on stderr.

    Args:
      program: the name at the start of the line.
      when_interrupted: the end of the line after Ctrl-C or SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for characters that the terminal cannot show
    _handle_unraisable_errors()
    try:
        with _warnings_of(program):
            work()
        if sys.stdout:  # None where it was closed before the start
            sys.stdout.flush()
    except StellaError as error:
        return _fail(program, str(error))
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted{when_interrupted}", file=sys.stderr)
        return INTERRUPTED
    except Stopped:
        print(f"{program}: stopped by SIGTERM{when_interrupted}", file=sys.stderr)
        return TERMINATED
    except BrokenPipeError:
        # The reader is gone, as with `head`; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        return _fail(program, f"{quoted(error.filename or 'input or output')}: {error.strerror or error}.")
    return 0


@contextmanager
def _warnings_of(program: str) -> Iterator[None]:
    """A block in which what the library logs is printed like errors, without the module's name."""
    logger, handler = logging.getLogger("stella_jax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{program}: warning: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def _handle_unraisable_errors() -> None:
    """Errors from where Python cannot raise: an interrupt is repeated, and late ones of Orbax are silenced.

    Python would print an interrupt during a garbage collection, in which JAX runs code of its own, and continue.
    Orbax's threads and tasks still log after an error; no command has asyncio tasks of its own.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            # Not at once, as it would be lost here, too.
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        elif str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _fail(program: str, sentence: str) -> int:
    print(f"{program}: error: {sentence}", file=sys.stderr)
    return FAILED
