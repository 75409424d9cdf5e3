"""Training of the embedded checkpoint, `python -m tools.tiny`."""
