"""Figures and tables of runs and results."""
