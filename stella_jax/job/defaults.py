"""Defaults that the command line shares with `job.options`; here, since --help must not import JAX."""

# Share of the rows that may be rejected.
MAX_REJECTED = 0.01

# Time to finish open parts after a request to stop.
GRACE_SECONDS = 30
