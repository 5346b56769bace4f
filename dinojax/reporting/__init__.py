"""What a run logs: lines, metrics, events, rates, alarms."""
