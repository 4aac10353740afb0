"""Sweeps: grids and searches of recipe values, with a run folder for each cell."""
