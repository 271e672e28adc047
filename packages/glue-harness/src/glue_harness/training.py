"""The training loop: a configuration in, a result out.

One optimizer step is a window of `accumulate` micro-batches. Each micro-batch's mean loss is weighted by
its share of the window's rows, so that the gradient is that of the mean over the whole window, a short last
batch included. The order of the rows is a pure function of the seed and the epoch; with the random states
in the checkpoint, the step number is all that is needed to continue to the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device, set_seed

from finetune_common.data import make_loader
from finetune_common.errors import ConfigurationError
from finetune_common.measure import SavedTensorMeter, Stopwatch, peak_memory_bytes, reset_peak_memory
from glue_harness import checkpoint
from glue_harness.config import RunConfig
from glue_harness.distributed import (
    by_turns,
    from_main,
    is_sharded,
    join,
    lost_processes,
    own_state,
    seed_of_process,
    shard,
    together,
    whole,
)
from glue_harness.evaluation import Evaluation, History, evaluate
from glue_harness.hardware import hardware, versions
from glue_harness.methods import Methods, build_methods, method_versions
from glue_harness.models import check_positions, load_model, load_tokenizer, parameter_groups
from glue_harness.plan import Data, Plan
from glue_harness.progress import Progress
from glue_harness.records import SCHEMA, RunFolder
from glue_harness.tracking import check_tracker, numbers, tracked

__all__ = ["run"]

PARTS = ("data", "forward", "backward", "gradient", "optimizer", "evaluation")


class Training:
    """A model and everything that trains it.

    Args:
        config: The run.
        methods: The methods of its slots.
        data: Its data, tokenised.
        tokenizer: The model's tokenizer.
        folder: Where its files go.
        progress: Where it says how far it is.
        on_evaluation: Called after each evaluation, once a checkpoint that is due is written.
        accelerator: The run's processes, where they were joined before.
    """

    def __init__(
        self,
        config: RunConfig,
        methods: Methods,
        data: Data,
        tokenizer: Any,
        folder: RunFolder,
        progress: Progress,
        on_evaluation: Callable[[Training], None] | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.config, self.methods, self.data = config, methods, data
        self.folder, self.progress, self.on_evaluation = folder, progress, on_evaluation
        self.task = data.task
        self.accelerator = accelerator or join(config)
        self.device, self.sharded = self.accelerator.device, is_sharded(config)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        with together(self.accelerator):
            self._build(tokenizer)
        self.prepared = self.accelerator.prepare_optimizer(self.optimizer)
        self.wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=self.sharded)
        self.scheduler = self._schedule()
        self.history = History(self.task.primary)
        self.evaluation: Evaluation | None = None
        self.step = 0
        self.examples = 0
        self.saved_bytes: int | None = None

    def _build(self, tokenizer: Any) -> None:
        """Make the model, the optimizer over its parameters, and attach the methods."""
        config, methods, data = self.config, self.methods, self.data
        set_seed(config.seed)
        model = load_model(
            config.model, self.task, tokenizer, methods.adaptation.load_kwargs(), config.model_config
        )
        check_positions(model, max(int(lengths.max()) for lengths in data.lengths.values()))
        self.model = methods.adaptation.apply(model)
        if self.sharded:
            shard(self.model, self.accelerator)
        self.model.to(self.device).train()
        newest = checkpoint.latest(self.folder.checkpoints)
        began_with = self.world if newest is None else checkpoint.processes_of(newest)
        self.plan = Plan(config, data.lengths["train"], began_with)
        groups = parameter_groups(self.model, config.weight_decay, config.head_lr, config.decay_all)
        self.optimizer = methods.optimizer.build(self.model, groups)
        self.watch = Stopwatch(PARTS, self.device)
        self._attach()
        if self.rank:
            set_seed(seed_of_process(config.seed, self.rank))  # replicas drop out different units

    def _attach(self) -> None:
        """Attach the gradient methods between two marks of the stopwatch, then the monitors."""
        self.optimizer.register_step_pre_hook(lambda *_: self.watch.switch("gradient"))
        accumulate = self.config.accumulate * self.plan.shares(self.world)
        self.gradients = [g.attach(self.optimizer, accumulate) for g in self.methods.gradient]
        self.optimizer.register_step_pre_hook(lambda *_: self.watch.switch("optimizer"))
        self.monitors = [m.attach(self.model, self.optimizer) for m in self.methods.monitor]

    def _schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        config, total = self.config, self.plan.total
        warmup = math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)
        name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        return transformers.get_scheduler(name, self.optimizer, warmup, total)

    def train(self) -> None:
        """Train to the end, logging, evaluating and saving on the way."""
        while self.step < self.plan.total and not self.stopped_early:
            for window, batches in self._rest_of_epoch():
                rate = float(self.scheduler.get_last_lr()[0])
                loss = self._train_step(window, batches)
                self.step += 1
                self._after_step(loss, rate)
                if self.stopped_early:
                    break
        if self.config.load_best:
            self._load_best()
        if self.evaluation is None:
            self.evaluation = self._evaluate()

    @property
    def stopped_early(self) -> bool:
        """Whether as many evaluations in a row brought no improvement as the run is to bear."""
        patience = self.config.early_stopping
        return patience is not None and self.history.stale(self.config.early_stopping_delta) >= patience

    def _load_best(self) -> None:
        """Go back to the weights of the best evaluation; the newest checkpoint receives them too."""
        folder, step = self.folder.checkpoints, self.history.best["step"]
        best = from_main(self.accelerator, checkpoint.best_weights(folder, step))
        if best is None:  # done before, by a run that ended before it could write its result
            return
        if step != self.step:
            checkpoint.load_weights(best, self.model, self.device)
            self.evaluation = self._evaluate()
        if self.accelerator.is_main_process:
            checkpoint.adopt(best)
        self.accelerator.wait_for_everyone()

    def _rest_of_epoch(self) -> Iterator[tuple[list[list[int]], list[tuple[int, Any]]]]:
        """Yield each window left of an epoch: its rows, and this process's micro-batches with their rows."""
        windows = self.plan.windows(self.step)
        mine = [
            [rows for batch in window for rows in self.plan.own(batch, self.rank, self.world)]
            for window in windows
        ]
        filled = [
            rows or window[0][:1] for window, own in zip(windows, mine, strict=True) for rows in own
        ]  # a process without rows takes part with a weight of 0
        self.watch.switch("data")
        loader = iter(
            make_loader(self.data.datasets["train"], filled, self.data.collator, self.config.num_workers)
        )
        for window, own in zip(windows, mine, strict=True):
            yield window, [(len(rows), send_to_device(next(loader), self.device)) for rows in own]
            self.watch.switch("data")
        self.watch.switch(None)

    def _train_step(self, window: list[list[int]], batches: list[tuple[int, Any]]) -> torch.Tensor:
        """Make one optimizer step; returns this process's part of the mean loss over the window's rows."""
        share = self.world / sum(map(len, window))
        total = torch.zeros((), device=self.device)
        for number, (rows, batch) in enumerate(batches, start=1):
            loss_fn = partial(self._loss, self.wrapped, batch, share * rows)
            with nullcontext() if number == len(batches) else self.accelerator.no_sync(self.wrapped):
                self.watch.switch("forward")
                loss = self._forward(loss_fn)
                self.watch.switch("backward")
                self.accelerator.backward(loss)
            total += loss.detach()
        rows, batch = batches[-1]
        self.methods.activation.after_backward(
            self.step + 1, partial(self._loss, self.model, batch, share * rows)
        )
        self.examples += sum(map(len, window))
        self.watch.switch("gradient")
        if self.config.max_grad_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.watch.switch("optimizer")
        self.prepared.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.watch.switch(None)
        return total

    @staticmethod
    def _loss(model: torch.nn.Module, batch: dict[str, torch.Tensor], weight: float) -> torch.Tensor:
        return model(**batch).loss * weight

    def _forward(self, loss_fn: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Run a forward pass; the first one of a run is measured."""
        if self.saved_bytes is not None:
            with self.methods.activation.around_forward(self.model):
                return loss_fn()
        with SavedTensorMeter(self.model) as meter, self.methods.activation.around_forward(self.model):
            loss = loss_fn()
        self.saved_bytes = self.methods.activation.stats().get("stored_bytes", meter.bytes)
        return loss

    def _after_step(self, loss: torch.Tensor, rate: float) -> None:
        config, step, last = self.config, self.step, self.step == self.plan.total
        observed = {key: value for monitor in self.monitors for key, value in monitor.on_step(step).items()}
        self.prepared.zero_grad()
        if (
            last
            or step % config.log_every == 0
            or (self.monitors and from_main(self.accelerator, bool(observed)))
        ):
            self._log(loss, rate, observed)
        self.progress.advance(step, self.examples)
        evaluated = last or (
            step % config.eval_every == 0 if config.eval_every else self.plan.ends_epoch(step)
        )
        if evaluated:
            self.evaluation = self._evaluate()
            self.history.add(step, step / self.plan.per_epoch, self.evaluation.metrics)
            self.progress.evaluated(self.history.last)
            self.accelerator.log(
                {f"validation/{name}": value for name, value in self.evaluation.metrics.items()}, step
            )
            if config.load_best and self.history.best is self.history.last:
                self._save_best()
        last = last or self.stopped_early
        if last or (step % config.save_every == 0 if config.save_every else self.plan.ends_epoch(step)):
            self._save()
        if evaluated and self.on_evaluation is not None:
            self.on_evaluation(self)

    def _evaluate(self) -> Evaluation:
        self.watch.switch("evaluation")
        evaluation = evaluate(
            self.model,
            self.task,
            self.data.datasets,
            self.data.lengths,
            self.config.batch_size,
            self.data.collator,
            self.accelerator,
        )
        self.watch.switch(None)
        return evaluation

    def _log(self, loss: torch.Tensor, rate: float, observed: Mapping[str, Any]) -> None:
        value = float(self.accelerator.reduce(loss, reduction="mean"))  # type: ignore[arg-type]
        if not math.isfinite(value):
            raise ConfigurationError(
                f"the loss is {value} at step {self.step}: lower --optimizer.lr, or use --precision fp32"
            )
        self.progress.logged(value, rate)
        values = {"loss": value, "learning_rate": rate, **observed}
        self.accelerator.log(numbers(values), self.step)
        if self.accelerator.is_main_process:
            self.folder.log({"step": self.step, **values})

    def _stateful(self) -> dict[str, Any]:
        """Everything that keeps state beside the model, by the name it has in a checkpoint."""
        parts: dict[str, Any] = {"optimizer": self.prepared, "scheduler": self.scheduler}
        parts["scaler"] = self.accelerator.scaler
        parts["activation"] = self.methods.activation
        parts |= {f"gradient.{i}": handle for i, handle in enumerate(self.gradients)}
        parts |= {f"monitor.{i}": handle for i, handle in enumerate(self.monitors)}
        return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}

    def _save_best(self) -> None:
        weights = checkpoint.whole_weights(self.model) if self.sharded else self.model
        if self.accelerator.is_main_process:
            checkpoint.save_best(self.folder.checkpoints, self.step, weights)

    def _save(self) -> None:
        leads, model = self.accelerator.is_main_process, self.model
        stateful = self._stateful() if leads or self.sharded else {}
        state = {name: part.state_dict() for name, part in stateful.items()}
        if self.sharded:
            state, model = whole(state), checkpoint.whole_weights(self.model)
        random = gather_object([checkpoint.random_states()])
        if leads:
            progress = {
                "step": self.step,
                "epoch": self.step / self.plan.per_epoch,
                "examples": self.examples,
                "saved_bytes": self.saved_bytes,
                "history": self.history.entries,
                "seconds": self.watch.seconds(),
                "processes": self.plan.processes,
                "random": random[0],
                "random_elsewhere": random[1:],
            }
            best = self.history.best["step"] if self.history.entries else None
            checkpoint.save(self.folder.checkpoints, self.step, model, state | progress, best)
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Continue from the newest checkpoint of the run's folder, if there is one."""
        with together(self.accelerator):
            newest = checkpoint.latest(self.folder.checkpoints)
            if newest is not None:
                self._load(newest)
        steps = gather_object([self.step])
        with together(self.accelerator):
            if len(set(steps)) > 1:
                raise ConfigurationError(
                    f"--output-dir {self.folder.path}: processes find different checkpoints there: give a "
                    "folder that all machines share"
                )
            if self.folder.leads:
                self.folder.keep_metrics(self.step)

    def _load(self, newest: Path) -> dict[str, Any]:
        """Take over weights and all state of a checkpoint, and return the state."""
        stateful = self._stateful()
        state = checkpoint.load(newest, self.model, self.device, expected=stateful)
        if self.sharded:
            state["optimizer"] = own_state(state["optimizer"], _parameters(self.optimizer))
        for name, part in stateful.items():
            part.load_state_dict(state[name])
        self.step, self.examples = state["step"], state["examples"]
        self.saved_bytes = state["saved_bytes"]
        self.history.entries = state["history"]
        self.watch.add(state["seconds"])
        random = [state["random"], *state.get("random_elsewhere", [])]
        if self.rank < len(random):
            checkpoint.restore_random_states(random[self.rank])
        return state

    def continue_from(self, other: Path) -> None:
        """Continue where another run's newest checkpoint ends, with the settings of this run.

        Weights, the optimizer's state and random states are the other's; learning rate, weight decay and
        the other options of the optimizer are this run's. The point reached is kept in epochs: with another
        batch size the steps are counted anew, and the schedule of this run goes on from there. With
        `load_best` the evaluations so far are forgotten: their weights are the other run's.
        """
        newest = checkpoint.latest(other / "checkpoint")
        if newest is None:
            raise ConfigurationError(f"{other}: no checkpoint to continue from: give the folder of a run")
        names = (*self.optimizer.defaults, "initial_lr")
        own = [
            {name: group[name] for name in names if name in group} for group in self.optimizer.param_groups
        ]
        rates = list(self.scheduler.base_lrs)
        state = self._load(newest)
        self.step = round(state["epoch"] * self.plan.per_epoch)
        if self.config.load_best and self.step < self.plan.total:
            self.history.entries = []
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        self.scheduler.base_lrs = rates
        self.scheduler.last_epoch = self.step - 1
        self.scheduler.step()

    def result(self) -> dict[str, Any]:
        """Return what `result.json` holds."""
        seconds = self.watch.seconds()
        settings = self.config.identity()
        slots = {slot: settings.pop(slot) for slot in ("adaptation", "activation", "gradient", "optimizer")}
        parameters = list(self.model.parameters())
        return {
            "schema": SCHEMA,
            "task": self.config.task,
            "model": self.config.model,
            "seed": self.config.seed,
            "hash": self.config.hash,
            "slots": slots,
            "settings": settings,
            "primary": self.history.primary,
            "metrics": {"last": self.history.last["metrics"], "best": self.history.best["metrics"]},
            "history": self.history.entries,
            "steps": self.step,
            "stopped_early": self.stopped_early,
            "examples_per_second": self.examples / (sum(seconds.values()) - seconds["evaluation"]),
            "seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "saved_activation_bytes": self.saved_bytes,
            "parameters": {
                "trainable": sum(p.numel() for p in parameters if p.requires_grad),
                "total": sum(p.numel() for p in parameters),
            },
            "versions": versions() | method_versions(self.config),
            "hardware": hardware(self.device) | {"processes": self.world, "sharded": self.sharded},
        }


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Treat denormal numbers as zero: second moments that fade away would slow a CPU down."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


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
            goes on (`Training.continue_from`).

    Returns:
        What `result.json` holds; a finished run is not repeated.

    Raises:
        ConfigurationError: One line that says what cannot be used, and the remedy.
    """
    check_tracker(config)
    accelerator = join(config)
    reset_peak_memory(accelerator.device)
    with ExitStack() as stack:
        with together(accelerator):
            folder = stack.enter_context(RunFolder(config, accelerator.is_main_process))
            finished = folder.result() if folder.leads else None
        if finished := from_main(accelerator, finished):
            return finished
        with together(accelerator):
            methods = build_methods(config)
            if is_sharded(config):
                methods.check_sharded()
            tokenizer = load_tokenizer(config.model)
        data = by_turns(accelerator, lambda: Data.load(config, tokenizer))
        stack.enter_context(_flushed_denormals())
        stack.enter_context(lost_processes(accelerator))
        with Progress(config, folder.leads) as progress:
            training = Training(
                config, methods, data, tokenizer, folder, progress, on_evaluation, accelerator
            )
            training.restore()
            if start_from is not None and not training.step:
                training.continue_from(start_from)
            stack.enter_context(tracked(accelerator, config, training.step))
            progress.start(training.step, training.plan.total, training.examples)
            training.train()
        result = training.result()
        if folder.leads and training.evaluation is not None:
            folder.write_predictions(training.evaluation.rows(training.task, data.datasets))
            folder.write_result(result)
        return result
