"""The commands about finished or several runs: their options, and the calls they make."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_common.errors import ConfigurationError
from glue_harness.config.commands import parser_of

__all__ = [
    "export_command",
    "predict_command",
    "report_command",
    "search_command",
    "submit_command",
    "sweep_command",
]


def sweep_command(argv: Sequence[str]) -> None:
    """Do the runs of a specification."""
    parser = parser_of("sweep", "Do the runs of a YAML specification that are not finished yet.")
    parser.add_argument(
        "spec", type=Path, help="YAML file with any of: base, grid, cases, where, exclude, scales, keep"
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for one subfolder per run")
    parser.add_argument(
        "--scale",
        help="a name under 'scales' in the file; 'smoke' always works: four steps of a tiny model per method",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, each with its share of the cores (default: 1)"
    )
    parser.add_argument(
        "--launcher",
        choices=("local", "ray", "slurm"),
        default="local",
        help="processes on this machine, tasks of a Ray cluster, or a SLURM job array (default: local)",
    )
    parser.add_argument(
        "--slurm",
        metavar="NAME=VALUE,...",
        default="",
        help="resources of each SLURM job, e.g. partition=gpu,timeout_min=240,gpus_per_node=1",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only print the remaining runs, with their time, memory and disk",
    )
    parser.add_argument("--retry-failed", action="store_true", help="also repeat runs that failed earlier")
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
        options.scale,
    )


def search_command(argv: Sequence[str]) -> None:
    """Search for the best configuration."""
    parser = parser_of("search", "Search for the best configuration, or continue an interrupted search.")
    parser.add_argument("spec", type=Path, help="YAML file with base, space and, optionally, mutations")
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="folder for the best run and the record of all trials"
    )
    parser.add_argument(
        "--scheduler",
        choices=("pbt", "asha", "none"),
        default="pbt",
        help="pbt: population based training; asha: bad trials stop early; none: all run to the end "
        "(default: pbt)",
    )
    parser.add_argument(
        "--sampler",
        choices=("random", "tpe"),
        default="random",
        help="how configurations are drawn; tpe is Optuna's, and not for pbt (default: random)",
    )
    parser.add_argument("--trials", type=int, default=8, help="number of configurations (default: 8)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="trials at a time, each with its share of the cores or GPUs (default: 1)",
    )
    parser.add_argument("--retry-failed", action="store_true", help="also repeat trials that failed earlier")
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


def report_command(argv: Sequence[str]) -> None:
    """Compare the runs below a folder."""
    parser = parser_of(
        "report", "Compare the runs below a folder: tables, charts, and a web page that needs no network."
    )
    parser.add_argument("folder", type=Path, help="folder that holds runs, at any depth")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("report"), help="folder for the files (default: report)"
    )
    parser.add_argument(
        "--protocol",
        choices=("mean", "median", "best-lr", "best"),
        default="mean",
        help="number that stands for the runs of a setting: the mean over seeds, the median seed, the mean "
        "of each seed's best learning rate, or the best run (default: mean)",
    )
    parser.add_argument(
        "--evaluation",
        choices=("last", "best"),
        default="last",
        help="use the last or the best evaluation of each run (default: last)",
    )
    parser.add_argument(
        "--baseline",
        metavar="KEY=VALUE,...",
        help="compare all settings with this one, paired by seed; e.g. optimizer=adamw",
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="DELTA",
        help="call a setting equal to the baseline if the test excludes a difference of DELTA or more; "
        "e.g. 0.005",
    )
    parser.add_argument(
        "--primary",
        metavar="KEY=VALUE,...",
        help="comparisons that were planned before the runs; the others are marked exploratory",
    )
    parser.add_argument(
        "--test",
        choices=("permutation", "wilcoxon"),
        default="permutation",
        help="paired test of differences (default: permutation)",
    )
    parser.add_argument(
        "--where",
        metavar="KEY=VALUE,...",
        help="use only these runs; e.g. task=rte|mrpc,epochs=3",
    )
    parser.add_argument(
        "--group-by",
        metavar="KEY,...",
        help="options that define a setting; runs that agree in them share a row (default: all but the seed)",
    )
    parser.add_argument(
        "--targets",
        type=Path,
        metavar="FILE.csv",
        help="published numbers to compare with",
    )
    parser.add_argument(
        "--published-runs", type=int, default=1, help="runs behind each published number (default: 1)"
    )
    options = parser.parse_args(argv)

    from glue_harness.cluster import available_cores
    from glue_harness.report import report

    keys = [key.strip().replace("-", "_") for key in (options.group_by or "").split(",")]
    report(
        options.folder,
        options.output_dir,
        protocol=options.protocol,
        evaluation=options.evaluation,
        test=options.test,
        baseline=options.baseline,
        margin=options.margin,
        primary=options.primary,
        where=options.where,
        group_by=[key for key in keys if key],
        processes=available_cores(),
        targets=options.targets,
        published_runs=options.published_runs,
    )


def submit_command(argv: Sequence[str]) -> None:
    """Write the leaderboard's zip."""
    parser = parser_of(
        "submit", "Predict the official test files with trained runs, and write the leaderboard's zip file."
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders that hold runs with their models")
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("glue-submission"),
        help="folder for the zip file (default: glue-submission)",
    )
    parser.add_argument(
        "--data-dir",
        help="folder with test files in the official GLUE layout (default: each run's training data)",
    )
    parser.add_argument("--ax", type=Path, metavar="FILE", help="diagnostic file, predicted by the MNLI run")
    options = parser.parse_args(argv)

    from glue_harness.submit import submit

    submission = submit(options.runs, options.output_dir, options.data_dir, options.ax)
    for task, (folder, score) in submission["runs"].items():
        print(f"{task}: {folder} ({score:.4f} on its evaluation rows)")
    if submission["missing"]:
        print(f"missing, and expected by the leaderboard: {', '.join(submission['missing'])}")
    print(f"written and checked: {submission['archive']}")


def predict_command(argv: Sequence[str]) -> None:
    """Predict the rows of files."""
    parser = parser_of("predict", "Predict labels for the rows of files, or for lines on standard input.")
    parser.add_argument("model", help="folder of a run or of a model, or a hub name")
    parser.add_argument(
        "files",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="csv, tsv, json, jsonl or parquet (default: standard input, one text per line)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="csv, tsv, jsonl or parquet (default: standard output)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="rows at a time (default: 32)")
    parser.add_argument(
        "--max-length", type=int, help="truncate texts to this many tokens (default: as in training)"
    )
    parser.add_argument("--task", help="one of the run's tasks, if it learned several")
    options = parser.parse_args(argv)

    from glue_harness.predict import predict

    predicted = predict(
        options.model, options.files, options.output, options.batch_size, options.max_length, options.task
    )
    speed = f"{predicted['rows']:,} rows in {predicted['seconds']:.1f} s"
    scores = ", ".join(f"{name} {value:.4f}" for name, value in predicted["metrics"].items())
    print("; ".join(part for part in (speed, scores, predicted["without"]) if part), file=sys.stderr)


def export_command(argv: Sequence[str]) -> None:
    """Write a run's model for others."""
    parser = parser_of("export", "Write a run's model to a folder that transformers loads.")
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("folder", type=Path, help="new folder for the model")
    parser.add_argument(
        "--merge",
        action="store_true",
        help="write a plain model, the adaptation merged into its weights; refused if that is impossible",
    )
    parser.add_argument("--push-to-hub", metavar="NAME", help="also upload the folder to the model hub")
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: only its owner sees it")
    parser.add_argument("--task", help="one of the run's tasks, if it learned several")
    options = parser.parse_args(argv)
    if options.private and not options.push_to_hub:
        raise ConfigurationError("--private has no effect without --push-to-hub NAME: give both")

    from glue_harness.export import export, push

    code = export(options.run, options.folder, options.merge, options.task)
    trusted = ", trust_remote_code=True" if code else ""
    print(f"written: pipeline('text-classification', '{options.folder}'{trusted})")
    if code:
        print(
            f"the adaptation cannot be merged: {code} applies it to the base model; read it before you use it"
        )
    if options.push_to_hub:
        print(f"pushed: {push(options.folder, options.push_to_hub, options.private)}")
