"""Encoders: map images to one feature vector each."""

from sslkit_plugins.encoders.timm_encoder import Timm

__all__ = ["Timm"]
