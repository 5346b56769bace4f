"""Around a run, not in it: processes, signals, watchdog, memory."""
