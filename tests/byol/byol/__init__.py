"""BYOL, a package of somebody else's, beside sslkit."""
