"""The training loop: a configuration in, a result out.

One optimizer step is a window of `accumulate` micro-batches. Each micro-batch's mean loss is weighted by
its share of the window's rows, so that the gradient is that of the mean over the whole window, a short last
batch included. The order of the rows is a pure function of the seed and the epoch; with the random states
in the checkpoint, the step number is all that is needed to continue to the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device, set_seed

from finetune_common.data import make_loader
from finetune_common.errors import ConfigurationError
from finetune_common.measure import SavedTensorMeter, Stopwatch, peak_memory_bytes
from glue_harness import checkpoint
from glue_harness.config import RunConfig
from glue_harness.evaluation import Evaluation, History, evaluate
from glue_harness.hardware import hardware, versions
from glue_harness.methods import Methods, build_methods, method_versions
from glue_harness.models import check_positions, load_model, load_tokenizer, parameter_groups
from glue_harness.plan import Data, Plan
from glue_harness.progress import Progress
from glue_harness.records import SCHEMA, RunFolder

__all__ = ["run"]

PARTS = ("data", "forward", "backward", "gradient", "optimizer", "evaluation")


def _accelerator(precision: str) -> Accelerator:
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigurationError("--precision fp16 needs a GPU, and this run is on the CPU: use fp32 or bf16")
    AcceleratorState._reset_state()  # the precision of an earlier run in this process would stay
    return Accelerator(mixed_precision={"fp32": "no"}.get(precision, precision))


class Training:
    """A model and everything that trains it.

    Args:
        config: The run.
        methods: The methods of its slots.
        data: Its data, tokenised.
        tokenizer: The model's tokenizer.
        folder: Where its files go.
        progress: Where it says how far it is.
    """

    def __init__(
        self,
        config: RunConfig,
        methods: Methods,
        data: Data,
        tokenizer: Any,
        folder: RunFolder,
        progress: Progress,
    ) -> None:
        self.config, self.methods, self.data = config, methods, data
        self.folder, self.progress = folder, progress
        self.task = data.task
        self.accelerator = _accelerator(config.precision)
        self.device = self.accelerator.device
        set_seed(config.seed)
        model = load_model(
            config.model, self.task, tokenizer, methods.adaptation.load_kwargs(), config.model_config
        )
        check_positions(model, max(int(lengths.max()) for lengths in data.lengths.values()))
        self.model = methods.adaptation.apply(model).to(self.device)
        self.model.train()
        self.plan = Plan(config, data.lengths["train"], self.accelerator.num_processes)
        groups = parameter_groups(self.model, config.weight_decay, config.head_lr)
        self.optimizer = methods.optimizer.build(self.model, groups)
        self.watch = Stopwatch(PARTS, self.device)
        self._attach()
        self.wrapped, self.prepared = self.accelerator.prepare(self.model, self.optimizer)
        self.scheduler = self._schedule()
        self.history = History(self.task.primary)
        self.evaluation: Evaluation | None = None
        self.step = 0
        self.examples = 0
        self.saved_bytes: int | None = None

    def _attach(self) -> None:
        """Attach the gradient methods between two marks of the stopwatch, then the monitors."""
        self.optimizer.register_step_pre_hook(lambda *_: self.watch.switch("gradient"))
        self.gradients = [g.attach(self.optimizer, self.config.accumulate) for g in self.methods.gradient]
        self.optimizer.register_step_pre_hook(lambda *_: self.watch.switch("optimizer"))
        self.monitors = [m.attach(self.model, self.optimizer) for m in self.methods.monitor]

    def _schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        config, total = self.config, self.plan.total
        warmup = math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)
        name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        return transformers.get_scheduler(name, self.optimizer, warmup, total)

    def train(self) -> None:
        """Train to the end, logging, evaluating and saving on the way."""
        while self.step < self.plan.total:
            for window, batches in self._rest_of_epoch():
                rate = float(self.scheduler.get_last_lr()[0])
                loss = self._train_step(window, batches)
                self.step += 1
                self._after_step(loss, rate)
        if self.evaluation is None:
            self.evaluation = self._evaluate()

    def _rest_of_epoch(self) -> Iterator[tuple[list[list[int]], list[Any]]]:
        """Yield each window left of an epoch: its rows over all processes, and this process's batches."""
        windows = self.plan.windows(self.step)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = [batch[rank::world] for window in windows for batch in window]
        self.watch.switch("data")
        loader = iter(
            make_loader(self.data.datasets["train"], mine, self.data.collator, self.config.num_workers)
        )
        for window in windows:
            yield window, [send_to_device(next(loader), self.device) for _ in window]
            self.watch.switch("data")
        self.watch.switch(None)

    def _train_step(self, window: list[list[int]], batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Make one optimizer step; returns the mean loss over this process's rows of the window."""
        share = self.accelerator.num_processes / sum(map(len, window))
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches, start=1):
            loss_fn = partial(self._loss, batch, share * len(batch["labels"]))
            with nullcontext() if number == len(batches) else self.accelerator.no_sync(self.wrapped):
                self.watch.switch("forward")
                loss = self._forward(loss_fn)
                self.watch.switch("backward")
                self.accelerator.backward(loss)
            total += loss.detach()
        self.methods.activation.after_backward(self.step + 1, loss_fn)
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

    def _loss(self, batch: dict[str, torch.Tensor], weight: float) -> torch.Tensor:
        return self.wrapped(**batch).loss * weight

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
        if observed or last or step % config.log_every == 0:
            self._log(loss, rate, observed)
        self.progress.advance(step, self.examples)
        if last or (step % config.eval_every == 0 if config.eval_every else self.plan.ends_epoch(step)):
            self.evaluation = self._evaluate()
            self.history.add(step, step / self.plan.per_epoch, self.evaluation.metrics)
            self.progress.evaluated(self.history.last)
        if last or (step % config.save_every == 0 if config.save_every else self.plan.ends_epoch(step)):
            self._save()

    def _evaluate(self) -> Evaluation:
        self.watch.switch("evaluation")
        evaluation = evaluate(
            self.wrapped,
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
        if self.accelerator.is_main_process:
            self.folder.log({"step": self.step, "loss": value, "learning_rate": rate, **observed})

    def _stateful(self) -> dict[str, Any]:
        """Everything that keeps state beside the model, by the name it has in a checkpoint."""
        parts: dict[str, Any] = {"optimizer": self.prepared, "scheduler": self.scheduler}
        parts["scaler"] = self.accelerator.scaler
        parts["activation"] = self.methods.activation
        parts |= {f"gradient.{i}": handle for i, handle in enumerate(self.gradients)}
        parts |= {f"monitor.{i}": handle for i, handle in enumerate(self.monitors)}
        return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {name: part.state_dict() for name, part in self._stateful().items()}
            progress = {
                "step": self.step,
                "examples": self.examples,
                "saved_bytes": self.saved_bytes,
                "history": self.history.entries,
                "seconds": self.watch.seconds(),
                "random": checkpoint.random_states(),
            }
            checkpoint.save(self.folder.checkpoints, self.step, self.model, state | progress)
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Continue from the newest checkpoint of the run's folder, if there is one."""
        newest = checkpoint.latest(self.folder.checkpoints)
        if newest is not None:
            stateful = self._stateful()
            state = checkpoint.load(newest, self.model, self.device, expected=stateful)
            for name, part in stateful.items():
                part.load_state_dict(state[name])
            self.step, self.examples = state["step"], state["examples"]
            self.saved_bytes = state["saved_bytes"]
            self.history.entries = state["history"]
            self.watch.add(state["seconds"])
            checkpoint.restore_random_states(state["random"])
        if self.accelerator.is_main_process:
            self.folder.keep_metrics(self.step)

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
            "examples_per_second": self.examples / (sum(seconds.values()) - seconds["evaluation"]),
            "seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "saved_activation_bytes": self.saved_bytes,
            "parameters": {
                "trainable": sum(p.numel() for p in parameters if p.requires_grad),
                "total": sum(p.numel() for p in parameters),
            },
            "versions": versions() | method_versions(self.config),
            "hardware": hardware(self.device),
        }


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Treat denormal numbers as zero: second moments that fade away would slow a CPU down."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def run(config: RunConfig) -> dict[str, Any]:
    """Train a model on a task, or continue where an interrupted run stopped.

    Args:
        config: The run; its `output_dir` receives the files.

    Returns:
        What `result.json` holds; a finished run is not repeated.

    Raises:
        ConfigurationError: One line that says what cannot be used, and the remedy.
    """
    with RunFolder(config) as folder:
        if finished := folder.result():
            return finished
        methods = build_methods(config)
        tokenizer = load_tokenizer(config.model)
        data = Data.load(config, tokenizer)
        with _flushed_denormals(), Progress(config) as progress:
            training = Training(config, methods, data, tokenizer, folder, progress)
            training.restore()
            progress.start(training.step, training.plan.total, training.examples)
            training.train()
        result = training.result()
        if training.accelerator.is_main_process and training.evaluation is not None:
            folder.write_predictions(training.evaluation.rows(training.task, data.datasets))
            folder.write_result(result)
        return result
