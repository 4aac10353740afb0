"""Encoders: map images to one feature vector each."""

from sslkit_plugins.encoders.amdim import AmdimEncoder
from sslkit_plugins.encoders.channel_groups import ChannelGroups
from sslkit_plugins.encoders.timm_encoder import Timm

__all__ = ["AmdimEncoder", "ChannelGroups", "Timm"]
