"""The commands `profile` and `capacity`: their options, and the calls they make."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_common.errors import ConfigurationError, check_number
from glue_harness.config.commands import CommandParser, parser_of

if TYPE_CHECKING:
    from finetune_common.aliases import JsonObject
    from glue_harness.config.fields import RunConfig

__all__ = ["capacity_command", "profile_command"]


def _steps_parser(command: str, description: str, compare: str) -> CommandParser:
    parser = parser_of(command, description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Options of run also apply: --model (presets such as bert-large-cased need no network),\n"
        "--model.FIELD VALUE, --batch-size, --max-length, --precision, --accumulate, and all slots."
    )
    parser.add_argument(
        "--compare",
        metavar="LIST",
        help=f"activation methods, each with a level after a colon if it has levels (default: the given "
        f"--activation, else {compare.replace(',', ', ')})",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="device to measure on, or to predict for (default: cpu)",
    )
    parser.add_argument(
        "--attention",
        choices=("eager", "sdpa", "flash"),
        help="plain operations, the kernel that torch chooses, or FlashAttention (default: the model's own "
        "choice, mostly sdpa)",
    )
    parser.add_argument("--output-dir", type=Path, help="folder for the JSON file, the table and figures")
    return parser


def _steps_config(
    rest: Sequence[str], compare: str | None, default: str, prog: str
) -> tuple[RunConfig, dict[str, JsonObject]]:
    """Read the options shared with `run`, and the activation methods to compare."""
    from glue_harness.config.parsing import parse_line
    from glue_harness.cost.choices import read_choices

    named = "--activation" in [token.partition("=")[0] for token in rest]
    filled = ["--task", "sst2", "--output-dir", "-", *rest]
    config, _ = parse_line(filled, prog)
    if compare is None and (named or config.activation["name"] != "none"):
        return config, {config.activation["name"]: config.activation}
    return config, read_choices(compare or default)


def profile_command(argv: Sequence[str]) -> None:
    """Measure training steps."""
    default = "none"
    parser = _steps_parser("profile", "Measure memory and speed of training steps on random rows.", default)
    parser.add_argument("--batch-sizes", metavar="LIST", help="several batch sizes, also drawn: 8,16,32")
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed steps, after two warm-up steps (default: 5)"
    )
    parser.add_argument(
        "--predict", action="store_true", help="predict memory from fake tensors instead; measures no time"
    )
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

    report = profile_steps(
        config,
        choices,
        sizes,
        options.device,
        options.output_dir,
        options.repeats,
        by="prediction" if options.predict else "measurement",
        attention=options.attention,
    )
    text = table(report)
    _keep(options.output_dir, "speed_results.md", text)


def capacity_command(argv: Sequence[str]) -> None:
    """Find the largest batch, depth or width that fits."""
    default = "none,checkpoint,compress:L1,compress:L2.2,compress+checkpoint"
    parser = _steps_parser(
        "capacity",
        "Find the largest batch, depth or width within a memory budget, without allocating it.",
        default,
    )
    parser.add_argument(
        "--budget",
        required=True,
        metavar="BYTES",
        help="16GiB, 500MB, …, or a GPU: T4, L4, A10, A100-40, H100, H200",
    )
    parser.add_argument(
        "--search",
        choices=("batch-size", "layers", "hidden", "intermediate"),
        default="batch-size",
        help="what to increase (default: batch-size)",
    )
    parser.add_argument(
        "--by",
        choices=("prediction", "measurement"),
        default="prediction",
        help="use fake tensors or real steps (default: prediction)",
    )
    options, rest = parser.parse_known_args(argv)
    config, choices = _steps_config(rest, options.compare, default, "glue-harness capacity")

    from glue_harness.cost.capacity import capacity, read_bytes, table

    budget = read_bytes(options.budget)
    report = capacity(
        config,
        options.search,
        budget,
        choices,
        by=options.by,
        device=options.device,
        attention=options.attention,
        output_dir=options.output_dir,
    )
    _keep(options.output_dir, f"max_{options.search.replace('-', '_')}_results.md", table(report))


def _keep(folder: Path | None, name: str, table: str) -> None:
    """Print a table, and write it if a folder was given."""
    print(f"\n{table}", end="")
    if folder is not None:
        from glue_harness.run.records import write_whole

        write_whole(folder / name, table)
