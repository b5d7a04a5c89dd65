"""Draws a dataset and runs the whole path on it."""
