"""Data loading: splits, the deterministic loader, and un-augmented images for evaluations."""
