"""NPID: Wu, Xiong, Yu & Lin 2018, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination", arXiv:1805.01978."""

from typing import ClassVar

from sslkit_plugins.methods.pirl import Pirl


class Npid(Pirl):
    """Instance discrimination against a memory bank; PIRL with λ = 0."""

    reads: ClassVar = {"image": "image"}
