"""Where Python looks for modules: not in the working directory, which may hold anybody's files."""

import os
import sys


def leave_out_working_directory() -> None:
    """Undoes that `python -m` looks for modules in the working directory first, unless that is where this package lies.

    Called before other imports: a jax.py in that directory would be run in place of JAX.
    """
    package = os.path.dirname(os.path.realpath(__file__))
    if not sys.flags.safe_path and sys.path[0] != os.path.dirname(package):
        del sys.path[0]
