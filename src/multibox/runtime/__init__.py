"""What a run needs around the loop: checkpoints, journal, schedules, processes, progress."""
