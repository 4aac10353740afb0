"""How long it takes to start: the commands that need no torch, and where the seconds go until the
first training step.

    python benchmarks/start.py                                       # both tables
    python benchmarks/start.py --recipe recipes/rotnet.yaml --repeats 5

Commands are compared with the import of typer, rich and pydantic, in turn; seconds are those of
the processor, the least of `--repeats`.
The import of pydantic is lazy, so a second floor stands beside it: a typer command with one
option that prints a rich table of three rows.
The first step is that of a process of its own, with one thread, the fastest of `--repeats`.
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = str(Path(__file__).parent.parent / "recipes" / "pirl_jigsaw.yaml")
IMPORTS = "import typer, rich, pydantic"
FLOOR = """
import typer
app = typer.Typer(rich_markup_mode=None)
@app.command()
def table(rows: int = 3):
    from rich.console import Console
    from rich.table import Table
    shown = Table("number")
    for row in range(rows):
        shown.add_row(str(row))
    Console().print(shown)
app()
"""


def seconds(*arguments: str) -> float:
    """Processor time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(recipe: str, repeats: int) -> str:
    """Markdown: each command beside both floors."""
    measured = {
        f"`{IMPORTS}`": ("-c", IMPORTS),
        "a typer command with one option and a rich table": ("-c", FLOOR),
        "`sslkit --help`": ("-m", "sslkit", "--help"),
        "`sslkit plugins`": ("-m", "sslkit", "plugins"),
        "`sslkit check RECIPE`": ("-m", "sslkit", "check", recipe),
    }
    least = dict.fromkeys(measured, float("inf"))
    for _ in range(repeats):
        for name, arguments in measured.items():
            least[name] = min(least[name], seconds(*arguments))
    imports, floor = list(least.values())[:2]
    rows = [
        f"| {name} | {1000 * value:.0f} | {value / imports:.2f} | {value / floor:.2f} |"
        for name, value in least.items()
    ]
    return "\n".join(
        ["| process | ms | of the imports | of the floor |", "|---|---|---|---|", *rows]
    )


def first_step(recipe: str, words: list[str]) -> None:
    """Run `sslkit train` until its first step is done; print the seconds of each phase as JSON. A
    process of its own.
    """
    spent: dict[str, float] = {}
    began = [time.process_time()]
    spent["Python"] = began[0]

    def lap(name: str) -> None:
        now = time.process_time()
        spent[name] = spent.get(name, 0.0) + now - began[0]
        began[0] = now

    from sslkit import recipe as recipes

    overrides = [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    data = next(
        (word.removeprefix("--data=") for word in words if word.startswith("--data=")), None
    )
    made = recipes.read(recipe, overrides=overrides, data=data)
    lap("recipe, read and checked")
    import torch

    lap("import torch")
    import torch._dynamo

    lap("import torch._dynamo (optimizers and torchvision do)")
    import timm.optim  # noqa: F401

    lap("import timm and torchvision")
    from sslkit.screen import TrainingScreen
    from sslkit.training import build, session, trainer

    lap("import the rest" + (", matplotlib" * ("matplotlib" in sys.modules)))
    torch.set_num_threads(1)

    def phase(module: object, name: str, label: str) -> None:
        """Everything before a call of the function belongs to what was under way."""
        function = getattr(module, name)

        @functools.wraps(function)
        def timed(*args: object, **options: object) -> object:
            lap("the run folder and the rest")
            try:
                return function(*args, **options)
            finally:
                lap(label)

        setattr(module, name, timed)

    phase(build, "make_source", "the data set opened")
    phase(build, "make_method", "the network made")
    phase(build, "make_optimizer", "the optimizer made")
    phase(trainer, "_begin_epoch", "the first pass, which fills the memory")
    if "sslkit.report.figures" in sys.modules:
        phase(sys.modules["sslkit.report.figures"], "views", "views.png")
    steps = trainer.train

    def until_the_first(*args: object, **options: object) -> object:
        for step in steps(*args, **options):
            lap("the first step")
            yield step
            raise SystemExit

    trainer.train = until_the_first  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as runs, open(os.devnull, "w") as nowhere:
        shown, sys.stdout = sys.stdout, nowhere
        try:
            session.train(made, runs=Path(runs), viewer=session.Viewer(screen=TrainingScreen))
        except SystemExit:
            sys.stdout = shown
    print(json.dumps(spent))


def phases(recipe: str, words: list[str], repeats: int) -> str:
    """Markdown: processor seconds of each phase until the first step is done."""
    found = []
    for _ in range(repeats):
        arguments = [sys.executable, __file__, "--first-step", "--recipe", recipe, *words]
        ran = subprocess.run(
            arguments,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found.append(json.loads(ran.stdout))
    best = min(found, key=lambda spent: sum(spent.values()))
    total = sum(best.values())
    rows = [
        f"| {name} | {value:.2f} | {100 * value / total:.0f} % |"
        for name, value in best.items()
        if value >= 0.005
    ]
    return "\n".join(
        [
            "| until the first step is done | s | share |",
            "|---|---|---|",
            *rows,
            f"| **all** | **{total:.2f}** | |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first-step", action="store_true", help=argparse.SUPPRESS)
    options, words = parser.parse_known_args()
    if options.first_step:
        first_step(options.recipe, words)
        return
    print(commands(options.recipe, options.repeats), "", sep="\n", flush=True)
    print(phases(options.recipe, words, max(1, options.repeats // 2)))


if __name__ == "__main__":
    main()
