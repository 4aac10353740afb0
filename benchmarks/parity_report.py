"""The table of parity.md, from the lines of parity.jsonl."""

import re
import statistics
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""A finished job: method, side, seed, and what was measured."""

NAMES = {
    "simclr": "SimCLR",
    "moco": "MoCo v2",
    "byol": "BYOL",
    "swav": "SwAV",
    "simsiam": "SimSiam",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
    "nnclr": "NNCLR",
}


def of(lines: list[Line], method: str, side: str) -> list[Line]:
    """Return the lines of a method's side, by seed."""
    found = [line for line in lines if line["method"] == method and line["side"] == side]
    return sorted(found, key=lambda line: line["seed"])


def cell(lines: list[Line], name: str) -> str:
    """Return the mean over seeds of a score, with the interval of one seed's images."""
    if not lines:
        return "–"
    value = statistics.fmean(line[name][0] for line in lines)
    return f"{value:.1f} ± {half(lines, name):.1f}"


def half(lines: list[Line], name: str) -> float:
    """Return half the width of the 95 % interval of the mean over seeds, from the images alone."""
    squares = [((line[name][2] - line[name][1]) / 2) ** 2 for line in lines]
    return statistics.fmean(squares) ** 0.5 / len(squares) ** 0.5


def difference(ours: list[Line], theirs: list[Line], name: str) -> str:
    """Return sslkit minus lightly with a 95 % interval, as if the test images differed."""
    if not ours or not theirs:
        return "–"
    means = [statistics.fmean(line[name][0] for line in lines) for lines in (ours, theirs)]
    width = (half(ours, name) ** 2 + half(theirs, name) ** 2) ** 0.5
    words = f"{means[0] - means[1]:+.1f} ± {width:.1f}"
    return f"**{words}**" if abs(means[0] - means[1]) > width else words


def row(lines: list[Line], method: str) -> str:
    """Return a method's row of the table."""
    theirs, ours = of(lines, method, "lightly"), of(lines, method, "sslkit")
    seeds = {line["seed"] for line in ours} & {line["seed"] for line in theirs}
    if seeds:
        ours = [line for line in ours if line["seed"] in seeds]
        theirs = [line for line in theirs if line["seed"] in seeds]
    cells = [NAMES[method]]
    for name in ("linear", "knn"):
        cells += [cell(theirs, name), cell(ours, name), difference(ours, theirs, name)]
    cells.append(str(len(seeds) or "–"))
    speed = of(lines, method, "speed")
    if speed:
        cells += [f"{speed[0]['lightly']:.0f}", f"{speed[0]['sslkit']:.0f}"]
        cells.append(f"{speed[0]['ratio']:.2f}")
    else:
        cells += ["–"] * 3
    return f"| {' | '.join(cells)} |"


def report(lines: list[Line]) -> str:
    """Return the table, and a sentence with date and version."""
    columns = "| method | linear: lightly | sslkit | difference | kNN: lightly | sslkit "
    columns += "| difference | seeds | images/s: lightly | sslkit | ratio |"
    table = [columns, "|---" * 11 + "|"]
    start = of(lines, "untrained", "initial")
    if start:
        cells = ["untrained", cell(start, "linear"), "", "", cell(start, "knn")]
        table.append(f"| {' | '.join([*cells, *[''] * 6])} |")
    table += [row(lines, method) for method in NAMES]
    dates = sorted({line["date"] for line in lines}) or ["never"]
    versions = sorted({line["version"] for line in lines if "version" in line})
    done = sum(line["side"] in ("lightly", "sslkit") for line in lines)
    measured = f"Last measured: {dates[-1]}, lightly {', '.join(versions) or 'not yet'}, "
    return "\n".join([f"{measured}{done} trainings.", "", *table])


def write(page: Path, lines: list[Line]) -> None:
    """Replace the table between the markers of a page."""
    marked = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
    text, table = page.read_text(encoding="utf-8"), report(lines)
    page.write_text(
        marked.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text), encoding="utf-8"
    )
