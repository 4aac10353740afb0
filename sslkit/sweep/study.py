"""Opens the study of a search: Optuna's storage and sampler."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from sslkit.errors import CheckpointError, SslkitError
from sslkit.recipe.words import sentence
from sslkit.sweep.plan import Plan, differences

if TYPE_CHECKING:
    import optuna

Sampler = Literal["tpe", "gp", "random"]
HEARTBEAT = 15
"""Interval of the heartbeats of a trial, s."""
GRACE = 60
"""Time without a heartbeat after which another process takes over a trial, s."""
TIMEOUT = 60
"""Time that SQLite waits for other processes, s."""
PLAN = "plan"
"""Attribute of a study with the plan."""


def check(url: str | None) -> None:
    """Raise SslkitError if Optuna is not installed, or no database answers at `url`."""
    try:
        import optuna  # noqa: F401
        import sqlalchemy
    except ImportError as error:
        raise SslkitError("--search needs Optuna: pip install 'sslkit[sweep]'") from error
    if url is None:
        return
    try:
        with sqlalchemy.create_engine(url).connect():
            pass
    except Exception as error:
        raise _unusable(url, error) from error


def _unusable(url: str, error: Exception) -> CheckpointError:
    lines = sentence(error).split(" (Background on this error")
    return CheckpointError(
        f"cannot use the database {_without_password(url)}: {lines[0]}; check --storage URL, and "
        "that its driver is installed"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Optuna's reports of trials and its warnings about experimental functions."""
    import optuna

    logging.getLogger("alembic").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def make_sampler(name: Sampler) -> "optuna.samplers.BaseSampler":
    """Return a sampler of Optuna. Each process draws other values."""
    import optuna

    kinds: dict[str, Any] = {
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
        "random": optuna.samplers.RandomSampler,
    }
    made: optuna.samplers.BaseSampler = kinds[name]()
    return made


def open_study(
    url: str,
    name: str,
    plan: Plan,
    again: "Callable[[optuna.Study, optuna.trial.FrozenTrial], None]",
) -> "optuna.Study":
    """Open a study, or create it. Larger values are better.

    `again` is called with each trial that another process left. Raises CheckpointError if the
    database cannot be opened, RecipeError if its study has another plan.
    """
    import optuna

    is_file = url.startswith("sqlite")
    try:
        storage = optuna.storages.RDBStorage(
            url,
            engine_kwargs={"connect_args": {"timeout": TIMEOUT}} if is_file else None,
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=again,
        )
        if is_file:
            _lock_before_reading(storage.engine)
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
    except Exception as error:
        raise _unusable(url, error) from error
    here = plan.shared()
    there = study.user_attrs.get(PLAN)
    if there is None:
        study.set_user_attr(PLAN, json.dumps(here))
    else:
        differences(json.loads(there), here, f"the study '{name}'")
    return study


def _lock_before_reading(engine: Any) -> None:
    """Make SQLite lock the file when a transaction begins.

    SQLite ignores SELECT … FOR UPDATE, so two processes would claim the same trial.
    """
    from sqlalchemy import event

    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    def begins(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begins)
    engine.dispose()


def _without_password(url: str) -> str:
    start, at, rest = url.rpartition("@")
    scheme, slashes, user = start.partition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}@{rest}" if at else url
