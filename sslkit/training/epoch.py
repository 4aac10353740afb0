"""Provides a method with passes over the images and the next step's batches before an epoch."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor, nn

from sslkit.interfaces import Batch, Epoch, Progress
from sslkit.runs.run import Run
from sslkit.training import streams


class TrainingEpoch(Epoch):
    """The epoch of a training run.

    `ahead` returns the micro-batches of the next step. `passing` is called with the number of
    images that a pass has yielded on all ranks.
    """

    def __init__(
        self,
        run: Run,
        progress: Progress,
        ahead: Callable[[], list[Batch]],
        passing: Callable[[int], None],
    ) -> None:
        self.run, self.progress, self.ahead, self.passing = run, progress, ahead, passing
        self.micro_batches = run.loader.micro_batches

    def views(self) -> Iterator[Batch]:
        """Yield every image once with augmented views."""
        run, first = self.run, self.progress.epoch * self.run.loader.steps_of_pass
        for number, batch in enumerate(run.loader.full_pass(self.progress.epoch)):
            run.note_unreadable(batch)
            step, micro_batch = divmod(number, self.micro_batches)
            draws = streams.draws(run, streams.FULL_PASS, first + step, micro_batch)
            yield run.transform.on_device(batch.to(run.device), draws)
            self._passed(number + 1)

    def plain(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, un-augmented and normalised."""
        run = self.run
        for number, (images, index) in enumerate(run.loader.plain_pass(run.transform.size)):
            yield run.transform.plain(images.to(run.device)), index.to(run.device)
            self._passed(number + 1)

    def _passed(self, batches: int) -> None:
        loader = self.run.loader
        images = batches * loader.batch_size * loader.world
        self.passing(min(images, len(self.run.source)))

    def next_step(self) -> Iterator[tuple[Batch, Progress]]:
        """Yield the micro-batches of the next step, with the draws of that step."""
        run, step = self.run, self.progress.step
        before = [value.clone() for value in run.statistics()]
        try:
            for micro_batch, batch in enumerate(self.ahead()):
                draws = streams.draws(run, streams.VIEWS, step, micro_batch)
                views = run.transform.on_device(batch.to(run.device), draws)
                draws = streams.draws(run, streams.METHOD, step, micro_batch)
                yield views, replace(self.progress, draws=draws)
        finally:
            run.restore_statistics(before)

    def forget(self, *modules: nn.Module) -> None:
        """Drop the optimizer state of these modules."""
        for module in modules:
            for parameter in module.parameters():
                self.run.optimizer.state.pop(parameter, None)
