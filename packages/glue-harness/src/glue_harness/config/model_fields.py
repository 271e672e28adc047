"""Fields of the model's own configuration: `--model.classifier_dropout 0.2`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError, shown
from glue_harness.config.specification import load_yaml

__all__ = ["join_model_fields", "take_model_fields"]


def join_model_fields(content: Settings, on_line: Settings) -> JsonObject:
    """Join the model's fields from the file and from the command line, which wins."""
    in_file = content.get("model_config") or {}
    if not isinstance(in_file, Mapping):
        raise ConfigurationError(
            f"model_config={shown(in_file)}: give the fields of the model's configuration as "
            "'name: value' lines"
        )
    return {str(name): value for name, value in {**in_file, **on_line}.items()}


def take_model_fields(argv: Sequence[str]) -> tuple[JsonObject, list[str]]:
    """Take `--model.<field> VALUE` from a command line; values are read as YAML.

    Returns:
        The fields, and the rest of the command line.

    Examples:
        >>> take_model_fields(["--model", "demo", "--model.num_hidden_layers", "4", "--epochs=1"])
        ({'num_hidden_layers': 4}, ['--model', 'demo', '--epochs=1'])
    """
    fields, rest, tokens = {}, [], iter(argv)
    for token in tokens:
        option, equals, value = token.partition("=")
        if not option.startswith("--model."):
            rest.append(token)
            continue
        text = value if equals else next(tokens, None)
        if text is None:
            raise ConfigurationError(f"{option} needs a value after it")
        try:
            fields[option.removeprefix("--model.").replace("-", "_")] = load_yaml(text)
        except yaml.YAMLError:
            raise ConfigurationError(f"{option} {shown(text)} is not valid YAML: give a value") from None
    return fields, rest
