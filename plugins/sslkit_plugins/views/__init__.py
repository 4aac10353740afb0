"""Views: how they are cut from an image, and how their colours are drawn."""

from sslkit_plugins.views.photometric import Area, ColourList, Photometric, flip_or_not

__all__ = ["Area", "ColourList", "Photometric", "flip_or_not"]
