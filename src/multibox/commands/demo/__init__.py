"""Draws a dataset, trains on it, evaluates and reports."""
