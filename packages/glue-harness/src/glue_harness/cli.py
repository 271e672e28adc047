"""The program `glue-harness`. Heavy libraries are imported when work begins, so that help is quick."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune_common.errors import ConfigurationError, did_you_mean
from glue_harness.commands import (
    export_command,
    predict_command,
    report_command,
    search_command,
    submit_command,
    sweep_command,
)
from glue_harness.config.commands import CommandParser, parser_of
from glue_harness.console import standard_output
from glue_harness.cost.commands import capacity_command, profile_command
from glue_harness.files import writing
from glue_harness.inspecting import inspect_command
from glue_harness.stopping import Stopped, stop_on_signals

__all__ = ["main"]


def _run(argv: Sequence[str]) -> None:
    import yaml

    from glue_harness.config.own_rows import own_rows
    from glue_harness.config.parsing import parse_line

    config, only_print = parse_line(argv)
    if only_print:
        print(yaml.safe_dump(config.as_dict(), sort_keys=False), end="")
        return
    if config.offline:
        _go_offline()
    if config.has_own_rows and config.dataset is None:
        own_rows(config.for_own_rows.as_dict())  # unreadable files are reported before heavy imports
    with writing(f"--output-dir {config.output_dir}"):  # a name may be too long
        finished = not config.overwrite and (Path(config.output_dir) / "result.json").exists()

    from glue_harness.report.tables import print_run
    from glue_harness.run.entry import run
    from glue_harness.run.processes import leave_group

    try:
        result = run(config)
    except Stopped:
        leave_group()
        raise
    leave_group()
    if _process() == 0:
        print_run(result, Path(config.output_dir), finished_before=finished)


def _process() -> int:
    """Return the number that a launcher (torchrun, accelerate launch) gave this process; 0 without one."""
    return int(os.environ.get("RANK", 0))


def _prepare(argv: Sequence[str]) -> None:
    parser = parser_of(
        "prepare", "Download a task and a model and tokenise, so that 'run --offline' needs no network."
    )
    parser.add_argument("--task", help="task, as for run; not needed with --dataset")
    parser.add_argument("--model", required=True, help="model, as for run")
    parser.add_argument("--data-dir", help="folder in the official GLUE layout")
    parser.add_argument("--dataset", help="dataset of the hub, as for run; downloaded, not tokenised")
    parser.add_argument("--dataset-config", help="configuration of the dataset")
    parser.add_argument(
        "--max-length", type=int, default=128, help="truncate texts to this many tokens (default: 128)"
    )
    options = parser.parse_args(argv)

    from glue_harness.prepare import prepare, prepare_dataset

    if options.dataset is not None:
        print(prepare_dataset(options.dataset, options.dataset_config, options.model))
    elif options.task is None:
        raise ConfigurationError("--task is missing: give a task, or --dataset NAME")
    else:
        print(prepare(options.task, options.model, options.data_dir, options.max_length))


def _list(argv: Sequence[str]) -> None:
    parser = parser_of("list", "List the installed methods, or the tasks.")
    parser.add_argument("what", choices=("methods", "tasks"))
    options = parser.parse_args(argv)

    from glue_harness.listing import list_methods, list_tasks

    {"methods": list_methods, "tasks": list_tasks}[options.what]()


def _doctor(argv: Sequence[str]) -> None:
    parser_of("doctor", "Show devices, compiler, versions, methods found, and what is missing.").parse_args(
        argv
    )

    from glue_harness.doctor import doctor

    doctor()


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "run": (_run, "fine-tune a model on a task"),
    "inspect": (inspect_command, "show how data files will be read, without training"),
    "prepare": (_prepare, "download and tokenise in advance, for runs without a network"),
    "sweep": (sweep_command, "do all runs of a YAML specification; continues after an interruption"),
    "search": (search_command, "find the best configuration: population based training, ASHA or sampling"),
    "report": (report_command, "compare finished runs: tables, charts and a web page"),
    "profile": (profile_command, "measure memory and speed of training steps"),
    "capacity": (capacity_command, "find the largest batch, depth or width within a memory budget"),
    "predict": (predict_command, "predict labels for files or lines of text"),
    "export": (export_command, "write a run's model to a folder that transformers loads"),
    "submit": (submit_command, "write the zip file for the GLUE leaderboard"),
    "list": (_list, "list the installed methods, or the tasks"),
    "doctor": (_doctor, "show what this machine has, and what is missing"),
}


def _go_offline() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def _main(argv: Sequence[str]) -> None:
    parser = CommandParser(
        prog="glue-harness",
        description="Fine-tune a model on GLUE or your own data with any combination of installed methods, "
        "and compare runs.",
        epilog="commands:\n" + "\n".join(f"  {name:10} {summary}" for name, (_, summary) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", help="one of those below; 'glue-harness COMMAND --help' lists its options")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="the command's options")
    options = parser.parse_args(argv)
    if options.command not in COMMANDS:
        raise ConfigurationError(
            f"command {options.command!r} is unknown: {did_you_mean(options.command, COMMANDS)}"
        )
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and options.command != "run":
        raise ConfigurationError(
            f"{options.command} needs a single process, and {processes} were launched: use torchrun and "
            "accelerate launch for run only"
        )
    COMMANDS[options.command][0](options.rest)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"glue-harness: warning: {' '.join(str(message).split())}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 2 for wrong input; 128 plus the number of the signal that ended it: 130 after Ctrl-C.
    """
    try:
        with warnings.catch_warnings(), stop_on_signals():
            warnings.showwarning = _warn
            with standard_output() as out:
                _main(sys.argv[1:] if argv is None else argv)
                out.flush()
    except ConfigurationError as error:
        program = f"glue-harness (process {_process()})" if _process() else "glue-harness"
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "glue-harness: interrupted; the same command continues from the last checkpoint", file=sys.stderr
        )
        return 130
    except Stopped as stopped:
        if _process() == 0:
            print(f"glue-harness: {stopped}", file=sys.stderr)
        return stopped.status
    return 0
