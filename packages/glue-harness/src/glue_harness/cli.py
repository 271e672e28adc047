"""The program `glue-harness`. Heavy libraries are imported when work begins, so that help is quick."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune_common.errors import ConfigurationError, check_number, did_you_mean
from glue_harness.run.stopping import Stopped

__all__ = ["main"]


def _run(argv: Sequence[str]) -> None:
    import yaml

    from glue_harness.config.parsing import parse_line

    config, only_print = parse_line(argv)
    if only_print:
        print(yaml.safe_dump(config.as_dict(), sort_keys=False), end="")
        return
    if config.offline:
        _go_offline()
    finished = not config.overwrite and (Path(config.output_dir) / "result.json").exists()

    from glue_harness.report.tables import print_run
    from glue_harness.run.loop import run
    from glue_harness.run.processes import leave

    result = run(config)
    leave()
    if _process() == 0:
        print_run(result, Path(config.output_dir), finished_before=finished)


def _process() -> int:
    """Return the number that a launcher (torchrun, accelerate launch) gave to this process, 0 without one."""
    return int(os.environ.get("RANK", 0))


def _prepare(argv: Sequence[str]) -> None:
    parser = _parser(
        "prepare", "Fetch a task and a model and tokenise, so that 'run --offline' needs no network."
    )
    parser.add_argument("--task", required=True, help="task, as for run")
    parser.add_argument("--model", required=True, help="model, as for run")
    parser.add_argument("--data-dir", help="folder in the official GLUE layout")
    parser.add_argument(
        "--max-length", type=int, default=128, help="tokens to which a text is truncated (128)"
    )
    options = parser.parse_args(argv)

    from glue_harness.prepare import prepare

    print(prepare(options.task, options.model, options.data_dir, options.max_length))


def _sweep(argv: Sequence[str]) -> None:
    parser = _parser("sweep", "Do the runs that a specification describes and that are not done yet.")
    parser.add_argument("spec", type=Path, help="YAML file: base, grid, cases, exclude")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder that receives a folder a run")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, each with its share of the cores (1)"
    )
    parser.add_argument(
        "--launcher",
        choices=("local", "ray", "slurm"),
        default="local",
        help="processes on this machine, tasks of a Ray cluster, or a SLURM job array (local)",
    )
    parser.add_argument(
        "--slurm",
        metavar="NAME=VALUE,...",
        default="",
        help="what each SLURM job asks for; e.g. partition=gpu,timeout_min=240,gpus_per_node=1",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would be run")
    parser.add_argument("--retry-failed", action="store_true", help="try runs again that failed before")
    options = parser.parse_args(argv)

    from glue_harness.sweep import sweep

    sweep(
        options.spec,
        options.output_dir,
        options.jobs,
        options.dry_run,
        options.retry_failed,
        options.launcher,
        options.slurm,
    )


def _search(argv: Sequence[str]) -> None:
    parser = _parser("search", "Search for the best configuration; an interrupted search continues.")
    parser.add_argument("spec", type=Path, help="YAML file: base, space, mutations")
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="folder that receives the best run and the report"
    )
    parser.add_argument(
        "--scheduler",
        choices=("pbt", "asha", "none"),
        default="pbt",
        help="population based training, early stopping of the worse, or neither (pbt)",
    )
    parser.add_argument(
        "--sampler",
        choices=("random", "tpe"),
        default="random",
        help="how configurations are drawn; tpe is Optuna's, not for pbt (random)",
    )
    parser.add_argument("--trials", type=int, default=8, help="how many configurations (8)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="trials at a time, each with its share of the cores or GPUs (1)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="try trials again that failed before")
    options = parser.parse_args(argv)

    from glue_harness.search import search
    from glue_harness.search.table import print_search

    report = search(
        options.spec,
        options.output_dir,
        options.scheduler,
        options.sampler,
        options.trials,
        options.jobs,
        options.retry_failed,
    )
    print_search(report, options.output_dir)


def _report(argv: Sequence[str]) -> None:
    parser = _parser(
        "report", "Compare the runs below a folder: tables, charts, and a page that needs no network."
    )
    parser.add_argument("folder", type=Path, help="folder with runs in it")
    parser.add_argument("--output-dir", type=Path, default=Path("report"), help="where the files go (report)")
    parser.add_argument(
        "--protocol",
        choices=("mean", "median", "best-lr", "best"),
        default="mean",
        help="how the runs of a setting become one number: mean over seeds, the median seed, each seed's "
        "best learning rate and then the mean, or the best run (mean)",
    )
    parser.add_argument(
        "--evaluation",
        choices=("last", "best"),
        default="last",
        help="which evaluation of a run counts (last)",
    )
    parser.add_argument(
        "--baseline",
        metavar="KEY=VALUE,...",
        help="compare with the setting of which this is true, paired by seed; e.g. optimizer=adamw",
    )
    parser.add_argument(
        "--test", choices=("permutation", "wilcoxon"), default="permutation", help="paired test (permutation)"
    )
    parser.add_argument(
        "--where",
        metavar="KEY=VALUE,...",
        help="only runs of which this is true; e.g. task=rte|mrpc,epochs=3",
    )
    parser.add_argument(
        "--group-by", metavar="KEY,...", help="put runs together by these options (all but the seed)"
    )
    options = parser.parse_args(argv)

    from glue_harness.cluster import own_cores
    from glue_harness.report import report

    keys = [key.strip().replace("-", "_") for key in (options.group_by or "").split(",")]
    report(
        options.folder,
        options.output_dir,
        protocol=options.protocol,
        evaluation=options.evaluation,
        test=options.test,
        baseline=options.baseline,
        where=options.where,
        group_by=[key for key in keys if key],
        processes=own_cores(),
    )


def _submit(argv: Sequence[str]) -> None:
    parser = _parser(
        "submit", "Predict the official test files with trained runs, write the leaderboard's zip."
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders with runs in them, checkpoints included")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("glue-submission"), help="receives the zip (glue-submission)"
    )
    parser.add_argument(
        "--data-dir", help="folder in the official GLUE layout with test files (what each run was trained on)"
    )
    parser.add_argument("--ax", type=Path, metavar="FILE", help="the diagnostic file, for the MNLI run")
    options = parser.parse_args(argv)

    from glue_harness.submit import submit

    made = submit(options.runs, options.output_dir, options.data_dir, options.ax)
    for task, (folder, score) in made["runs"].items():
        print(f"{task}: {folder} ({score:.4f} on the dev set)")
    if made["missing"]:
        print(f"not in it, and expected by the leaderboard: {', '.join(made['missing'])}")
    print(f"checked: {made['archive']}")


def _steps_parser(command: str, description: str, compare: str) -> _Parser:
    parser = _parser(command, description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "further options are those of run: --model (presets such as bert-large-cased need no network),\n"
        "--model.FIELD VALUE, --batch-size, --max-length, --precision, --accumulate, and all slots"
    )
    parser.add_argument(
        "--compare",
        metavar="LIST",
        help=f"activation methods, with levels behind a colon (the --activation given, or {compare})",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where, or for which (cpu)")
    parser.add_argument("--output-dir", type=Path, help="receives the JSON file, the table and figures")
    return parser


def _steps_config(rest: Sequence[str], compare: str | None, default: str, prog: str) -> tuple[Any, Any]:
    """Read the options that are those of run, and the activation methods to compare."""
    from glue_harness.config.parsing import parse_line
    from glue_harness.cost.choices import read_choices

    named = "--activation" in [token.partition("=")[0] for token in rest]
    filled = ["--task", "sst2", "--output-dir", "-", *rest]
    config, _ = parse_line(filled, prog)
    if compare is None and (named or config.activation["name"] != "none"):
        return config, {config.activation["name"]: config.activation}
    return config, read_choices(compare or default)


def _profile(argv: Sequence[str]) -> None:
    default = "none"
    parser = _steps_parser("profile", "Measure memory and speed of training steps on made-up rows.", default)
    parser.add_argument("--batch-sizes", metavar="LIST", help="several batch sizes, with a figure: 8,16,32")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps, after two that warm up (5)")
    options, rest = parser.parse_known_args(argv)
    config, choices = _steps_config(rest, options.compare, default, "glue-harness profile")
    try:
        sizes = [int(size) for size in (options.batch_sizes or str(config.batch_size)).split(",")]
    except ValueError:
        raise ConfigurationError(
            f"--batch-sizes {options.batch_sizes}: give whole numbers, as 8,16,32"
        ) from None
    check_number("repeats", options.repeats, at_least=1)

    from glue_harness.cost.profiling import profile_steps, table

    made = table(profile_steps(config, choices, sizes, options.device, options.output_dir, options.repeats))
    _keep(options.output_dir, "speed_results.md", made)


def _capacity(argv: Sequence[str]) -> None:
    default = "none,checkpoint,compress:L1,compress:L2.2,compress+checkpoint"
    parser = _steps_parser(
        "capacity",
        "Find the largest batch, depth or width that a memory budget allows, without allocating it.",
        default,
    )
    parser.add_argument("--budget", required=True, metavar="BYTES", help="16GiB, 500MB, …")
    parser.add_argument(
        "--search",
        choices=("batch-size", "layers", "hidden", "intermediate"),
        default="batch-size",
        help="what grows (batch-size)",
    )
    parser.add_argument(
        "--by", choices=("prediction", "measurement"), default="prediction", help="fake tensors or real steps"
    )
    options, rest = parser.parse_known_args(argv)
    config, choices = _steps_config(rest, options.compare, default, "glue-harness capacity")

    from glue_harness.cost.capacity import capacity, read_bytes, table

    budget = read_bytes(options.budget)
    found = capacity(
        config,
        options.search,
        budget,
        choices,
        by=options.by,
        device=options.device,
        output_dir=options.output_dir,
    )
    _keep(options.output_dir, f"max_{options.search.replace('-', '_')}_results.md", table(found))


def _keep(folder: Path | None, name: str, table: str) -> None:
    """Print a table, and write it where a folder was given."""
    print(f"\n{table}", end="")
    if folder is not None:
        from glue_harness.run.records import write_whole

        write_whole(folder / name, table)


def _list(argv: Sequence[str]) -> None:
    parser = _parser("list", "Show the installed methods, or the tasks.")
    parser.add_argument("what", choices=("methods", "tasks"))
    options = parser.parse_args(argv)

    from glue_harness.listing import list_methods, list_tasks

    {"methods": list_methods, "tasks": list_tasks}[options.what]()


def _doctor(argv: Sequence[str]) -> None:
    _parser("doctor", "Show devices, compiler, versions, methods found, and what is missing.").parse_args(
        argv
    )

    from glue_harness.doctor import doctor

    doctor()


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "run": (_run, "fine-tune a model on a task"),
    "prepare": (_prepare, "fetch and tokenise ahead, for runs without a network"),
    "sweep": (_sweep, "do the runs of a specification, resumable"),
    "search": (_search, "the best configuration by population based training or sampling"),
    "report": (_report, "compare the runs below a folder"),
    "profile": (_profile, "measure memory and speed of training steps"),
    "capacity": (_capacity, "the largest batch, depth or width under a memory budget"),
    "submit": (_submit, "predict the test files, write the leaderboard's zip"),
    "list": (_list, "show the installed methods, or the tasks"),
    "doctor": (_doctor, "show what this machine has and what is missing"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigurationError(f"{message}; see '{self.prog} --help'")


def _parser(command: str, description: str) -> _Parser:
    return _Parser(prog=f"glue-harness {command}", description=description, allow_abbrev=False)


def _go_offline() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def _main(argv: Sequence[str]) -> None:
    parser = _Parser(
        prog="glue-harness",
        description="Fine-tune encoders on GLUE with any combination of installed methods, and report.",
        epilog="commands:\n" + "\n".join(f"  {name:10} {said}" for name, (_, said) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", help="one of the commands below; 'COMMAND --help' tells its options")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="the command's options")
    options = parser.parse_args(argv)
    if options.command not in COMMANDS:
        raise ConfigurationError(
            f"command {options.command!r} is unknown: {did_you_mean(options.command, COMMANDS)}"
        )
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and options.command != "run":
        raise ConfigurationError(
            f"{options.command} is one process, and {processes} were launched: only run is for torchrun and "
            "accelerate launch"
        )
    COMMANDS[options.command][0](options.rest)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"glue-harness: warning: {' '.join(str(message).split())}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 2 for what cannot be used; 130, 138 or 143 after Ctrl-C, SIGUSR1 or SIGTERM.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            _main(sys.argv[1:] if argv is None else argv)
    except ConfigurationError as error:
        speaker = f"glue-harness (process {_process()})" if _process() else "glue-harness"
        print(f"{speaker}: {error}", file=sys.stderr)
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
