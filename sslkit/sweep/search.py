"""Runs the trials of a search, shared with all processes that use its database."""

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING, Any

from sslkit.errors import SslkitError, counted
from sslkit.report import search_report
from sslkit.report.pivot import Metric, Pivot
from sslkit.runs import files
from sslkit.sweep import cell as cells
from sslkit.sweep.axis import Range, text_of, value_of
from sslkit.sweep.cell import Cell
from sslkit.sweep.grid import WAIT, duration
from sslkit.sweep.home import OPTION, Home
from sslkit.sweep.plan import Plan
from sslkit.sweep.runner import Failed, Interrupted, Runner
from sslkit.sweep.slot import Slot, work_at
from sslkit.sweep.study import Sampler, make_sampler, open_study
from sslkit.sweep.table import CANDIDATES, scores_of

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

FIRST = "first"
"""Attribute of a trial: number of the trial that it repeats, or its own number."""
CLAIMED = "claimed"
"""Attribute of a trial that has claimed its folder."""
SCORES = "scores"
METRIC = "metric"


class Search:
    """The state of a search in this process.

    A trial trains one recipe with all training seeds. Its score is the median of the headline of
    the first evaluation, with the sign that makes larger values better. `url` None is a file in
    the folder of the sweep. Raises the errors of `open_study`.
    """

    def __init__(
        self,
        home: Home,
        plan: Plan,
        slots: Sequence[Slot],
        say: Callable[[str], None],
        *,
        trials: int,
        sampler: Sampler = "tpe",
        url: str | None = None,
    ) -> None:
        self.home, self.plan, self.slots, self.say = home, plan, slots, say
        self.trials, self.sampler = trials, sampler
        self.has_folder = url is None
        """True if all processes of the search have the folder in common."""
        self.url = url or f"sqlite:///{home.folder / 'trials.db'}"
        self.runner = Runner(home)
        self.failed: dict[str, str] = {}
        """Trials that failed in this process, with the reason."""
        self.seconds: list[float] = []
        """Times of the trials that this process finished."""
        self._told: set[str] = set()
        with home.locked():
            self.study = open_study(self.url, home.folder.name, plan, self._stale)
            self._repeat_failed()

    # ------------------------------------------------------------------------ trials of the study

    def finished(self) -> "list[FrozenTrial]":
        """Return the finished trials, best first."""
        from optuna.trial import TrialState

        found = self.study.get_trials(states=(TrialState.COMPLETE,))
        return sorted(found, key=lambda trial: -(trial.value or 0.0))

    def _repeat(self, study: "optuna.Study", trial: "FrozenTrial") -> None:
        """Queue the values of a trial again. It continues in the same folders."""
        if trial.params:
            study.enqueue_trial(trial.params, user_attrs={FIRST: first(trial)})

    def _stale(self, study: "optuna.Study", trial: "FrozenTrial") -> None:
        self.say(f"{trial_name(first(trial))}: taken over from a process that ended")
        self._repeat(study, trial)

    def _repeat_failed(self) -> None:
        """Queue failed and stopped trials again, once each."""
        from optuna.trial import TrialState

        trials = self.study.get_trials()
        kept = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
        alive = {first(trial) for trial in trials if trial.state in kept}
        for trial in trials:
            if trial.state == TrialState.FAIL and first(trial) not in alive:
                alive.add(first(trial))
                self._repeat(self.study, trial)

    def _take_over(self) -> None:
        """Queue running trials again whose folder no process has claimed."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if not trial.user_attrs.get(CLAIMED):
                continue
            with ExitStack() as stack:
                if self.home.claim(trial_name(first(trial)), stack):
                    try:
                        self.study.tell(trial.number, state=TrialState.FAIL)
                    except ValueError:
                        continue  # It ended between the two looks.
                    self._stale(self.study, trial)

    # -------------------------------------------------------------------------------- the loop

    def run(self, stopped: Callable[[], bool]) -> None:
        """Run trials until all are finished or failed, or `stopped()`."""
        done = len(self.finished())
        if done:
            self.say(f"{done} of {counted(self.trials, 'trial')} finished already")
        work_at(self.slots, self._work, stopped, self.runner.stop)

    def _work(self, slot: Slot) -> None:
        """Run trials at a slot until none is left."""
        import optuna

        study = optuna.load_study(
            study_name=self.study.study_name,
            storage=self.study._storage,
            sampler=make_sampler(self.sampler),
        )
        while not self.runner.stop.is_set():
            if self.has_folder:
                self._take_over()
            if self._has_next(study):
                catch = (Failed, Interrupted)
                study.optimize(lambda trial: self._score(trial, slot), n_trials=1, catch=catch)
                continue
            optuna.storages.fail_stale_trials(study)
            if not self._others(study):
                return
            self.runner.stop.wait(WAIT)

    def _has_next(self, study: "optuna.Study") -> bool:
        """Tell whether a trial waits, or fewer than `trials` were sampled."""
        from optuna.trial import TrialState

        trials = study.get_trials()
        if any(trial.state == TrialState.WAITING for trial in trials):
            return True
        return len(_numbers(trials)) < self.trials

    def _others(self, study: "optuna.Study") -> bool:
        """Tell whether trials run; says once which of other processes."""
        from optuna.trial import TrialState

        running = study.get_trials(states=(TrialState.RUNNING,))
        names = ", ".join(sorted(trial_name(first(trial)) for trial in running))
        if running and names not in self._told:
            self._told.add(names)
            self.say(f"waiting for {names}")
        return bool(running)

    # --------------------------------------------------------------------------------- a trial

    def _score(self, trial: "optuna.Trial", slot: Slot) -> float:
        """Run a trial and return its score."""
        import optuna

        if FIRST not in trial.user_attrs:
            earlier = [one for one in trial.study.get_trials() if one.number < trial.number]
            if len(_numbers(earlier)) >= self.trials:
                raise optuna.TrialPruned("another process sampled the last trial")
            trial.set_user_attr(FIRST, trial.number)
        number = trial.user_attrs[FIRST]
        name = trial_name(number)
        with ExitStack() as stack:
            while not self.home.claim(name, stack):
                if self.runner.stop.wait(WAIT):
                    raise Interrupted
            trial.set_user_attr(CLAIMED, True)
            values = {axis.key: text_of(_suggested(trial, axis)) for axis in self.plan.axes}
            shown = " ".join(f"{key}={text}" for key, text in values.items())
            place = f"[{number + 1}/{self.trials}] {shown}"
            self.say(f"{place}: {name} starts on {slot.name}")
            began = time.monotonic()
            try:
                score, metric = self._measure(trial, name, values, slot)
            except Interrupted:
                self.say(f"{place}: stopped")
                raise
            except Failed as error:
                self.failed[name] = str(error)
                self.say(f"{place}: failed: {error}")
                raise
            self.seconds.append(time.monotonic() - began)
            words = f"{metric.name} {metric.text(score)} {metric.unit}".rstrip()
            self.say(f"{place}: {words}; {duration(self.seconds[-1])}{self._left(trial)}")
            return -score if metric.better == "lower" else score

    def _left(self, trial: "optuna.Trial") -> str:
        """Describe the remaining time."""
        left = self.trials - len(self.finished()) - 1
        mean = sum(self.seconds) / len(self.seconds)
        return f"; about {duration(left * mean / len(self.slots))} left" if left > 0 else ""

    def _measure(
        self, trial: "optuna.Trial", name: str, values: dict[str, str], slot: Slot
    ) -> tuple[float, Metric]:
        """Train and evaluate all seeds of a trial; return the median score and its metric."""
        found: dict[str, list[float]] = {candidate: [] for candidate in CANDIDATES}
        (recipe_name,) = self.plan.recipes
        try:
            recipe = self.plan.recipe(recipe_name, values)
        except SslkitError as error:
            raise Failed(str(error)) from error
        metric = None
        for seed in range(self.plan.seeds):
            made = cells.make(recipe_name, values, seed, recipe)
            run = Cell(f"{name},seed={seed}", recipe_name, values, seed, made.recipe)
            self.runner.run(run, slot)
            result = self.home.result(run, self.home.evaluations[0])
            assert result is not None, "the runner checks this"
            pivot = Pivot(result)
            metric = pivot.metrics[0]
            for candidate in CANDIDATES:
                value = scores_of(pivot, candidate).get(metric.name)
                found[candidate] += [] if value is None else [value]
        assert metric is not None, "there is at least one seed"
        if metric.better == "neither":
            raise Failed(f"{metric.name} has no better direction; search with another evaluation")
        trained = found[CANDIDATES[0]]
        if len(trained) < self.plan.seeds:
            raise Failed(f"{metric.name} is not a finite number")
        trial.set_user_attr(SCORES, found)
        trial.set_user_attr(METRIC, pivot.result["metrics"][0])
        return median(trained), metric


def first(trial: "FrozenTrial") -> int:
    """Return the number of the trial that a trial repeats, else its own."""
    return int(trial.user_attrs.get(FIRST, trial.number))


def trial_name(number: int) -> str:
    """Return the first part of the names of a trial's run folders."""
    return f"trial-{number:04}"


def _numbers(trials: "Iterable[FrozenTrial]") -> set[int]:
    """Return the numbers of the sampled combinations; repeated trials count once."""
    from optuna.trial import TrialState

    return {first(trial) for trial in trials if trial.state != TrialState.PRUNED}


def _suggested(trial: "optuna.Trial", axis: Any) -> Any:
    """Return the value of an axis in a trial; texts of lists stay texts."""
    if not isinstance(axis, Range):
        return value_of(trial.suggest_categorical(axis.key, list(axis.values)))
    if axis.whole:
        return trial.suggest_int(axis.key, int(axis.low), int(axis.high), log=axis.log)
    return trial.suggest_float(axis.key, axis.low, axis.high, log=axis.log)


def table(search: Search) -> dict[str, Any] | None:
    """Return the finished trials as plain data, best first; None without one."""
    trials = search.finished()
    if not trials:
        return None
    rows = []
    for trial in trials:
        scores = trial.user_attrs[SCORES]
        values = {axis.key: trial.params.get(axis.key) for axis in search.plan.axes}
        trained, untrained = (scores[candidate] for candidate in CANDIDATES)
        rows.append(
            {
                "trial": trial_name(first(trial)),
                "values": values,
                "score": median(trained),
                "seeds": trained,
                "untrained": median(untrained) if untrained else None,
            }
        )
    return {
        "format": 1,
        "keys": [axis.key for axis in search.plan.axes],
        "log": [axis.key for axis in search.plan.axes if isinstance(axis, Range) and axis.log],
        "evaluation": search.home.evaluations[0],
        "metric": trials[0].user_attrs[METRIC],
        "trials": rows,
    }


def write(search: Search, found: dict[str, Any], title: str) -> None:
    """Write table.json, table.csv and sweep.png. Raises CheckpointError if this fails."""
    folder = search.home.folder
    text = json.dumps(found, indent=1, ensure_ascii=False)
    files.write_text(folder / "table.json", text, OPTION)
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\n")
    lines.writerow(["trial", *found["keys"], found["metric"]["name"], "untrained", "values"])
    for row in found["trials"]:
        each = " ".join(map(str, row["seeds"]))
        lines.writerow(
            [row["trial"], *row["values"].values(), row["score"], row["untrained"], each]
        )
    files.write_text(folder / "table.csv", written.getvalue(), OPTION)
    search_report.draw(found, folder / "sweep.png", title=title, option=OPTION)
