"""`stella-jax` and `python -m stella_jax`."""

import sys


def main() -> int:
    """Runs the command line; an interrupt before a command has started ends it like a later one."""
    try:
        from stella_jax.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        print("\nstella-jax: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    from stella_jax.cli.search_path import leave_out_working_directory

    leave_out_working_directory()
    sys.exit(main())
