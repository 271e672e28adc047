"""The training loop: a configuration in, a result out.

One optimizer step is a window of `accumulate` micro-batches. Each micro-batch's mean loss is weighted by its
share of the window's rows, so that the gradient is that of the mean over the whole window, even if the last
batch is short. The order of the rows is a pure function of the seed and the epoch; so the step number and the
random states in the checkpoint suffice to continue to the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from accelerate.utils import set_seed
from torch import Tensor

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError
from finetune_common.measure import SavedTensorMeter, Stopwatch
from glue_harness.run import checkpoint, snapshot
from glue_harness.run.assembly import Run, tell
from glue_harness.run.evaluation import (
    Evaluation,
    Evaluations,
    History,
    evaluate,
    evaluate_beside,
    evaluate_test,
)
from glue_harness.run.fit import check_longest, check_positions
from glue_harness.run.mixture import Mixture
from glue_harness.run.observing import observed
from glue_harness.run.plan import Data, MicroBatch, Plan
from glue_harness.run.processes import Processes
from glue_harness.run.progress import Progress
from glue_harness.run.records import RunFolder
from glue_harness.run.result import result_of
from glue_harness.run.sharding import shard
from glue_harness.run.tracking import numbers
from glue_harness.stopping import StopFile, Stopped, StopRequest

__all__ = ["Training"]

PARTS = ("data", "forward", "backward", "gradient", "optimizer", "evaluation")


class Training:
    """A run and all objects that train it.

    Args:
        run: The run, its model on the CPU.
        data: Its rows, tokenised.
        processes: The processes that train it.
        folder: The folder for its files.
        progress: Shows its progress.
        on_evaluation: Called after each evaluation, when a due checkpoint is written.
        stop: Knows whether the run was asked to stop.
    """

    def __init__(
        self,
        run: Run,
        data: Data | Mixture,
        processes: Processes,
        folder: RunFolder,
        progress: Progress,
        on_evaluation: Callable[[Training], None] | None = None,
        stop: StopRequest | StopFile | None = None,
    ) -> None:
        self.run, self.data, self.processes = run, data, processes
        self.config, self.methods, self.model = run.config, run.methods, run.model
        self.folder, self.progress, self.on_evaluation = folder, progress, on_evaluation
        self.stop = stop or StopRequest()
        self.task = data.task
        self.step = self.examples = self.saved = 0
        self.saved_bytes: int | None = None
        self.evaluation: Evaluation | Evaluations | None = None
        self.tested: dict[str, float] | None = None
        self.beside: dict[str, dict[str, float]] = {}
        self.history = History(self.task.primary)
        self.watch = Stopwatch(PARTS, processes.device)
        self.newest = snapshot.find(processes, folder)
        with processes.fail_together():
            self._place()
        has_unused = processes.world > 1 and not processes.sharded and self._has_unused_parameters()
        with processes.fail_together():
            self._attach()
        self.scaled = processes.scaled(self.optimizer)
        if self.config.compile:
            self.methods.compile(self.model)
        self.forward = processes.replicate(self.model, has_unused)
        self.parts = list(run.parts.values())
        self.scheduler = self.plan.schedule(self.optimizer)

    def _place(self) -> None:
        """Move the model to its device, and plan its steps."""
        processes, config = self.processes, self.config
        check_positions(self.model, max(int(lengths.max()) for lengths in self.data.lengths.values()))
        parts = self.data.parts.values() if isinstance(self.data, Mixture) else [self.data]
        check_longest(config.model, self.model, parts)
        if processes.sharded:
            shard(self.model, processes.device.type, processes.world)
        self.model.to(processes.device).train()
        began_with = processes.world if self.newest is None else checkpoint.processes_of(self.newest)
        self.plan = Plan(config, self.data.training_lengths, began_with)

    def _attach(self) -> None:
        """Attach the methods that act during training to the model."""
        processes, config = self.processes, self.config
        self.run.prepare(config.accumulate * self.plan.parts_per_process(processes.world), self.watch.switch)
        assert self.run.optimizer is not None
        self.optimizer = self.run.optimizer
        if processes.rank:
            set_seed(processes.seed(config.seed))  # replicas must drop different units

    def _has_unused_parameters(self) -> bool:
        """Say whether a trained parameter may get no gradient: then DDP must search for it after each pass.

        That is so with several heads, with an adaptation that may change what trains within a step, or if a
        pass over one row leaves a parameter without gradient.
        """
        if self.config.several or any(
            hasattr(self.methods.adaptation, act) for act in ("before_forward", "after_backward", "on_step")
        ):
            return True
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        [batch] = self.data.loader("train", [[0]])
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            loss = self._loss(self.model, MicroBatch(1, 1, self.processes.on_device(batch)), 1)
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        return any(self.processes.gather(any(gradient is None for gradient in gradients)))

    def train(self) -> None:
        """Train to the end, logging, evaluating and saving on the way.

        Raises:
            Stopped: The run was asked to stop; its state is saved.
        """
        self._stop_if_asked()
        if self.step and self.step == self.saved and self._evaluates() and not self.history.has(self.step):
            self._close_step()  # the run was stopped during this step's evaluation
        while not self.ended:
            for rows, batches in self._rest_of_epoch():
                rate = float(self.scheduler.get_last_lr()[0])
                loss, reported = self._train_step(rows, batches)
                self._after_step(loss, rate, reported)
                if self.ended:
                    break
                self._stop_if_asked()
        if self.config.load_best and snapshot.return_to_best(self):
            self.evaluation = self._evaluate()
        if self.evaluation is None:
            self.evaluation = self._evaluate()
        size = self.config.batch_size
        self.tested = evaluate_test(self.model, self.data, size, self.processes)
        self.beside = evaluate_beside(self.model, self.data, size, self.processes)

    def _train_step(self, rows: int, batches: list[MicroBatch]) -> tuple[Tensor, JsonObject]:
        """Make one optimizer step; return this process's part of the mean loss, and the parts' values."""
        watch, processes = self.watch, self.processes
        total = torch.zeros((), device=processes.device)
        tell(self.parts, "before_forward", self.step + 1)
        for batch in batches:
            loss_fn = partial(self._loss, self.forward, batch, rows)
            with processes.exchange_if(self.forward, last=batch is batches[-1]):
                watch.switch("forward")
                loss = self._forward(loss_fn)
                watch.switch("backward")
                processes.accelerator.backward(loss)
            total += loss.detach()
        self.step += 1
        self.examples += rows
        last = next(batch for batch in reversed(batches) if batch.of)  # the last with rows on any process
        self._tell_after_backward(partial(self._loss, self.model, last, last.of))
        watch.switch("gradient")
        if self.config.max_grad_norm:
            processes.clip(self.model.parameters(), self.config.max_grad_norm)
        watch.switch("optimizer")
        self.scaled.step()
        if not processes.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        watch.switch(None)
        reported = observed(self.run.parts, self.step)
        self.scaled.zero_grad()
        return total, reported

    def _loss(self, model: torch.nn.Module, batch: MicroBatch, rows: int) -> Tensor:
        """Return a loss whose mean over the processes weights all rows equally."""
        return model(**batch.tensors).loss * (self.processes.world * batch.rows / rows)

    def _forward(self, loss_fn: Callable[[], Tensor]) -> Tensor:
        """Run a forward pass; measure the first one of a run."""
        if self.saved_bytes is not None:
            with self.methods.activation.around_forward(self.model):
                return loss_fn()
        with SavedTensorMeter(self.model) as meter, self.methods.activation.around_forward(self.model):
            loss = loss_fn()
        self.saved_bytes = cast("int", self.methods.activation.stats().get("stored_bytes", meter.bytes))
        return loss

    def _tell_after_backward(self, loss_fn: Callable[[], Tensor]) -> None:
        """Let the parts act on the gradients; their random draws do not affect the run's dropout."""
        acting = [part for part in self.parts if hasattr(part, "after_backward")]
        if acting:
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                tell(acting, "after_backward", self.step, loss_fn)

    def _after_step(self, loss: Tensor, rate: float, reported: JsonObject) -> None:
        """Log, evaluate and save if they are due."""
        config, step, last = self.config, self.step, self.step == self.plan.total
        reports = any(hasattr(part, "on_step") for part in self.parts)
        if last or step % config.log_every == 0 or (reports and self.processes.from_leader(bool(reported))):
            self._log(loss, rate, reported)
        self.progress.advance(step, self.examples)
        self._close_step()

    def _close_step(self) -> None:
        if evaluates := self._evaluates():
            self._note_evaluation()
        if self.ended or self._due(self.config.save_every):
            snapshot.save(self)
        if evaluates and self.on_evaluation is not None:
            self.on_evaluation(self)

    def _evaluates(self) -> bool:
        return self.step == self.plan.total or self._due(self.config.eval_every)

    def _due(self, every: int | None) -> bool:
        return self.step % every == 0 if every else self.plan.ends_epoch(self.step)

    def _note_evaluation(self) -> None:
        self.evaluation = self._evaluate()
        self.history.add(self.step, self.step / self.plan.per_epoch, self.evaluation.metrics)
        self.progress.evaluated(self.history.last)
        metrics = {f"validation/{name}": value for name, value in self.evaluation.metrics.items()}
        self.processes.accelerator.log(metrics, self.step)
        if self.config.load_best and self.history.best is self.history.last:
            snapshot.keep_best(self)

    def _evaluate(self) -> Evaluation | Evaluations:
        self.watch.switch("evaluation")
        size = self.config.batch_size
        evaluation = evaluate(
            self.model, self.data, size, self.processes, self._stop_if_asked, self.config.metric_batch
        )
        self.watch.switch(None)
        return evaluation

    def _log(self, loss: Tensor, rate: float, reported: JsonObject) -> None:
        value = self.processes.mean(loss)
        if not math.isfinite(value):
            raise ConfigurationError(
                f"the loss is {value} at step {self.step}: lower --optimizer.lr, or use --precision fp32"
            )
        self.progress.logged(value, rate)
        values = {"loss": value, "learning_rate": rate, **reported}
        self.processes.accelerator.log(numbers(values), self.step)
        if self.processes.leads:
            self.folder.log({"step": self.step, **values})

    def _rest_of_epoch(self) -> Iterator[tuple[int, list[MicroBatch]]]:
        """Yield the batches of each remaining step of an epoch (`Plan.batches`)."""
        self.watch.switch("data")
        for window in self.plan.batches(self.step, self.data, self.processes, self.config.num_workers):
            yield window
            self.watch.switch("data")
        self.watch.switch(None)

    @property
    def stopped_early(self) -> bool:
        """Whether as many evaluations as the run's patience brought no improvement."""
        patience = self.config.early_stopping
        return patience is not None and self.history.stale(self.config.early_stopping_delta) >= patience

    @property
    def ended(self) -> bool:
        """Whether no step remains."""
        return self.step >= self.plan.total or self.stopped_early

    def _stop_if_asked(self) -> None:
        """Save and end at this step if any process was asked to stop."""
        if number := self.processes.highest(self.stop.number):
            if self.step != self.saved:
                snapshot.save(self)
            raise Stopped(number, self.step)

    def result(self) -> JsonObject:
        """Return the content of `result.json`."""
        return result_of(self)
