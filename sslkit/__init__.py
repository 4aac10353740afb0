"""sslkit: declarative self-supervised learning on images. A recipe is a method."""

__version__ = "0.1.0"
