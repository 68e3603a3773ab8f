"""Services that show a run's figures beside metrics.jsonl; each in a file of its own, behind `tracker.Tracker`."""
