"""How a command of this project ends: exit codes, and one sentence on stderr in place of a traceback."""

import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from stella_jax.errors import StellaError, quoted
from stella_jax.graceful_shutdown import Stopped

FAILED = 1
INTERRUPTED = 130  # as a shell reports SIGINT
TERMINATED = 143  # SIGTERM
PIPE_CLOSED = 141  # and SIGPIPE


def exit_code(program: str, work: Callable[[], None], when_interrupted: str = "") -> int:
    """Does the work; returns 0, or prints an error that a user can fix and returns 1.

    Args:
      program: the name before the message.
      when_interrupted: the end of the message about Ctrl-C: what is left behind.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # texts of any script, on terminals that lack it
    _silence_late_tasks()
    try:
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
        # Whoever read has left, as `head` does; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        return _fail(program, f"{quoted(error.filename or 'input or output')}: {error.strerror or error}.")
    return 0


def _silence_late_tasks() -> None:
    """Drops messages of Orbax's threads and tasks after its error; no command has tasks of its own."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _fail(program: str, sentence: str) -> int:
    print(f"{program}: error: {sentence}", file=sys.stderr)
    return FAILED
