"""Where Python looks for modules: not in the working directory, which may hold anybody's files."""

import os
import sys


def leave_out_working_directory() -> None:
    """Undoes that `python -m` looks for modules in the working directory first, unless that is where this package lies.

    Called before other imports: a jax.py in that directory would be run in place of JAX.
    """
    here = os.path.realpath(os.curdir)
    package = os.path.dirname(os.path.realpath(__file__))
    if not sys.flags.safe_path and here != os.path.dirname(package):
        sys.path[:1] = [folder for folder in sys.path[:1] if os.path.realpath(folder) != here]
