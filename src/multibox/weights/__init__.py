"""Reads and writes weights files: multibox's own and other implementations'."""
