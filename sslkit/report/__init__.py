"""Pictures and tables of runs and results."""
