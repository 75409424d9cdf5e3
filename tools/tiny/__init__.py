"""The making of the embedded checkpoint, `python -m tools.tiny`."""
