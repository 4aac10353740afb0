"""Prints the lower bounds of the light dependencies in `pyproject.toml` as pins for pip.

    pip install $(python scripts/lowest.py)

torch, torchvision and timm are left out: they stay as installed.
"""

import re
import tomllib
from pathlib import Path

HEAVY = ("torch", "torchvision", "timm")


def pins(pyproject: Path) -> list[str]:
    """Turn each light requirement `name>=version` into `name==version`."""
    requirements = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    found = []
    for requirement in requirements:
        name, version = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
        if name not in HEAVY:
            found.append(f"{name}=={version}")
    return found


if __name__ == "__main__":
    print(*pins(Path(__file__).parent.parent / "pyproject.toml"))
