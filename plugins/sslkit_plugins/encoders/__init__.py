"""Encoders: images in, one vector per image out."""

from sslkit_plugins.encoders.timm_encoder import Timm

__all__ = ["Timm"]
