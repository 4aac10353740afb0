"""Evaluations: one file each, found by entry point like any part; features.py is what they share."""
