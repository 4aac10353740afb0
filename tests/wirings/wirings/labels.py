"""Training with the data set's labels."""

from typing import ClassVar

from sslkit_plugins.methods.predict import Predict


class Labels(Predict):
    """Predict the class of an image."""

    reads: ClassVar = {"label": "image"}
    predicts: ClassVar = {"label": "label"}
