"""Images → batches: splits, the deterministic loader, and the un-augmented view of evaluations."""
