"""Checks the boxes of an evaluation's splits."""

from collections.abc import Sequence

from sslkit.errors import DataError
from sslkit.interfaces import ImageSource


def unseen_objects(
    train: ImageSource, val: ImageSource, classes: Sequence[str], where: str
) -> list[str]:
    """Return the classes without validation objects. Difficult objects do not count there.

    Raises DataError if a split has no objects, or the validation split has a class that the
    training split lacks.
    """
    if val.boxes is None:
        raise DataError(f"the validation images of {where} have no boxes; add their annotations")
    learnt = _labels(train, difficult=True)
    shown = _labels(val, difficult=False)
    for split, found in (("training", learnt), ("validation", shown)):
        if not found:
            raise DataError(
                f"no {split} image of {where} has an object that counts; add objects to their "
                "annotations, or name another folder: --data DIR"
            )
    if strange := sorted(shown - learnt):
        named = ", ".join(classes[label] for label in strange)
        raise DataError(
            f"{where} has validation objects of {named}, but no training objects; add some, or "
            "remove these objects"
        )
    return [name for label, name in enumerate(classes) if label not in shown]


def _labels(source: ImageSource, *, difficult: bool) -> set[int]:
    """Return the classes of all objects, with or without difficult ones."""
    found: set[int] = set()
    for boxes in source.boxes or []:
        counted = boxes.labels if difficult else boxes.labels[~boxes.difficult]
        found.update(counted.tolist())
    return found
