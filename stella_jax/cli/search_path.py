"""Removes the working directory, which may hold anybody's files, from Python's module search path."""

import os
import sys


def leave_out_working_directory() -> None:
    """Removes the working directory, which `python -m` searches first, unless this package is in it.

    Called before other imports, since a jax.py in that directory would be imported in place of JAX.
    """
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if not sys.flags.safe_path and sys.path[0] != os.path.dirname(package):
        del sys.path[0]
