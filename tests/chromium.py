"""Marks of tests that drive pages in an installed Chromium."""

import pytest

# Playwright leaves the closing of its pipes to the garbage collector.
MARKS = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
