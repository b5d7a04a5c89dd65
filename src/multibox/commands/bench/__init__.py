"""Measures the time that each part takes on this machine."""
