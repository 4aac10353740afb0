"""Clusters: Sinkhorn codes, k-means and whitening, in PyTorch on the device of the rows.

Callers gather the rows of all ranks first, so that every rank computes the same clusters. Letters:
B or N rows, K clusters, D features.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.interfaces import Draws
from sslkit_plugins.precision import at_least_float32

SLICE = 2**24
"""Elements of a block of distances."""


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign rows to prototypes evenly: scores [B,K] → codes [B,K] whose rows sum to 1.

    SwAV (Caron et al. 2020, arXiv:2006.09882, equation 3): codes maximise Tr(QᵀS) + ε·H(Q) with
    equal sums over rows and over prototypes. In the log domain, where nothing overflows. After few
    iterations the sums over rows are exact, those over prototypes approximate.
    """
    log_codes = at_least_float32(scores) / epsilon
    for _ in range(iterations):
        log_codes = log_codes.log_softmax(0)
        log_codes = log_codes.log_softmax(1)
    return log_codes.exp()


class Clusters(NamedTuple):
    """Centres float32 [K,D], and the cluster of every row, int64 [N]."""

    centres: Tensor
    assigned: Tensor


@torch.no_grad()
def k_means(
    rows: Tensor, clusters: int, iterations: int, draws: Draws, *, spherical: bool = False
) -> Clusters:
    """Cluster rows [N,D] by Lloyd's algorithm; K ≤ N.

    Starts from different rows drawn with `draws`, which have the same numbers on all ranks. An
    empty cluster takes the row that is farthest from its centre. `spherical` compares unit vectors
    by cosine and normalises centres. Sums differ in the last bits on GPUs, so all ranks get the
    result of rank 0.
    """
    rows = rows.float()
    if spherical:
        rows = F.normalize(rows, dim=-1)
    first = draws.uniform(len(rows)).argsort()[:clusters].to(rows.device)
    centres = rows[first]
    assigned = _assign(rows, centres)
    for _ in range(iterations):
        centres = _means(rows, assigned, clusters)
        if spherical:
            centres = F.normalize(centres, dim=-1)
        assigned = _assign(rows, centres)
    found = Clusters(centres.contiguous(), assigned)
    distributed.broadcast(found)
    return found


def _assign(rows: Tensor, centres: Tensor) -> Tensor:
    """Return the nearest centre of every row, int64 [N]; no cluster stays empty."""
    nearest, distances = [], []
    offsets = centres.square().sum(1)
    for block in rows.split(max(1, SLICE // len(centres))):
        distance, cluster = (offsets - 2 * block @ centres.T).min(1)
        nearest.append(cluster)
        distances.append(distance + block.square().sum(1))
    assigned = torch.cat(nearest)
    counts = torch.bincount(assigned, minlength=len(centres))
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        _fill(empty, assigned, counts, torch.cat(distances))
    return assigned


def _fill(empty: list[int], assigned: Tensor, counts: Tensor, distances: Tensor) -> None:
    """Move the farthest rows of clusters with several rows to the `empty` clusters."""
    farthest = iter(distances.argsort(descending=True, stable=True).tolist())
    sizes = counts.tolist()
    for cluster in empty:
        row = next(row for row in farthest if sizes[assigned[row]] > 1)
        sizes[assigned[row]] -= 1
        sizes[cluster] = 1
        assigned[row] = cluster


def _means(rows: Tensor, assigned: Tensor, clusters: int) -> Tensor:
    """Return the mean row of each cluster, [K,D]."""
    sums = rows.new_zeros(clusters, rows.shape[1]).index_add_(0, assigned, rows)
    return sums / torch.bincount(assigned, minlength=clusters).unsqueeze(1)


@torch.no_grad()
def whiten(rows: Tensor, dim: int) -> Tensor:
    """Project rows [N,D] to their first principal components, whiten and normalise them.

    DeepCluster (Caron et al. 2018, arXiv:1807.05520, section 4.1) uses 256 components. Returns unit
    rows [N,M] with M the smallest of `dim`, D and N - 1. Directions without variance stay zero.
    """
    rows = rows.double()
    centred = rows - rows.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(rows))
    kept = min(dim, rows.shape[1], len(rows) - 1)
    variances, directions = variances[-kept:], directions[:, -kept:]
    smallest = variances[-1] * 1e-10
    scale = torch.where(variances > smallest, variances.clamp_min(smallest).rsqrt(), 0.0)
    return F.normalize(centred @ directions * scale, dim=-1).float()
