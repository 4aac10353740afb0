"""`sslkit sweep`."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import Data, Overrides, filled
from sslkit.errors import counted

if TYPE_CHECKING:
    from sslkit.sweep.home import Home
    from sslkit.sweep.plan import Plan
    from sslkit.sweep.search import Search
    from sslkit.sweep.study import Sampler

TRIALS = 20
"""Default number of trials of a search."""

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE | KEY=VALUES",
        help="Recipes, and what to vary: loss.lambda=0,0.5,1. Commas inside brackets do not "
        "separate values. With --search also a range: 0.05..0.5, log:0.01..0.3, 1..8.",
        show_default=False,
        parser=filled("RECIPE"),
    ),
]


@app.command()
def sweep(
    words: Words,
    overrides: Overrides = None,
    data: Data = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            help="Number of training seeds of each combination of values, usually 2 to 5.",
        ),
    ] = 1,
    evaluate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Evaluation of each run (`sslkit eval` lists them); repeatable.  [default: knn]",
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Sample the values instead of running all of them.")
    ] = False,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --search: number of sampled combinations, by default 20.",
            show_default=False,
        ),
    ] = None,
    sampler: Annotated[
        Literal["tpe", "gp", "random"] | None,
        typer.Option(help="With --search: sampler of Optuna, by default tpe.", show_default=False),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="With --search: database that machines share, such as "
            "postgresql://user@host/name; by default a file in the folder of the sweep.",
            show_default=False,
            parser=filled("--storage"),
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of runs at the same time, by default one for each GPU, or one on a CPU.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the sweep.  [default: sweeps/RECIPES,KEYS]",
            show_default=False,
            parser=filled("--out", Path),
        ),
    ] = None,
) -> None:
    """Train and evaluate a recipe with several values.

    Runs every combination of values with several training seeds, and prints a table with
    intervals. Each run has a folder in the folder of the sweep. The same command continues a
    stopped sweep. Start it several times, also on several machines that have the folder in common:
    the processes share the runs.

    sslkit sweep pirl_jigsaw loss.lambda=0,0.5,1 --seeds 3 --data DIR
    """
    if not search:
        for name, value in {"trials": trials, "sampler": sampler, "storage": storage}.items():
            if value is not None:
                raise typer.BadParameter(f"--{name} belongs to --search; add it, or leave this out")
    from sslkit.sweep import plan as plans

    plan = plans.read(
        words,
        seeds=seeds,
        evaluations=tuple(evaluate or ("knn",)),
        overrides=tuple(overrides or ()),
        data=data,
        search=search,
    )
    folder = (out or Path("sweeps", plan.default_name)).expanduser().absolute()
    if search:
        from sslkit.sweep import study

        study.check(storage)
    plans.check_same(folder, plan)
    if search:
        _run_search(plan, folder, jobs, trials or TRIALS, sampler or "tpe", storage)
    else:
        _run_grid(plan, folder, jobs)


def _run_search(
    plan: "Plan", folder: Path, jobs: int | None, trials: int, sampler: "Sampler", url: str | None
) -> None:
    """Run a search; exit with 1 if trials failed, with the signal's code if one stopped it."""
    from sslkit.sweep import images, study
    from sslkit.sweep.home import Home
    from sslkit.sweep.search import Search
    from sslkit.training.signals import signals

    home = Home(folder, plan.evaluations)
    steps = images.steps(plan.cells)
    images.check(plan.cells, plan.evaluations, console.show_splits)
    keys = ", ".join(axis.key for axis in plan.axes)
    each = counted(steps[plan.cells[0].name], "step")
    runs = f"{counted(trials, 'trial')} × {counted(plan.seeds, 'training seed')}"
    console.print_text(f"search: {runs} over {keys}, {each} each")
    home.begin(plan)
    with study.quiet():
        search = Search(
            home,
            plan,
            _slots(plan, jobs),
            console.print_text,
            trials=trials,
            sampler=sampler,
            url=url,
        )
        with signals(lambda: False) as caught:
            search.run(lambda: bool(caught))
        _show_search(plan, search)
    if caught:
        name = signal.Signals(caught[0]).name
        left = counted(max(0, trials - len(search.finished())), "trial")
        console.print_text(f"stopped by {name} with {left} left; the same command goes on")
        raise typer.Exit(128 + caught[0])
    if search.failed:
        raise typer.Exit(1)


def _show_search(plan: "Plan", search: "Search") -> None:
    """Print the best trials, the files and the failed trials."""
    from sslkit.report import search_report
    from sslkit.sweep.search import table, write

    found = table(search)
    if found is not None:
        made = search_report.table(found)
        console.print_text("")
        console.print_table(made.columns, made.rows, title=made.title)
        for line in made.below:
            console.print_text(line)
        write(search, found, title=" ".join(plan.recipes))
        names = ("table.csv", "sweep.png")
        written = ", ".join(str(search.home.folder / name) for name in names)
        console.print_text(f"written: {written}")
    for name, reason in search.failed.items():
        console.print_text(f"failed: {name}: {reason}", stderr=True)
    if search.failed:
        logs = search.home.folder / "logs"
        console.print_text(f"logs: {logs}; the same command tries them again", stderr=True)


def _run_grid(plan: "Plan", folder: Path, jobs: int | None) -> None:
    """Run a grid; exit with 1 if cells failed, with the signal's code if one stopped it."""
    from sslkit.sweep import images, table
    from sslkit.sweep.grid import Grid
    from sslkit.sweep.home import Home
    from sslkit.training.signals import signals

    home = Home(folder, plan.evaluations)
    steps = images.steps(plan.cells)
    images.check(plan.cells, plan.evaluations, console.show_splits)
    console.print_text(_summary(plan, steps))
    home.begin(plan)
    grid = Grid(
        home,
        plan.cells,
        _slots(plan, jobs),
        steps,
        console.print_text,
        lambda cell: table.headline(home, cell),
    )
    with signals(lambda: False) as caught:
        grid.run(lambda: bool(caught))
    _show(plan, home, grid.failed)
    if caught:
        name = signal.Signals(caught[0]).name
        left = counted(len(grid.unfinished()), "cell")
        console.print_text(f"stopped by {name} with {left} left; the same command goes on")
        raise typer.Exit(128 + caught[0])
    if grid.failed:
        raise typer.Exit(1)


def _summary(plan: "Plan", steps: dict[str, int]) -> str:
    """Describe the cells and steps of a grid."""
    factors = []
    if len(plan.recipes) > 1:
        factors.append(counted(len(plan.recipes), "recipe"))
    factors += [f"{counted(len(axis.values), 'value')} of {axis.key}" for axis in plan.axes]
    factors.append(counted(plan.seeds, "training seed"))
    total = counted(sum(steps.values()), "step")
    return f"sweep: {' × '.join(factors)} = {counted(len(plan.cells), 'cell')}, {total}"


def _slots(plan: "Plan", jobs: int | None) -> Any:
    import torch

    from sslkit.sweep.slot import slots

    return slots(jobs, plan.cells[0].recipe.train.device, torch.cuda.device_count())


def _show(plan: "Plan", home: "Home", failed: dict[str, str]) -> None:
    """Print the table, the files and the failed cells."""
    from sslkit.report import sweep_table
    from sslkit.sweep import table

    made = table.collect(home, plan.cells, [axis.key for axis in plan.axes])
    if made["evaluations"]:
        console.print_text("")
        for one in sweep_table.tables(made):
            console.print_table(one.columns, one.rows, title=one.title)
            for line in one.below:
                console.print_text(line)
        table.write(home, made, title=" ".join(plan.recipes))
        written = ", ".join(str(home.folder / name) for name in ("table.csv", "sweep.png"))
        console.print_text(f"written: {written}")
    for cell in plan.cells:
        if cell.name in failed:
            console.print_text(f"failed: {cell.label}: {failed[cell.name]}", stderr=True)
            console.print_text(f"  log: {home.log(cell)}", stderr=True)
    if failed:
        console.print_text("the same command tries failed cells again", stderr=True)
