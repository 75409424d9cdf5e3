"""`python -m stella_jax`."""

import sys

from stella_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
