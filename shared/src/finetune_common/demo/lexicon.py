"""The words of the demo tasks and what they mean."""

from typing import NamedTuple

__all__ = [
    "ABOVE",
    "ADJECTIVES",
    "FUNCTION_WORDS",
    "NOUNS",
    "NOUN_CATEGORIES",
    "VERBS",
    "VERB_CATEGORIES",
    "Word",
    "sentence",
    "words",
]


class Word(NamedTuple):
    """A noun (singular, plural) or a verb (third person singular, plural)."""

    singular: str
    plural: str


def _nouns(text: str) -> tuple[Word, ...]:
    return tuple(Word(noun, noun + "s") for noun in text.split())


def _verbs(text: str) -> tuple[Word, ...]:
    return tuple(Word(verb + "s", verb) for verb in text.split())


NOUN_CATEGORIES = {
    Word("animal", "animals"): _nouns("dog cat horse cow"),
    Word("worker", "workers"): _nouns("doctor farmer singer baker"),
}
"""Hypernym → the nouns below it; nothing is below both."""

VERB_CATEGORIES = {
    Word("moves", "move"): _verbs("walk run jump swim"),
    Word("rests", "rest"): _verbs("sleep sit wait dream"),
}
"""Hypernym → the verbs below it; nothing is below both."""

NOUNS = tuple(noun for nouns in NOUN_CATEGORIES.values() for noun in nouns)
VERBS = tuple(verb for verbs in VERB_CATEGORIES.values() for verb in verbs)
ABOVE = {
    word: above
    for table in (NOUN_CATEGORIES, VERB_CATEGORIES)
    for above, below in table.items()
    for word in below
}
"""Noun or verb → its hypernym."""

ADJECTIVES = ("old", "young", "tall", "small")
FUNCTION_WORDS = ("the", "this", "these", "near", "every", "some", "no", "not", ".")


def words() -> list[str]:
    """Return every word of the three tasks once, in a fixed order."""
    inflected = [*NOUN_CATEGORIES, *NOUNS, *VERB_CATEGORIES, *VERBS]
    everything = [*FUNCTION_WORDS, *ADJECTIVES, *(form for word in inflected for form in word)]
    return list(dict.fromkeys(everything))


def sentence(*parts: str) -> str:
    """Join the parts that are not empty, begin with a capital, end with a full stop.

    Examples:
        >>> sentence("the", "", "dog", "sleeps")
        'The dog sleeps.'
    """
    text = " ".join(part for part in parts if part)
    return text[0].upper() + text[1:] + "."
