"""Measures what each part costs on this machine."""
