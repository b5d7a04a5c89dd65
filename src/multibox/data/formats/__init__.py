"""Readers of annotated images, one module for each format."""
