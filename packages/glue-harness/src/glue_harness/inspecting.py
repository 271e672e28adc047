"""How the user's own files would be read, printed without training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from docstring_parser import parse as parse_docstring

from finetune_common.data.choices import Choices
from finetune_common.errors import ConfigurationError
from glue_harness.config.commands import CommandParser, parser_of
from glue_harness.config.fields import RunConfig
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
            f"{len(options.files)} files: give at most three, to train on, to evaluate on, and to test"
        )
    settings = vars(options)
    if options.text_columns:
        settings["text_columns"] = [name.strip() for name in options.text_columns.split(",")]
    schema = _schema(options, choices_of(settings))
    print(json.dumps(schema.as_dict(), indent=1) if options.json else schema)


def _parser() -> CommandParser:
    parser = parser_of("inspect", "Print what data files will be read as, without training.")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="rows to train on; then rows to evaluate on, and to test, if any",
    )
    parser.add_argument("--task", default="mine", help="name of a known task, or one of your own (mine)")
    described = {
        argument.arg_name: argument.description
        for argument in parse_docstring(RunConfig.__doc__ or "").params
    }
    for name in (*CHOICES, "metric"):
        more: dict[str, Any] = {"action": "store_true"} if name == "drop_unlabelled" else {}
        if name == "validation_share":
            more = {"type": float}
        parser.add_argument(f"--{name.replace('_', '-')}", help=_one_line(described[name]), **more)
    parser.add_argument(
        "--model", help="whose tokenizer measures the length of the texts; without it, none does"
    )
    parser.add_argument(
        "--max-length", type=int, default=128, help="tokens to which a text is truncated (128)"
    )
    parser.add_argument("--json", action="store_true", help="print plain data instead of a block")
    return parser


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("%", "%%")


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
