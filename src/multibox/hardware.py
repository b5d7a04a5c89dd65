"""The hardware that this process may use."""

import os


def usable_cores() -> int:
    """Returns the number of cores that this process may use; all cores if that is unknown."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
