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
"""Elements of a block of distances, or of rows in float64."""

RESEEDS = 10
"""Attempts to fill empty clusters with distant rows."""


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
    """Centres [K,D], and the cluster of every row, int64 [N]."""

    centres: Tensor
    assigned: Tensor


@torch.no_grad()
def k_means(
    rows: Tensor, clusters: int, iterations: int, draws: Draws, *, spherical: bool = False
) -> Clusters:
    """Cluster rows [N,D] by Lloyd's algorithm; K ≤ N.

    Starts from different rows drawn with `draws`, which have the same numbers on all ranks. The
    centre of an empty cluster moves to the row that is farthest from its centre. `spherical`
    compares unit vectors by cosine and normalises centres. Sums differ in the last bits on GPUs, so
    all ranks get the result of rank 0.
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows = at_least_float32(rows)
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
    """Return the nearest centre of every row, int64 [N]; no cluster stays empty.

    Moves the centres of empty clusters to the farthest rows, in place.
    """
    assigned, distances = _nearest(rows, centres)
    for _ in range(RESEEDS):
        empty = _empty(assigned, centres)
        if not len(empty) or not distances.any():
            break
        centres[empty] = rows[distances.topk(len(empty)).indices]
        assigned, distances = _nearest(rows, centres)
    _share(_empty(assigned, centres).tolist(), rows, centres, assigned, distances)
    return assigned


def _empty(assigned: Tensor, centres: Tensor) -> Tensor:
    """Return the clusters without rows, int64."""
    return (torch.bincount(assigned, minlength=len(centres)) == 0).nonzero().flatten()


def _nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centre of every row, int64 [N], and its squared distance, [N]."""
    nearest, distances = [], []
    offsets = centres.square().sum(1)
    for block in rows.split(max(1, SLICE // len(centres))):
        cluster = (offsets - 2 * block @ centres.T).argmin(1)
        nearest.append(cluster)
        distances.append((block - centres[cluster]).square().sum(1))
    return torch.cat(nearest), torch.cat(distances)


def _share(
    empty: list[int], rows: Tensor, centres: Tensor, assigned: Tensor, distances: Tensor
) -> None:
    """Move one row of a cluster with several rows to each empty cluster, in place.

    These clusters are empty because rows are equal, or nearly so.
    """
    if not empty:
        return
    farthest = distances.argsort(descending=True, stable=True).tolist()
    sizes = torch.bincount(assigned, minlength=len(centres)).tolist()
    clusters = assigned.tolist()
    for row in farthest:
        if not empty:
            break
        if sizes[clusters[row]] > 1:
            cluster = empty.pop()
            sizes[clusters[row]] -= 1
            assigned[row] = cluster
            centres[cluster] = rows[row]


def _means(rows: Tensor, assigned: Tensor, clusters: int) -> Tensor:
    """Return the mean row of each cluster, [K,D]."""
    sums = rows.new_zeros(clusters, rows.shape[1]).index_add_(0, assigned, rows)
    return sums / torch.bincount(assigned, minlength=clusters).unsqueeze(1)


@torch.no_grad()
def whiten(rows: Tensor, dim: int) -> Tensor:
    """Project rows [N,D] to their first principal components and divide by their deviations.

    DeepCluster (Caron et al. 2018, arXiv:1807.05520, section 4.1) uses 256 components. Returns
    rows [N,M] of mean 0 and covariance 1, with M the smallest of `dim`, D and N - 1. Directions
    without variance stay zero. Computes in float64, block by block.
    """
    kept = max(1, min(dim, rows.shape[1], len(rows) - 1))
    blocks = rows.split(max(1, SLICE // rows.shape[1]))
    mean = sum(block.double().sum(0) for block in blocks) / len(rows)
    covariance = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for block in blocks:
        centred = block.double() - mean
        covariance += centred.T @ centred / len(rows)
    variances, directions = torch.linalg.eigh(covariance)
    variances, directions = variances[-kept:].flip(0), directions[:, -kept:].flip(1)
    smallest = variances[0] * 1e-10
    scale = torch.where(variances > smallest, variances.clamp_min(smallest).rsqrt(), 0.0)
    projected = [(block.double() - mean) @ directions * scale for block in blocks]
    return torch.cat(projected).to(torch.promote_types(rows.dtype, torch.float32))
