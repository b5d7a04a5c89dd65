"""Reads datasets, augments their images and loads batches."""
