"""Files of a run: checkpoints, journals, the lock."""
