"""Pairs of quantified sentences, and whether the first entails the second."""

from random import Random

from finetune_common.demo.lexicon import CATEGORIES, VERB_CATEGORIES, Word, sentence

__all__ = ["entailment_row", "entails"]

Claim = tuple[str, Word, Word]
"""Quantifier, noun, verb: ("every", dog, run) is "every dog runs"."""

_ABOVE = {
    word: above for table in (CATEGORIES, VERB_CATEGORIES) for above, below in table.items() for word in below
}

_PAIRS = (
    ("some", "some"),
    ("every", "every"),
    ("no", "no"),
    ("every", "some"),
    ("no", "not every"),
    ("not every", "not every"),
)


def entails(premise: Claim, hypothesis: Claim) -> bool:
    """Return whether the hypothesis holds whenever the premise does; every noun is taken to have instances.

    Quantifiers are monotone: "some" upward in noun and verb, "every" downward in the noun and upward in the
    verb, "no" downward in both, "not every" upward in the noun and downward in the verb.
    """
    (first, noun, verb), (second, other_noun, other_verb) = premise, hypothesis
    up, down = _below(noun, other_noun), _below(other_noun, noun)
    verb_up, verb_down = _below(verb, other_verb), _below(other_verb, verb)
    match first, second:
        case "some", "some":
            return up and verb_up
        case "every", "every":
            return down and verb_up
        case "every", "some":
            return (up or down) and verb_up
        case "no", "no":
            return down and verb_down
        case "no", "not every":
            return (up or down) and verb_down
        case "not every", "not every":
            return up and verb_down
    return False


def entailment_row(random: Random) -> tuple[tuple[str, str], int]:
    """Return ((premise, hypothesis), label): 0 for entailment, 1 for not_entailment, as RTE on the hub."""
    wanted = random.random() < 0.5
    first, second = random.choice(_PAIRS)
    while True:
        premise = (first, _word(random, CATEGORIES), _word(random, VERB_CATEGORIES))
        hypothesis = (
            second,
            _near(random, premise[1], CATEGORIES),
            _near(random, premise[2], VERB_CATEGORIES),
        )
        if premise[1:] != hypothesis[1:] and entails(premise, hypothesis) == wanted:
            return (_text(premise), _text(hypothesis)), int(not wanted)


def _below(word: Word, other: Word) -> bool:
    return word == other or _ABOVE.get(word) == other


def _word(random: Random, table: dict[Word, tuple[Word, ...]]) -> Word:
    above = random.choice(list(table))
    return above if random.random() < 0.5 else random.choice(table[above])


def _near(random: Random, word: Word, table: dict[Word, tuple[Word, ...]]) -> Word:
    draw = random.random()
    if draw < 0.5:
        return word
    if draw < 0.9:
        return random.choice(table[word]) if word in table else _ABOVE[word]
    return _word(random, table)


def _text(claim: Claim) -> str:
    quantifier, noun, verb = claim
    return sentence(quantifier, noun.singular, verb.singular)
