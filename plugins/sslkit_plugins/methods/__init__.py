"""Methods, one file a paper: its transform and its wiring."""
