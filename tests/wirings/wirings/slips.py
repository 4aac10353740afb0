"""Methods that cannot be wired; `check` says why."""

from typing import ClassVar

from sslkit.interfaces import Batch, Method, Output, Progress


class Slip(Method):
    """Never gets as far as a step."""

    def forward(self, batch: Batch, progress: Progress) -> Output:
        raise AssertionError("refused before")


class Tokens(Slip):
    """Needs the tokens of a transformer."""

    reads: ClassVar = {"decoder": "image"}
    needs: ClassVar = {"encoder": "tokens"}


class Circle(Slip):
    """Its heads read each other."""

    reads: ClassVar = {"a": "b", "b": "a"}


class Misnamed(Slip):
    """Stores a head that it does not read."""

    reads: ClassVar = {"projector": "image"}
    stores = ("projetor",)


class Ambiguous(Slip):
    """Names a head like a view, and reads that name with another one."""

    reads: ClassVar = {"patches": "patches", "order": "patches"}


class Upwards(Slip):
    """Reads a view that few transforms make."""

    reads: ClassVar = {"projector": "upside_down"}
