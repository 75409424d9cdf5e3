"""Checkpoints: reading, checking and writing their settings and weights, in either layout."""
