"""Do the images of a class lie together? An evaluation of somebody else's, beside sslkit."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Evaluation, Features, Metric, Probe, Result


class Silhouette(Evaluation):
    """Mean silhouette of the classes by cosine distance (Rousseeuw 1987, section 2)."""

    def measure(self, probe: Probe) -> Result:
        metric = Metric("silhouette", low=-1, high=1)
        return probe.compare(self.score, [metric], chance={"silhouette": 0.0})

    def score(self, features: Features, seed: int) -> dict[str, Tensor]:
        """Return the silhouette of every validation image, float32 [N]."""
        unit = F.normalize(features.val, dim=1)
        members = F.one_hot(features.val_labels).float()
        sums = (1 - unit @ unit.T) @ members
        sizes, own = members.sum(0), members.bool()
        inside = sums[own] / (sizes[features.val_labels] - 1)
        means = (sums / sizes).nan_to_num(torch.inf)  # no image in a class: not the nearest one
        outside = means.masked_fill(own, torch.inf).amin(1)
        values = (outside - inside) / torch.maximum(inside, outside)
        return {"silhouette": values.nan_to_num(0.0)}  # a class of one image counts as 0
