"""What of the machine this process may use."""

import os


def usable_cores() -> int:
    """Returns how many cores this process may run on; all of them where the system does not say."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
