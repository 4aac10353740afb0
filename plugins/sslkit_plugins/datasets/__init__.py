"""Data sets: folders of images, arrays, packed sets, generated shapes, and torchvision's sets."""

from sslkit_plugins.datasets.decoding import decode, decode_pixels
from sslkit_plugins.datasets.folder import ImageFolder, ImageNet
from sslkit_plugins.datasets.npz import Npz
from sslkit_plugins.datasets.packed import Packed
from sslkit_plugins.datasets.shapes import Shapes
from sslkit_plugins.datasets.torchvision_sets import Cifar10, Cifar100, Stl10

__all__ = [
    "Cifar10",
    "Cifar100",
    "ImageFolder",
    "ImageNet",
    "Npz",
    "Packed",
    "Shapes",
    "Stl10",
    "decode",
    "decode_pixels",
]
