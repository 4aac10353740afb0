"""The images below a folder, and what is passed over."""

import os
from collections import Counter
from collections.abc import Collection, Iterable

from sslkit.errors import counted, printable
from sslkit_plugins.datasets.decoding import ENDINGS
from sslkit_plugins.datasets.ours import is_our_folder, is_our_picture, may_be_ours

CLUTTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"}
"""What systems leave beside images, lower case."""

CONVERTIBLE = {
    ".3fr", ".arw", ".avif", ".cr2", ".cr3", ".crw", ".dcm", ".dds", ".dng", ".eps", ".exr",
    ".hdr", ".heic", ".heif", ".hif", ".ico", ".jp2", ".jxl", ".jxr", ".nef", ".orf", ".pcx",
    ".pdf", ".pef", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".sgi", ".srw", ".svg", ".tga",
    ".webp",
}  # fmt: skip
"""Endings of pictures that are not read."""

SHOWN = 5
"""Most endings that are named in one sentence."""


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is passed over without a word."""
    return name.startswith(".") or name.lower() in CLUTTER


def ending_of(name: str) -> str:
    """Return the ending of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def json_stems(names: Iterable[str]) -> set[str]:
    """Return the names of JSON files without their ending, lower case."""
    return {name[:-5].lower() for name in names if name.lower().endswith(".json")}


class Walk:
    """Looks for images below a folder. `names` are relative to it, and sorted.

    A link is followed where it leads to images inside the folder that are reached no other way
    (the storage of git-annex is such), or anywhere where `follow_links`. No folder is read twice,
    nor any image: those that are reached without a link go first, then links in the order of
    their names. Raises OSError for a folder that cannot be read.
    """

    def __init__(self, root: str | os.PathLike[str], follow_links: bool = False) -> None:
        self.follow_links = follow_links
        self.names: list[str] = []
        self.endings: Counter[str] = Counter()
        """Files that are no images, by ending."""
        self.ours = self.leading_out = self.broken = self.repeated = self.devices = 0
        self._inside = os.path.realpath(root)
        self._entered: set[str] = set()
        self._our_folders: set[str] = set()
        self._links: list[tuple[str, str]] = []
        self._enter(os.fspath(root), "", self._inside)
        self._follow()
        self.names.sort()

    def _enter(self, folder: str, prefix: str, real: str) -> None:
        """Collect images and links below a folder, whose path without links is `real`."""
        waiting = [(folder, prefix, real)]
        while waiting:
            folder, prefix, real = waiting.pop()
            if real in self._entered:
                continue
            self._entered.add(real)
            if is_our_folder(folder):
                self.ours += 1
                self._our_folders.add(real)
                continue
            files = []
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if is_hidden(entry.name):
                        continue
                    if entry.is_symlink():
                        self._links.append((name, entry.path))
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, f"{name}/", os.path.join(real, entry.name)))
                    elif entry.is_file(follow_symlinks=False):
                        files.append(entry.name)
                    else:
                        self.devices += 1
            beside = json_stems(files)
            for file in files:
                self._add(prefix + file, os.path.join(folder, file), beside)

    def _add(self, name: str, path: str, beside: Collection[str] = ()) -> None:
        """Add a file where it is an image."""
        stem, ending = os.path.splitext(os.path.basename(name).lower())
        if ending not in ENDINGS:
            self.endings[ending] += 1
        elif ending == ".png" and may_be_ours(stem, beside) and is_our_picture(path):
            self.ours += 1
        else:
            self.names.append(name)

    def _follow(self) -> None:
        """Follow links to folders, then links to files."""
        files = []
        while self._links:
            links, self._links = sorted(self._links), []
            for name, path in links:
                real = os.path.realpath(path)
                if real in self._our_folders:
                    continue
                if not os.path.exists(real):
                    self.broken += 1
                elif real in self._entered:
                    self.repeated += 1
                elif not self.follow_links and not self._is_inside(real):
                    self.leading_out += 1
                elif not os.path.isdir(real):
                    files.append((name, real))
                else:
                    self._enter(path, f"{name}/", real)
        read: set[str] = set()
        for name, real in sorted(files):
            if not os.path.isfile(real):
                self.devices += 1
            elif real in read or self._was_read(real):
                self.repeated += 1
            else:
                self._add(name, real)
                read.add(real)

    def _is_inside(self, real: str) -> bool:
        return real.startswith(os.path.join(self._inside, ""))

    def _was_read(self, real: str) -> bool:
        """Tell whether a file was found without following a link to it."""
        folder, name = os.path.split(real)
        return folder in self._entered and not is_hidden(name) and ending_of(name) in ENDINGS

    def passed_over(self) -> str:
        """Return what is passed over, in one line; nothing for nothing."""
        pictures = Counter({end: n for end, n in self.endings.items() if end in CONVERTIBLE})
        others = self.endings - pictures
        told = []
        if pictures:
            told.append(f"{_endings(pictures)} (convert them to JPEG or PNG)")
        if self.leading_out:
            links = counted(self.leading_out, "link")
            told.append(f"{links} (--set data.follow_links=true follows them)")
        if self.broken:
            told.append(counted(self.broken, "broken link"))
        if self.repeated:
            told.append(f"{counted(self.repeated, 'link')} to what is read anyway")
        if self.ours:
            told.append(
                f"{counted(self.ours, 'folder or picture', 'folders or pictures')} of sslkit"
            )
        if self.devices:
            told.append(counted(self.devices, "pipe or device", "pipes or devices"))
        if others:
            told.append(_endings(others))
        return printable(", ".join(told))


def _endings(endings: Counter[str]) -> str:
    """Return ".txt × 3, .csv × 1", the most frequent first."""
    ordered = sorted(endings.items(), key=lambda item: (-item[1], not item[0], item[0]))
    told = [f"{ending or 'without ending'} × {count:,}" for ending, count in ordered[:SHOWN]]
    if len(ordered) > SHOWN:
        told.append(f"{len(ordered) - SHOWN} more endings")
    return ", ".join(told)
