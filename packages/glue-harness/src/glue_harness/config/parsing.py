"""Command lines and YAML files to a `RunConfig`, through jsonargparse.

A slot's options depend on its method, so parsing takes two passes: the first finds the methods named on the
command line and in the file, the second knows every option. The command line wins over the file; if it names
another method than the file, the file's options for that slot are dropped.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from finetune_common.aliases import JsonObject, Settings
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, did_you_mean, shown
from finetune_common.slots import available, find
from glue_harness.config.fields import LIST_SLOTS, OPTION_FIELDS, SLOTS, RunConfig
from glue_harness.config.help_texts import HelpFormatter, described_arguments, placeholder
from glue_harness.config.messages import one_line
from glue_harness.config.model_fields import join_model_fields, take_model_fields
from glue_harness.config.specification import load_yaml, read_yaml

__all__ = ["as_choices", "options_of", "parse_line", "parse_mapping"]

Choice = JsonObject
"""A slot's method: its `name` and its options."""


def _as_choice(slot: str, value: object) -> Choice:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return dict(value)
    raise ConfigurationError(
        f"{slot}={shown(value)} is no method: give a name, or a mapping with a name and its options "
        f"({slot}: {{name: …, …}})"
    )


def as_choices(slot: str, value: object) -> list[Choice]:
    """Read `agni`, `{name: agni, eta: 0.01}`, a list of them, or nothing."""
    if value in (None, "none", "") and slot in LIST_SLOTS:
        return []
    if isinstance(value, str) and slot in LIST_SLOTS:
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, list) and slot in LIST_SLOTS:
        return [_as_choice(slot, part) for part in value]
    return [_as_choice(slot, value)]


def _read_config(path: str) -> JsonObject:
    content = read_yaml(Path(path), "--config ", "give a readable YAML file")
    if not isinstance(content, dict):
        raise ConfigurationError(f"--config {path}: expected 'option: value' lines, found {shown(content)}")
    return content


class _Parser(ArgumentParser):
    def format_help(self) -> str:
        """Show the option of a slot's method as users type it: `--optimizer`, not `--optimizer.name`."""
        return re.sub(rf"--({'|'.join(SLOTS)})\.name\b", r"--\1", super().format_help())

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigurationError(message)


def options_of(slot: str, method: str) -> JsonObject:
    """Return a method's options, each with its default."""
    return {
        option.name: option.default if option.default is not dataclasses.MISSING else option.default_factory()  # type: ignore[misc]
        for option in dataclasses.fields(find(slot, method).Options)
    }


def _add_options(group: Any, slot: str, method: str) -> None:
    options = find(slot, method).Options
    hints, described = get_type_hints(options), described_arguments(options)
    for option, default in options_of(slot, method).items():
        group.add_argument(
            f"--{slot}.{option}",
            type=hints[option],
            default=default,
            help=described.get(option, ""),
            metavar=placeholder(hints[option]),
        )


@cache
def _parser(chosen: tuple[tuple[str, ...], ...], prog: str) -> ArgumentParser:
    """Return a parser of all options, including those of the methods chosen for each slot."""
    parser = _Parser(
        prog=prog,
        usage=f"{prog} --task TASK --model MODEL --output-dir FOLDER [--OPTION VALUE ...]",
        description="Fine-tune a model on a task, and write the result to the run's folder.",
        epilog="A method's options are listed once it is chosen: 'run --optimizer sgd --help'. "
        "--model.FIELD VALUE changes a field of the model's configuration: '--model.classifier_dropout 0.2'.",
        formatter_class=HelpFormatter,
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with any of these options; the command line wins."
    )
    parser.add_argument("--print-config", action="store_true", help="Print the whole configuration and stop.")
    hints, described = get_type_hints(RunConfig), described_arguments(RunConfig)
    for option in OPTION_FIELDS:
        hint, default = hints[option.name], None if option.default is dataclasses.MISSING else option.default
        flag: Settings = {"action": "store_true"}
        if option.type != "bool":
            flag = {"type": hint if default is not None else hint | None, "metavar": placeholder(hint)}
        parser.add_argument(
            f"--{option.name.replace('_', '-')}", default=default, help=described[option.name], **flag
        )
    for slot, methods in zip(SLOTS, chosen, strict=True):
        names = ", ".join(available(slot)) or "none is installed"
        group = parser.add_argument_group(slot, f"{described[slot]} Installed: {names}.")
        method = methods[0] if len(methods) == 1 else None
        text = "Names of methods, separated by commas." if slot in LIST_SLOTS else "Name of a method."
        group.add_argument(f"--{slot}.name", metavar="NAME", type=str | None, default=method, help=text)
        if method:
            _add_options(group, slot, method)
    return parser


def _first_look(argv: Sequence[str]) -> tuple[JsonObject, dict[str, str]]:
    """Return the configuration file's content and the methods named on the command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", nargs="?")
    for slot in SLOTS:
        parser.add_argument(f"--{slot}", nargs="?")
    line_methods = vars(parser.parse_known_args(list(argv))[0])
    for option, value in line_methods.items():
        if value is None:
            raise ConfigurationError(f"--{option} needs a value after it")
    path = line_methods.pop("config", None)
    return (_read_config(path) if path else {}), line_methods


def _drop_slots(argv: Sequence[str]) -> list[str]:
    """Remove `--optimizer NAME` and `--config FILE`: the first pass has read them."""
    rest, skip = [], False
    for token in argv:
        option = token.partition("=")[0].removeprefix("--")
        if skip:
            skip = False
        elif token.startswith("--") and option in {*SLOTS, "config"}:
            skip = "=" not in token
        else:
            rest.append(token)
    return rest


def _merge(content: Settings, line_methods: Mapping[str, str]) -> dict[str, list[Choice]]:
    choices = {}
    for slot, default in SLOTS.items():
        choices[slot] = as_choices(slot, content.get(slot, default))
        if slot in line_methods:
            try:
                on_line = as_choices(slot, load_yaml(line_methods[slot]))
            except yaml.YAMLError:
                raise ConfigurationError(
                    f"--{slot} {shown(line_methods[slot])} is neither a name nor YAML: give a name, or "
                    "{name: …, option: value}"
                ) from None
            if [c["name"] for c in on_line] != [c["name"] for c in choices[slot]] or any(
                len(c) > 1 for c in on_line
            ):
                choices[slot] = on_line
    return choices


def _check_several(slot: str, choices: list[Choice]) -> list[Choice]:
    """Check the options of several methods in one slot, which have no flags."""
    checked = []
    for choice in choices:
        parser = _Parser(exit_on_error=False, default_env=False)
        parser.add_argument(f"--{slot}.name", type=str)
        _add_options(parser, slot, choice["name"])
        checked.append(
            _slot_value(
                _guarded(parser, {slot: [choice]}, lambda p, c=choice: p.parse_object({slot: c})), slot
            )
        )
    return checked


def _guarded(
    parser: ArgumentParser,
    choices: Mapping[str, list[Choice]],
    action: Callable[[ArgumentParser], Namespace],
) -> Namespace:
    """Run a parser; its errors become one line."""
    known = [option for a in parser._actions for option in a.option_strings if option.startswith("--")]
    try:
        return action(parser)
    except (ConfigurationError, argparse.ArgumentError, TypeError, KeyError) as error:
        raise ConfigurationError(one_line(str(error), choices, known)) from None


def _slot_value(parsed: Namespace, slot: str) -> Choice:
    """Construct the options, so that they check themselves; return them with the method's name."""
    values = parsed[slot].as_dict()
    name = values.pop("name")
    options = find(slot, name).Options
    for option in dataclasses.fields(options):
        if values[option.name] is None and option.default is not None:
            raise ConfigurationError(f"{slot}.{option.name} is empty: give a value, or leave it out")
    return {"name": name, **dataclasses.asdict(options(**values))}


def _parse(content: Settings, line_methods: Mapping[str, str], argv: Sequence[str], prog: str) -> Namespace:
    choices = _merge(content, line_methods)
    names = tuple(tuple(choice["name"] for choice in choices[slot]) for slot in SLOTS)
    # parsing a command line changes the parser's defaults, so such a parser must not be cached
    parser = _parser.__wrapped__(names, prog) if argv else _parser(names, prog)
    apart = (*SLOTS, "model_config")
    rest = {str(key).replace("-", "_"): value for key, value in content.items() if key not in apart}
    if unknown := [key for key in rest if key not in {f.name for f in OPTION_FIELDS}]:
        fields = [f.name for f in dataclasses.fields(RunConfig)]
        raise ConfigurationError(
            f"configuration key {unknown[0]!r} is unknown: {did_you_mean(unknown[0], fields)}"
        )
    if empty := [f.name for f in OPTION_FIELDS if f.default is not None and rest.get(f.name, f) is None]:
        raise ConfigurationError(f"configuration key {empty[0]!r} is empty: give a value, or leave it out")
    for f in OPTION_FIELDS:
        if f.type == "bool" and not isinstance(rest.get(f.name, False), bool):
            raise ConfigurationError(
                f"configuration key {f.name!r} is {shown(rest[f.name])}: give true or false"
            )
    if isinstance(rest.get("task"), list):
        rest["task"] = ",".join(map(str, rest["task"]))
    settings = rest | {slot: chosen[0] for slot, chosen in choices.items() if len(chosen) == 1}
    parsed = _guarded(parser, choices, lambda p: p.parse_object(settings, defaults=True))
    if argv:
        options = {action.dest for action in parser._actions} - {"help", "config", "print_config"}
        parser.set_defaults({option: parsed[option] for option in options if option in parsed})
        parsed = _guarded(parser, choices, lambda p: p.parse_args(_drop_slots(argv)))
    for slot, chosen in choices.items():
        if len(chosen) == 1:
            value = _slot_value(parsed, slot)
            parsed[slot] = [value] if slot in LIST_SLOTS else value
        else:
            parsed[slot] = _check_several(slot, chosen)
    return parsed


def _config(parsed: Namespace, model_config: JsonObject) -> RunConfig:
    values = {f.name: parsed[f.name] for f in dataclasses.fields(RunConfig) if f.name != "model_config"}
    values["model_config"] = model_config
    for required in ("task", "model", "output_dir"):
        if values[required] is None:
            raise ConfigurationError(
                f"--{required.replace('_', '-')} is missing: give it on the command line or in --config"
            )
    return RunConfig(**values)


def parse_line(argv: Sequence[str], prog: str = "glue-harness run") -> tuple[RunConfig, bool]:
    """Read a command line.

    Args:
        argv: What follows the command.
        prog: How the command is called, for `--help`.

    Returns:
        The configuration, and whether to print it only.

    Raises:
        ConfigurationError: One line that names the value and the remedy.
    """
    model_fields, argv = take_model_fields(argv)
    content, line_methods = _first_look(argv)
    parsed = _parse(content, line_methods, argv, prog)
    return _config(parsed, join_model_fields(content, model_fields)), parsed.print_config


@explain_arguments
def parse_mapping(content: Settings, options: Sequence[str] = ()) -> RunConfig:
    """Read a mapping with a YAML file's keys, and command-line options, which win.

    Examples:
        >>> config = parse_mapping({"task": "demo-entailment", "model": "demo", "output_dir": "runs/demo",
        ...                         "optimizer": {"name": "sgd", "lr": 0.1}})
        >>> config.optimizer["lr"], config.batch_size
        (0.1, 32)
        >>> parse_mapping(config.as_dict(), ["--optimizer.lr=0.2"]).optimizer["lr"]
        0.2
    """
    model_fields, options = take_model_fields(options)
    _, line_methods = _first_look(options)
    parsed = _parse(content, line_methods, options, "glue-harness run")
    return _config(parsed, join_model_fields(content, model_fields))
