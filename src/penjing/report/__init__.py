"""The report of a run: a pure reader of the run directory, finished or not."""
