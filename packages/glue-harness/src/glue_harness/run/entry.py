"""A run from its configuration to its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from finetune_common.aliases import JsonObject
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, reason
from finetune_common.measure import reset_peak_memory
from glue_harness.config.fields import RunConfig
from glue_harness.config.tasks import check_sharded
from glue_harness.hardware import flushed_denormals
from glue_harness.run import snapshot
from glue_harness.run.assembly import create
from glue_harness.run.loop import Training
from glue_harness.run.methods import build_methods
from glue_harness.run.mixture import Mixture, content_of, load_data
from glue_harness.run.models import load_tokenizer
from glue_harness.run.processes import join
from glue_harness.run.progress import Progress
from glue_harness.run.records import RunFolder
from glue_harness.run.tracking import check_tracker, tracked
from glue_harness.run.trained import write_output
from glue_harness.stopping import StopFile, StopRequest, stop_on_signals

__all__ = ["run"]


@contextmanager
def _memory_suffices() -> Iterator[None]:
    """Say in one line that a device's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(
            f"memory ran out ({reason(error)}): give a smaller --batch-size and a larger --accumulate, or "
            "--activation compress; 'glue-harness capacity' finds the largest batch"
        ) from None


@explain_arguments
def run(
    config: RunConfig,
    on_evaluation: Callable[[Training], None] | None = None,
    start_from: Path | None = None,
    stop: StopRequest | StopFile | None = None,
    quiet: bool = False,
) -> JsonObject:
    """Train a model on a task, or continue where an interrupted run stopped.

    Args:
        config: The run; its `output_dir` receives the files.
        on_evaluation: Called after each evaluation, when a due checkpoint is written.
        start_from: Folder of another run; without its own checkpoint, the run continues from that run's
            newest one (`snapshot.continue_from`).
        stop: Source of requests to stop; by default signals.
        quiet: Print no progress, for callers that report several runs.

    Returns:
        The content of `result.json`; a finished run is not repeated.

    Raises:
        ConfigurationError: One line that says what cannot be used, and the remedy.
        Stopped: The run was asked to stop; its state is saved.

    Examples:
        >>> from glue_harness import parse_mapping
        >>> settings = {"task": "demo-acceptability", "model": "demo", "max_steps": 2}
        >>> run(parse_mapping(settings | {"output_dir": "runs/demo"}), quiet=True)["steps"]
        2
    """
    check_tracker(config)
    processes = join(config)
    reset_peak_memory(processes.device)
    with ExitStack() as stack:
        if config.matmul_precision is not None:
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision(config.matmul_precision)
        stop = stop or stack.enter_context(stop_on_signals())
        stop.waits |= processes.world > 1  # all end at the same step
        with processes.fail_together():
            folder = stack.enter_context(RunFolder(config, processes.leads))
            finished = folder.result(content_of) if folder.leads else None
        if finished := processes.from_leader(finished):
            return finished
        with processes.fail_together():
            methods = build_methods(config)
            if folder.leads:
                methods.warn_of_idle_clipping(config.max_grad_norm)
            if processes.sharded:
                methods.check_sharded()
                check_sharded(config)
            tokenizer = load_tokenizer(config.model, config.model_config.get("pad_token_id"))
        data = processes.leaders_first(lambda: load_data(config, tokenizer))
        with processes.fail_together():
            folder.describe_rows(data, quiet)
        stack.enter_context(flushed_denormals())
        stack.enter_context(processes.report_lost())
        stack.enter_context(_memory_suffices())
        with Progress(config, folder.leads and not quiet) as progress:
            with processes.fail_together():
                tasks = data.tasks if isinstance(data, Mixture) else None
                assembled = create(config, methods=methods, task=data.task, tasks=tasks, tokenizer=tokenizer)
            stack.callback(assembled.detach)
            training = Training(assembled, data, processes, folder, progress, on_evaluation, stop)
            snapshot.restore(training)
            if start_from is not None and not training.step:
                snapshot.continue_from(training, start_from)
            stack.enter_context(tracked(processes.accelerator, config, training.step))
            progress.start(training)
            stop.waits = True
            training.train()
        with processes.fail_together():
            return write_output(training)
