"""Data sets: folders, VOC, arrays, packed sets, generated shapes, and torchvision's sets."""

from sslkit_plugins.datasets.decoding import decode, decode_pixels
from sslkit_plugins.datasets.folder import ImageFolder, ImageNet
from sslkit_plugins.datasets.npz import Npz
from sslkit_plugins.datasets.packed import Packed
from sslkit_plugins.datasets.shapes import Shapes
from sslkit_plugins.datasets.torchvision_sets import Cifar10, Cifar100, Stl10
from sslkit_plugins.datasets.voc import Voc

__all__ = [
    "Cifar10",
    "Cifar100",
    "ImageFolder",
    "ImageNet",
    "Npz",
    "Packed",
    "Shapes",
    "Stl10",
    "Voc",
    "decode",
    "decode_pixels",
]
