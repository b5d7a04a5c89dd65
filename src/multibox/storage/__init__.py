"""Reads and writes the files of a run: checkpoints, logs, configuration and lock."""
