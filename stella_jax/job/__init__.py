"""Bulk embedding and scoring: inputs are cut into splits, rows go to part files, and a manifest lists the parts."""
