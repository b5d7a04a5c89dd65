"""Looks for faults in a dataset and writes corrected copies."""
