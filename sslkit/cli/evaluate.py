"""`sslkit eval`."""

from pathlib import Path
from typing import Annotated

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import Data, Device


def _split(words: list[str]) -> tuple[Path | None, list[str]]:
    """The run folder among the words, and the options: `--option=value`, or `--option value`."""
    folder, options = None, []
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            options += (
                [word]
                if "=" in word
                else [word, *([value] if (value := next(rest, None)) is not None else [])]
            )
        elif folder is None:
            folder = Path(word)
        else:
            options.append(word)
    return folder, options


@app.command("eval", context_settings={"ignore_unknown_options": True})
def evaluate(
    name: Annotated[
        str,
        typer.Argument(metavar="EVALUATION", help="linear, knn, or another one that is installed."),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN --OPTION VALUE",
            help="A run folder, the newest below runs/ if left out; and options of the evaluation.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    split_seed: Annotated[
        int, typer.Option(help="Splits a set without validation images of its own.")
    ] = 0,
    device: Device = "auto",
) -> None:
    """Measure a run beside its floors. `sslkit plugins show EVALUATION` lists its options, such as `--k 20` or `--layers all`."""
    from sslkit import recipe

    run, options = _split(words or [])
    choice = recipe.read_evaluation(name, options)

    from sslkit import parts
    from sslkit.evaluation import probe as features
    from sslkit.runs import folders

    folder = folders.find_folder(run)
    console.print_text(f"{name} on {folder}")
    probe = features.Probe(folder, data=data, seed=split_seed, device=device)
    for note in probe.notes:
        console.print_text(note, stderr=True)
    result = parts.make(choice).measure(probe)
    written = features.write(folder, result)
    console.print_scores(result)
    console.print_text(f"written: {written}")
