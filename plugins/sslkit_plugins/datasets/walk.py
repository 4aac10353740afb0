"""Finds the images below a folder and counts skipped files."""

import os
from collections import Counter
from collections.abc import Collection, Iterable

from sslkit.errors import counted, printable
from sslkit_plugins.datasets.decoding import ENDINGS
from sslkit_plugins.datasets.ours import is_our_folder, is_our_picture, may_be_ours

CLUTTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"}
"""Files that operating systems create next to images, lower case."""

CONVERTIBLE = {
    ".3fr", ".arw", ".avif", ".cr2", ".cr3", ".crw", ".dcm", ".dds", ".dng", ".eps", ".exr",
    ".hdr", ".heic", ".heif", ".hif", ".ico", ".jp2", ".jxl", ".jxr", ".nef", ".orf", ".pcx",
    ".pdf", ".pef", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".sgi", ".srw", ".svg", ".tga",
    ".webp",
}  # fmt: skip
"""Extensions of pictures that are not read."""

SHOWN = 5
"""Largest number of extensions that one sentence names."""


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is skipped without a message."""
    return name.startswith(".") or name.lower() in CLUTTER


def ending_of(name: str) -> str:
    """Return the extension of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def json_stems(names: Iterable[str]) -> set[str]:
    """Return the names of JSON files without extension, lower case."""
    return {name[:-5].lower() for name in names if name.lower().endswith(".json")}


class Walk:
    """Finds images below a folder. `names` are relative to it, and sorted.

    Links within the folder are followed if their target is not read otherwise, as with git-annex.
    `follow_links` also follows links out of the folder. No folder or image is read twice: paths
    without a link come first, then links in the order of their names. Raises OSError for a folder
    that cannot be read.
    """

    def __init__(self, root: str | os.PathLike[str], follow_links: bool = False) -> None:
        self.follow_links = follow_links
        self.names: list[str] = []
        self.endings: Counter[str] = Counter()
        """Number of files that are no images, by extension."""
        self.ours = self.leading_out = self.broken = self.repeated = self.devices = 0
        self._inside = os.path.realpath(root)
        self._entered: set[str] = set()
        self._our_folders: set[str] = set()
        self._links: list[tuple[str, str]] = []
        self._enter(os.fspath(root), "", self._inside)
        self._follow()
        self.names.sort()

    def _enter(self, folder: str, prefix: str, real: str) -> None:
        """Collect images and links below a folder, whose resolved path is `real`."""
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
        """Add a file if it is an image."""
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
        """Tell whether a file was found without a link."""
        folder, name = os.path.split(real)
        return folder in self._entered and not is_hidden(name) and ending_of(name) in ENDINGS

    def skipped(self) -> str:
        """Return a list of skipped files, in one line; "" if there are none."""
        pictures = Counter({end: n for end, n in self.endings.items() if end in CONVERTIBLE})
        others = self.endings - pictures
        lines = []
        if pictures:
            lines.append(f"{_endings(pictures)} (convert them to JPEG or PNG)")
        if self.leading_out:
            links = counted(self.leading_out, "link")
            lines.append(f"{links} (--set data.follow_links=true follows them)")
        if self.broken:
            lines.append(counted(self.broken, "broken link"))
        if self.repeated:
            lines.append(f"{counted(self.repeated, 'link')} to files that are read anyway")
        if self.ours:
            lines.append(
                f"{counted(self.ours, 'folder or picture', 'folders or pictures')} of sslkit"
            )
        if self.devices:
            lines.append(counted(self.devices, "pipe or device", "pipes or devices"))
        if others:
            lines.append(_endings(others))
        return printable(", ".join(lines))


def _endings(endings: Counter[str]) -> str:
    """Return ".txt × 3, .csv × 1", the most frequent first."""
    ordered = sorted(endings.items(), key=lambda item: (-item[1], not item[0], item[0]))
    shown = [f"{ending or 'without extension'} × {count:,}" for ending, count in ordered[:SHOWN]]
    if len(ordered) > SHOWN:
        shown.append(f"{len(ordered) - SHOWN} more extensions")
    return ", ".join(shown)
