"""Each option and each parameter of the command line has a description, and it is shown."""

import re

import typer
from typer.main import get_command
from typer.testing import CliRunner

from sslkit.cli import app
from sslkit.recipe import SCHEDULES, json_schema, optimizers, registry, sections
from sslkit.recipe.tables import group_tables

DIALECT = (
    "so that|whoever|lest|told|asked|held|at hand|anew|betray|half of|older word|as it is|"
    "if left out|may be given again|stands for|who has|has to be"
)


def signatures():
    """Every set of options that a recipe may hold, with its name."""
    for part in registry.parts():
        yield f"{part.kind}/{part.name}", part.signature()
    for name in SCHEDULES:
        yield f"schedule/{name}", sections.signature("schedule", name)
    yield "optimizer", optimizers.common_signature()
    yield "train", sections.signature("train")


def options():
    """Every option, also those of groups, with its owner's name."""
    for owner, signature in signatures():
        for option in signature.options.values():
            yield f"{owner}.{option.name}", option
        for table in group_tables(signature):
            for option in table.signature.options.values():
                yield f"{owner}.{table.group.__name__}.{option.name}", option


def commands(command, path="sslkit"):
    """Every command and group below `command`, with the words that call it."""
    yield path, command
    if hasattr(command, "list_commands"):
        context = typer.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), f"{path} {name}")


OPTIONS = dict(options())
COMMANDS = dict(commands(get_command(app)))


def test_each_option_has_a_description():
    bare = [name for name, option in OPTIONS.items() if not option.description]
    assert not bare, "give these a description: Annotated[…, Field(description=…)]"


def test_descriptions_are_short_sentences_in_plain_words():
    for name, option in OPTIONS.items():
        text = option.description
        assert re.match(r"[A-ZλτΣ]", text) and text.endswith("."), f"{name}: {text}"
        assert len(text) <= 250, f"{name}: {text}"
        dialect = re.search(rf"\b({DIALECT})\b", text)
        assert dialect is None or "drawn anew" in text, f"{name}: {text}"


def test_each_command_and_parameter_has_help():
    for path, command in COMMANDS.items():
        assert command.help, path
        for parameter in command.params:
            text = getattr(parameter, "help", None)
            assert text, f"{path}: {parameter.name}"
            assert not re.search(rf"\b({DIALECT})\b", text), f"{path}: {text}"


def shown(*arguments):
    """What a command prints, in one line."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    return " ".join(done.stdout.split())


def test_descriptions_reach_show_schema_and_help():
    patch = OPTIONS["transforms/jigsaw.patch"].description
    assert "px" in patch
    assert patch in shown("plugins", "show", "jigsaw", "--kind", "transforms")
    transforms = json_schema()["properties"]["transform"]["oneOf"]
    jigsaw = next(schema for schema in transforms if schema["title"] == "jigsaw")
    assert jigsaw["properties"]["patch"]["description"] == patch
    epochs = OPTIONS["train.epochs"].description
    assert json_schema()["properties"]["train"]["properties"]["epochs"]["description"] == epochs
    assert OPTIONS["evaluations/knn.k"].description in shown("eval", "knn", "--help")


def test_options_of_optimizers_are_described_too():
    """Ours for what many have, else those of the docstring; a few have neither."""
    for name in ("sgd", "adamw", "lars", "rmsprop", "adagrad", "lamb"):
        signature = optimizers.signature(name)
        for option in signature.options.values():
            assert option.description.endswith("."), f"{name}.{option.name}"
    assert "trust ratio clipping" in shown("plugins", "show", "lamb")
