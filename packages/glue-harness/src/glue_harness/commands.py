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
    parser = parser_of("sweep", "Do the runs that a specification describes and that are not done yet.")
    parser.add_argument("spec", type=Path, help="YAML file: base, grid, cases, where, exclude, scales")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder that receives a folder a run")
    parser.add_argument(
        "--scale", help="one of the specification's scales; smoke (any has it): four steps of a tiny model"
    )
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
    parser.add_argument("--dry-run", action="store_true", help="only print what would be run, and its needs")
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
        options.scale,
    )


def search_command(argv: Sequence[str]) -> None:
    """Search for the best configuration."""
    parser = parser_of("search", "Search for the best configuration; an interrupted search continues.")
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


def report_command(argv: Sequence[str]) -> None:
    """Compare the runs below a folder."""
    parser = parser_of(
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
        "--margin",
        type=float,
        metavar="DELTA",
        help="call a setting equal where a difference of DELTA or more is excluded; e.g. 0.005",
    )
    parser.add_argument(
        "--primary",
        metavar="KEY=VALUE,...",
        help="the comparisons that were named before the runs; the others are exploratory",
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
    parser.add_argument(
        "--targets",
        type=Path,
        metavar="FILE.csv",
        help="published numbers to set beside ours",
    )
    parser.add_argument(
        "--published-runs", type=int, default=1, help="runs that are behind a published number (1)"
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
        margin=options.margin,
        primary=options.primary,
        where=options.where,
        group_by=[key for key in keys if key],
        processes=own_cores(),
        targets=options.targets,
        published_runs=options.published_runs,
    )


def submit_command(argv: Sequence[str]) -> None:
    """Write the leaderboard's zip."""
    parser = parser_of(
        "submit", "Predict the official test files with trained runs, write the leaderboard's zip."
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders with runs in them, models included")
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


def predict_command(argv: Sequence[str]) -> None:
    """Predict the rows of files."""
    parser = parser_of("predict", "Predict rows of files, or lines on standard input, with a trained model.")
    parser.add_argument("model", help="folder of a finished run or of a model, or a hub name")
    parser.add_argument(
        "files",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="csv, tsv, json, jsonl, parquet (standard input)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="csv, tsv, jsonl or parquet (standard output)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="rows at a time (32)")
    parser.add_argument(
        "--max-length", type=int, help="tokens to which a text is truncated (as in the run's training)"
    )
    parser.add_argument("--task", help="which of its tasks, where the run learned several")
    options = parser.parse_args(argv)

    from glue_harness.predict import predict

    made = predict(
        options.model, options.files, options.output, options.batch_size, options.max_length, options.task
    )
    speed = f"{made['rows']:,} rows in {made['seconds']:.1f} s"
    scores = ", ".join(f"{name} {value:.4f}" for name, value in made["metrics"].items())
    print("; ".join(part for part in (speed, scores, made["without"]) if part), file=sys.stderr)


def export_command(argv: Sequence[str]) -> None:
    """Write a run's model for others."""
    parser = parser_of("export", "Write a run's model into a folder that transformers loads.")
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("folder", type=Path, help="is made")
    parser.add_argument(
        "--merge",
        action="store_true",
        help="only the plain model with the adaptation in its weights; refused where it cannot be",
    )
    parser.add_argument("--push-to-hub", metavar="NAME", help="upload the folder to the model hub, too")
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: for its owner alone")
    parser.add_argument("--task", help="which of its tasks, where the run learned several")
    options = parser.parse_args(argv)
    if options.private and not options.push_to_hub:
        raise ConfigurationError("--private without --push-to-hub NAME does nothing: give both")

    from glue_harness.export import export, push

    code = export(options.run, options.folder, options.merge, options.task)
    trusted = ", trust_remote_code=True" if code else ""
    print(f"written: pipeline('text-classification', '{options.folder}'{trusted})")
    if code:
        print(f"its adaptation cannot be merged: {code} puts it onto the base model, if it is trusted")
    if options.push_to_hub:
        print(f"pushed: {push(options.folder, options.push_to_hub, options.private)}")
