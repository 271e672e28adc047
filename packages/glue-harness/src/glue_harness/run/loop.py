"""The training loop: a configuration in, a result out.

One optimizer step is a window of `accumulate` micro-batches. Each micro-batch's mean loss is weighted by its
share of the window's rows, so that the gradient is that of the mean over the whole window, a short last batch
included. The order of the rows is a pure function of the seed and the epoch; with the random states in the
checkpoint, the step number is all that is needed to continue to the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor

from finetune_common.errors import ConfigurationError
from finetune_common.measure import SavedTensorMeter, Stopwatch, reset_peak_memory
from glue_harness.config.fields import RunConfig
from glue_harness.hardware import flushed_denormals
from glue_harness.run import checkpoint, snapshot
from glue_harness.run.assembly import Run, create, tell
from glue_harness.run.evaluation import Evaluation, History, evaluate
from glue_harness.run.fit import check_positions
from glue_harness.run.methods import build_methods
from glue_harness.run.models import load_tokenizer
from glue_harness.run.plan import Data, Plan
from glue_harness.run.processes import Processes, join
from glue_harness.run.progress import Progress
from glue_harness.run.records import RunFolder
from glue_harness.run.result import result_of
from glue_harness.run.sharding import shard
from glue_harness.run.stopping import Stopped, StopRequest, stop_on_signals
from glue_harness.run.tracking import check_tracker, numbers, tracked
from glue_harness.run.trained import leave

__all__ = ["Training", "run"]

PARTS = ("data", "forward", "backward", "gradient", "optimizer", "evaluation")


class Training:
    """A run and everything that trains it.

    Args:
        run: The run, its model on the CPU.
        data: Its rows, tokenised.
        processes: Who trains it.
        folder: Where its files go.
        progress: Where it says how far it is.
        on_evaluation: Called after each evaluation, once a checkpoint that is due is written.
        stop: Whether it was asked to stop.
    """

    def __init__(
        self,
        run: Run,
        data: Data,
        processes: Processes,
        folder: RunFolder,
        progress: Progress,
        on_evaluation: Callable[[Training], None] | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.run, self.data, self.processes = run, data, processes
        self.config, self.methods, self.model = run.config, run.methods, run.model
        self.folder, self.progress, self.on_evaluation = folder, progress, on_evaluation
        self.stop = stop or StopRequest()
        self.task = data.task
        self.step = self.examples = 0
        self.saved_bytes: int | None = None
        self.evaluation: Evaluation | None = None
        self.history = History(self.task.primary)
        self.watch = Stopwatch(PARTS, processes.device)
        with processes.together():
            self._prepare()
        self.scaled = processes.scaled(self.optimizer)
        self.forward = processes.replicate(self.model, some_unused=True)
        self.parts = list(run.parts.values())
        self.scheduler = self.plan.schedule(self.optimizer)

    def _prepare(self) -> None:
        """Put the model where it trains, and attach to it what acts while it does."""
        processes, config = self.processes, self.config
        check_positions(self.model, max(int(lengths.max()) for lengths in self.data.lengths.values()))
        if processes.sharded:
            shard(self.model, processes.device.type, processes.world)
        self.model.to(processes.device).train()
        newest = checkpoint.latest(self.folder.checkpoints)
        began_with = processes.world if newest is None else checkpoint.processes_of(newest)
        self.plan = Plan(config, self.data.lengths["train"], began_with)
        self.run.prepare(config.accumulate * self.plan.shares(processes.world), self.watch.switch)
        assert self.run.optimizer is not None
        self.optimizer = self.run.optimizer
        if processes.rank:
            set_seed(processes.seed(config.seed))  # replicas drop out different units

    def train(self) -> None:
        """Train to the end, logging, evaluating and saving on the way.

        Raises:
            Stopped: The run was asked to stop; what it did is saved.
        """
        self._stop_if_asked()
        while self.step < self.plan.total and not self.stopped_early:
            for rows, batches in self._rest_of_epoch():
                rate = float(self.scheduler.get_last_lr()[0])
                loss, observed = self._train_step(rows, batches)
                self._after_step(loss, rate, observed)
                self._stop_if_asked()
                if self.stopped_early:
                    break
        if self.config.load_best and snapshot.return_to_best(self):
            self.evaluation = self._evaluate()
        if self.evaluation is None:
            self.evaluation = self._evaluate()

    def _train_step(self, rows: int, batches: list[tuple[int, Any]]) -> tuple[Tensor, dict[str, Any]]:
        """Make one optimizer step; returns this process's part of the mean loss, and what the parts tell."""
        watch, processes = self.watch, self.processes
        total = torch.zeros((), device=processes.device)
        for number, (own, batch) in enumerate(batches, start=1):
            loss_fn = partial(self._loss, self.forward, batch, processes.world * own / rows)
            with processes.alone(self.forward, last=number == len(batches)):
                watch.switch("forward")
                loss = self._forward(loss_fn)
                watch.switch("backward")
                processes.accelerator.backward(loss)
            total += loss.detach()
        own, batch = batches[-1]
        self.step += 1
        self.examples += rows
        self._tell_after_backward(partial(self._loss, self.model, batch, processes.world * own / rows))
        watch.switch("gradient")
        if self.config.max_grad_norm:
            processes.clip(self.model.parameters(), self.config.max_grad_norm)
        watch.switch("optimizer")
        self.scaled.step()
        if not processes.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        watch.switch(None)
        observed = {
            key: value for told in tell(self.parts, "on_step", self.step) for key, value in told.items()
        }
        self.scaled.zero_grad()
        return total, observed

    @staticmethod
    def _loss(model: torch.nn.Module, batch: dict[str, Tensor], weight: float) -> Tensor:
        return model(**batch).loss * weight

    def _forward(self, loss_fn: Callable[[], Tensor]) -> Tensor:
        """Run a forward pass; the first one of a run is measured."""
        if self.saved_bytes is not None:
            with self.methods.activation.around_forward(self.model):
                return loss_fn()
        with SavedTensorMeter(self.model) as meter, self.methods.activation.around_forward(self.model):
            loss = loss_fn()
        self.saved_bytes = self.methods.activation.stats().get("stored_bytes", meter.bytes)
        return loss

    def _tell_after_backward(self, loss_fn: Callable[[], Tensor]) -> None:
        """Let the parts act on the gradients; what they draw at random leaves the run's dropout alone."""
        acting = [part for part in self.parts if hasattr(part, "after_backward")]
        if acting:
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                tell(acting, "after_backward", self.step, loss_fn)

    def _after_step(self, loss: Tensor, rate: float, observed: Mapping[str, Any]) -> None:
        """Log, evaluate and save where it is time to."""
        config, step, last = self.config, self.step, self.step == self.plan.total
        speaks = any(hasattr(part, "on_step") for part in self.parts)
        if last or step % config.log_every == 0 or (speaks and self.processes.from_leader(bool(observed))):
            self._log(loss, rate, observed)
        self.progress.advance(step, self.examples)
        evaluated = last or self._due(config.eval_every)
        if evaluated:
            self._note_evaluation()
        if last or self.stopped_early or self._due(config.save_every):
            snapshot.save(self)
        if evaluated and self.on_evaluation is not None:
            self.on_evaluation(self)

    def _due(self, every: int | None) -> bool:
        return self.step % every == 0 if every else self.plan.ends_epoch(self.step)

    def _note_evaluation(self) -> None:
        self.evaluation = self._evaluate()
        self.history.add(self.step, self.step / self.plan.per_epoch, self.evaluation.metrics)
        self.progress.evaluated(self.history.last)
        told = {f"validation/{name}": value for name, value in self.evaluation.metrics.items()}
        self.processes.accelerator.log(told, self.step)
        if self.config.load_best and self.history.best is self.history.last:
            snapshot.keep_best(self)

    def _evaluate(self) -> Evaluation:
        self.watch.switch("evaluation")
        evaluation = evaluate(self.model, self.data, self.config.batch_size, self.processes)
        self.watch.switch(None)
        return evaluation

    def _log(self, loss: Tensor, rate: float, observed: Mapping[str, Any]) -> None:
        value = self.processes.mean(loss)
        if not math.isfinite(value):
            raise ConfigurationError(
                f"the loss is {value} at step {self.step}: lower --optimizer.lr, or use --precision fp32"
            )
        self.progress.logged(value, rate)
        values = {"loss": value, "learning_rate": rate, **observed}
        self.processes.accelerator.log(numbers(values), self.step)
        if self.processes.leads:
            self.folder.log({"step": self.step, **values})

    def _rest_of_epoch(self) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
        """Yield what each step that is left of an epoch trains on (`Plan.batches`)."""
        self.watch.switch("data")
        for window in self.plan.batches(self.step, self.data, self.processes, self.config.num_workers):
            yield window
            self.watch.switch("data")
        self.watch.switch(None)

    @property
    def stopped_early(self) -> bool:
        """Whether as many evaluations in a row brought no improvement as the run is to bear."""
        patience = self.config.early_stopping
        return patience is not None and self.history.stale(self.config.early_stopping_delta) >= patience

    def _stop_if_asked(self) -> None:
        """End at this step, saved, where a signal asked for it on any process."""
        ends = self.step == self.plan.total or self.stopped_early
        if ends or not (number := self.processes.highest(self.stop.number)):
            return
        newest = checkpoint.latest(self.folder.checkpoints)
        saved = newest is not None and newest.name == checkpoint.name_of(self.step)
        if self.step and not self.processes.from_leader(saved):
            snapshot.save(self)
        raise Stopped(number, self.step)

    def result(self) -> dict[str, Any]:
        """Return what `result.json` holds."""
        return result_of(self)


def run(
    config: RunConfig,
    on_evaluation: Callable[[Training], None] | None = None,
    start_from: Path | None = None,
) -> dict[str, Any]:
    """Train a model on a task, or continue where an interrupted run stopped.

    Args:
        config: The run; its `output_dir` receives the files.
        on_evaluation: Called after each evaluation, once a checkpoint that is due is written.
        start_from: Folder of another run, from whose newest checkpoint a run that has none of its own
            goes on (`snapshot.continue_from`).

    Returns:
        What `result.json` holds; a finished run is not repeated.

    Raises:
        ConfigurationError: One line that says what cannot be used, and the remedy.
        Stopped: A signal asked for it; what was done is saved.
    """
    check_tracker(config)
    processes = join(config)
    reset_peak_memory(processes.device)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        with processes.together():
            folder = stack.enter_context(RunFolder(config, processes.leads))
            finished = folder.result() if folder.leads else None
        if finished := processes.from_leader(finished):
            return finished
        with processes.together():
            methods = build_methods(config)
            if processes.sharded:
                methods.check_sharded()
            tokenizer = load_tokenizer(config.model)
        data = processes.by_turns(lambda: Data.load(config, tokenizer))
        stack.enter_context(flushed_denormals())
        stack.enter_context(processes.or_lost())
        with Progress(config, folder.leads) as progress:
            with processes.together():
                made = create(config, methods=methods, task=data.task, tokenizer=tokenizer)
            training = Training(made, data, processes, folder, progress, on_evaluation, stop)
            snapshot.restore(training)
            if start_from is not None and not training.step:
                snapshot.continue_from(training, start_from)
            stack.enter_context(tracked(processes.accelerator, config, training.step))
            progress.start(training.step, training.plan.total, training.examples)
            training.train()
        with processes.together():
            return leave(training)
