"""Messages of a parser, rewritten as one line with a remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from finetune_common.aliases import Settings
from finetune_common.errors import did_you_mean

__all__ = ["one_line"]

TYPES = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
}


def _readable(message: str) -> str:
    """Say in words which type was expected: `Expected a <class 'int'>. Got value: many`."""
    single = re.fullmatch(r"Expected an? (?P<types>.*?)\. Got value: (?P<value>.*)", message)
    any_of = re.fullmatch(r".*Subtypes: \[(?P<types>.*)\] Errors:.*Given value: (?P<value>.*)", message)
    if not (parsed := single or any_of):
        return message
    types = re.sub(r"<class '(\w+)'>", lambda match: TYPES.get(match[1], match[1]), parsed["types"])
    types = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", r"one of \1", types)
    return f"{parsed['value']} cannot be used: give {types.replace(', null', ' or null')}"


def _unknown_option(option: str, choices: Mapping[str, Sequence[Settings]], known: Sequence[str]) -> str:
    slot, dot, name = option.removeprefix("--").partition(".")
    if dot and slot not in choices:
        return (
            f"{option} is no option: give --model.FIELD for a field of the model's configuration, or "
            f"--SLOT.OPTION with SLOT one of {', '.join(choices)}"
        )
    if not dot:
        close = get_close_matches(option, [name for name in known if "." not in name], n=2, cutoff=0.7)
        remedy = (
            f"did you mean {' or '.join(map(repr, close))}?" if close else "see 'glue-harness run --help'"
        )
        return f"{option} is no option: {remedy}"
    if len(choices[slot]) != 1:
        return (
            f"{option}: its slot needs exactly one method: give --{slot} NAME, or write several methods with "
            "their options in a YAML file"
        )
    options = [other.removeprefix(f"--{slot}.") for other in known if other.startswith(f"--{slot}.")]
    options.remove("name")
    remedy = did_you_mean(name, options) if options else "it has no options: leave this out"
    return f"{option} is no option of {slot} {choices[slot][0]['name']!r}: {remedy}"


def one_line(message: str, choices: Mapping[str, Sequence[Settings]], known: Sequence[str]) -> str:
    """Rewrite a parser's message as one line with a remedy."""
    message = " ".join(message.split())
    if wrong := re.match(
        r"[Uu]nrecognized arguments: (--[\w.-]+)|.*'?(?:Key|key|Option) '([\w.-]+)' is not", message
    ):
        return _unknown_option(wrong[1] or f"--{wrong[2]}".replace("_", "-"), choices, known)
    if wrong := re.match(r"[Uu]nrecognized arguments: (.*)", message):
        return f"{wrong[1]!r} is not the value of any option; see 'glue-harness run --help'"
    if wrong := re.match(r'Parser key "([\w.]+)": (.*)', message):
        return f"--{wrong[1].replace('_', '-')}: {_readable(wrong[2])}"
    return message
