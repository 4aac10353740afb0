"""Transforms that cut views from an image and augment their colours."""

from sslkit_plugins.views.colours import Chance, ColourList, ColourLists, Colours, colours_of
from sslkit_plugins.views.crops import Augment, Crops, Local, MultiCrop
from sslkit_plugins.views.cuts import Area, Cut, crop, crop_box, flip_or_not
from sslkit_plugins.views.lab import Lab
from sslkit_plugins.views.patches import PatchGrid
from sslkit_plugins.views.photometric import Normaliser, Photometric
from sslkit_plugins.views.ycbcr import YCbCr

__all__ = [
    "Area",
    "Augment",
    "Chance",
    "ColourList",
    "ColourLists",
    "Colours",
    "Crops",
    "Cut",
    "Lab",
    "Local",
    "MultiCrop",
    "Normaliser",
    "PatchGrid",
    "Photometric",
    "YCbCr",
    "colours_of",
    "crop",
    "crop_box",
    "flip_or_not",
]
