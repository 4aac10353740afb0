"""Embeddings of the views of a run's recipe.

Letters: B images of a batch, N images, K crops or patches, D features.
"""

import torch
from torch import Tensor

from sslkit.interfaces import Candidate, ImageSource, Method, PretextTransform, Probe

Pair = tuple[Tensor | None, Tensor]
"""Embeddings [N,D] of an image and of its view; None stands for the features of the image."""


def compared_heads(method: Method, transform: PretextTransform) -> dict[str, str]:
    """Return the heads that the method compares and that read a view: head → its input.

    Ordered by view. The input is a view, or `view.segment`.
    """
    names = [*method.heads] if method.compares is None else [*method.compares]
    inputs = {}
    for name in names:
        if name in method.predicts:
            continue
        reads = {name: name} if method.reads is None else method.reads
        source = reads.get(name) or reads.get("*", "").replace("*", name)
        if source.partition(".")[0] in transform.views:
            inputs[name] = source
    order = list(transform.views)
    return dict(sorted(inputs.items(), key=lambda one: order.index(one[1].partition(".")[0])))


@torch.no_grad()
def embed_views(probe: Probe, candidate: Candidate, source: ImageSource) -> dict[str, Pair]:
    """Return the embeddings of the recipe's views by row; {} for candidates without a recipe.

    Each view has a row with the encoder's features; several crops or patches have their mean. If
    the method compares heads that read views, each further head has a row with its outputs and
    those of the first head: in PIRL, f of the image and g of the pretext view.
    """
    pretext = candidate.pretext()
    if pretext is None:
        return {}
    method, transform = pretext
    heads = compared_heads(method, transform)
    found: dict[str, list[Tensor]] = {}
    for batch in probe.pretext(source, transform):
        features = {}
        for view in transform.views:
            features[view] = method.encode(batch.views[view], method.exported).float()
            found.setdefault(f"recipe: {view}", []).append(_mean(features[view]))
        for head, read in heads.items():
            outputs = _mean(_output(method, head, read, features).float())
            found.setdefault(head, []).append(outputs)
    rows = {name: torch.cat(parts)[: len(source)] for name, parts in found.items()}
    pairs: dict[str, Pair] = {}
    names = [*heads]
    for head in names[1:]:
        pairs[f"recipe: heads {names[0]}, {head}"] = rows[names[0]], rows[head]
    for view in transform.views:
        pairs[f"recipe: {view}"] = None, rows[f"recipe: {view}"]
    return pairs


def _output(method: Method, head: str, read: str, features: dict[str, Tensor]) -> Tensor:
    """Return the output of a head that reads `view` or `view.segment`."""
    view, _, segment = read.partition(".")
    rows = features[view]
    return method.head(head)(method.exported.segment(rows, segment) if segment else rows)


def _mean(rows: Tensor) -> Tensor:
    """Average [B,K,D] over crops; [B,D] stays as it is."""
    return rows if rows.dim() == 2 else rows.flatten(1, -2).mean(1)
