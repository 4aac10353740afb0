"""The version of sslkit."""

__version__ = "0.1.0"
