"""Channel order as a pretext task: a package of somebody else's, beside sslkit."""
