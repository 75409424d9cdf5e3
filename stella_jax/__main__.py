"""`python -m stella_jax`."""

import sys

from stella_jax.cli.search_path import leave_out_working_directory

if __name__ == "__main__":
    leave_out_working_directory()

    from stella_jax.cli.main import main

    sys.exit(main())
