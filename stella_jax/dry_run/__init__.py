"""The dry run: an estimate of a job from a sample, and a check of all of its rows; nothing is written."""
