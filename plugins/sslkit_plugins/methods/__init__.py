"""Methods, one file per paper, with transform and computation."""
