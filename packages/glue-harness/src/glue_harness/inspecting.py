"""How the user's own files would be read, printed without training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_common.aliases import Settings
from finetune_common.data.choices import Choices
from finetune_common.errors import ConfigurationError
from glue_harness.config.commands import CommandParser, parser_of
from glue_harness.config.fields import RunConfig
from glue_harness.config.help_texts import described_arguments
from glue_harness.config.own_rows import CHOICES, choices_of

if TYPE_CHECKING:
    from finetune_common.data import Schema

__all__ = ["inspect_command"]

SPLITS = ("train", "validation", "test")


def inspect_command(argv: Sequence[str]) -> None:
    """Print how data files are read; choices that `run` refuses to guess are marked `to decide`."""
    options = _parser().parse_args(argv)
    if len(options.files) > len(SPLITS):
        raise ConfigurationError(
            f"{len(options.files)} files: give at most three: to train on, to evaluate on, and to test on"
        )
    settings = vars(options)
    if options.text_columns:
        settings["text_columns"] = [name.strip() for name in options.text_columns.split(",")]
    schema = _schema(options, choices_of(settings))
    print(json.dumps(schema.as_dict(), indent=1) if options.json else schema)


def _parser() -> CommandParser:
    parser = parser_of("inspect", "Show how data files will be read, without training.")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="training rows; then, optionally, rows to evaluate on and rows to test on",
    )
    parser.add_argument("--task", default="mine", help="a known task, or a name of your own (default: mine)")
    described = described_arguments(RunConfig)
    for name in (*CHOICES, "metric"):
        more: Settings = {"action": "store_true"} if name == "drop_unlabelled" else {}
        if name == "validation_share":
            more = {"type": float}
        parser.add_argument(f"--{name.replace('_', '-')}", help=described[name].replace("%", "%%"), **more)
    parser.add_argument(
        "--model", help="also count the tokens of the texts, with the tokenizer of this model"
    )
    parser.add_argument(
        "--max-length", type=int, default=128, help="truncate texts to this many tokens (default: 128)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def _schema(options: argparse.Namespace, choices: Choices) -> Schema:
    from finetune_common.data import read_own_tables
    from finetune_common.data.files import read_table

    if len(options.files) > 1 and choices.validation_share is not None:
        raise ConfigurationError("--validation-share with a file to evaluate on: leave one of them out")
    tables = {split: read_table(file, choices) for split, file in zip(SPLITS, options.files, strict=False)}
    rows = read_own_tables(options.task, tables, choices)
    schema = rows.with_scores_of_no_model()
    if options.model is None:
        return schema

    from finetune_common.data import token_facts
    from glue_harness.run.models import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    facts = token_facts(rows.datasets()["train"], tokenizer, rows.task, options.max_length)
    return schema.with_tokens(facts)
