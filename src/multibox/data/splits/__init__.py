"""Splits that are drawn, because a dataset has none."""
