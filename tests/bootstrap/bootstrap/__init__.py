"""BYOL by another author: a package beside sslkit, and beside its own `byol`."""
