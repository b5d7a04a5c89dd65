"""Renders training images on a GPU."""
