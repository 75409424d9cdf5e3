"""Training of the included checkpoint, `python -m tools.tiny`."""
