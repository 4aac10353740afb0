"""NPID (Wu, Xiong, Yu & Lin 2018, arXiv:1805.01978).

"Unsupervised Feature Learning via Non-Parametric Instance Discrimination".
"""

from typing import ClassVar

from sslkit_plugins.methods.pirl import Pirl


class Npid(Pirl):
    """Instance discrimination against a memory bank; PIRL with λ = 0."""

    reads: ClassVar = {"image": "image"}
