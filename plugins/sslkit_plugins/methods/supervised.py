"""Supervised training, the upper line beside self-supervised methods.

He, Zhang, Ren & Sun 2016, arXiv:1512.03385, "Deep Residual Learning for Image Recognition".
"""

from typing import ClassVar

from sslkit_plugins.methods.predict import Predict


class Supervised(Predict):
    """Predict the class of an image with a linear layer over its features.

    Needs labelled images, such as a folder with one subfolder per class.
    """

    reads: ClassVar = {"label": "image"}
    predicts: ClassVar = {"label": "label"}
    crops: ClassVar = {}
