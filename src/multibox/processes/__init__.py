"""The processes of one run: joining, agreement, signals, heartbeat."""
