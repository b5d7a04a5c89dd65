"""Fetches published datasets. The only package that opens connections to the network."""
