"""Pairs of quantified sentences, and whether the first entails the second."""

from random import Random
from typing import NamedTuple

from finetune_common.demo.lexicon import ABOVE, ADJECTIVES, NOUN_CATEGORIES, VERB_CATEGORIES, Word, sentence

__all__ = ["Claim", "entailment_row", "entails"]


class Claim(NamedTuple):
    """The parts of "every old dog runs": the quantifier, an adjective or nothing, the noun, the verb."""

    quantifier: str
    adjective: str
    noun: Word
    verb: Word

    def text(self) -> str:
        """Return the sentence."""
        return sentence(self.quantifier, self.adjective, self.noun.singular, self.verb.singular)


_NOUN_UPWARD = {"some": True, "every": False, "no": False, "not every": True}
_VERB_UPWARD = {"some": True, "every": True, "no": False, "not every": False}
_WEAKER = {"every": "some", "no": "not every"}
_STRONGER = {weaker: stronger for stronger, weaker in _WEAKER.items()}

_QUANTIFIERS = {"some": 6, "every": 3, "no": 2, "not every": 1}
_CHANGES = {"noun": 14, "adjective": 2, "verb": 2, "quantifier": 2}
_HYPERNYM = 0.3
_ADJECTIVE = 0.5
_SISTER = 0.1


def entails(premise: Claim, hypothesis: Claim) -> bool:
    """Return whether the premise entails the hypothesis, if every noun phrase has instances.

    The quantifiers are monotone: "some" is upward in the noun phrase and in the verb, "every" downward and
    upward, "no" downward in both, "not every" upward and downward; "every" entails "some" and "no" entails
    "not every" of any noun phrase that is above or below.
    """
    narrower, wider = _within(premise, hypothesis), _within(hypothesis, premise)
    if premise.quantifier == hypothesis.quantifier:
        nouns = narrower if _NOUN_UPWARD[premise.quantifier] else wider
    else:
        nouns = _WEAKER.get(premise.quantifier) == hypothesis.quantifier and (narrower or wider)
    upward = _VERB_UPWARD[premise.quantifier]
    verbs = _below(premise.verb, hypothesis.verb) if upward else _below(hypothesis.verb, premise.verb)
    return nouns and verbs


def entailment_row(random: Random, label: int) -> tuple[str, str]:
    """Return a premise and a hypothesis that differ in one place: noun, adjective, verb or quantifier.

    A noun or verb gives way to its hypernym or the other way round (now and then to a sister, which is never
    entailed), an adjective comes or goes, a quantifier gets weaker or stronger. The place and the first
    quantifier do not depend on the label; only the direction does.

    Args:
        random: Draws the words.
        label: 0 for entailment, 1 for not_entailment, as RTE on the hub.
    """
    change = _weighted(random, _CHANGES)
    quantifier = _weighted(random, _QUANTIFIERS)
    if change == "quantifier":
        quantifier = random.choice(list(_WEAKER if label == 0 else _STRONGER))
    while True:
        premise = Claim(
            quantifier,
            random.choice(ADJECTIVES) if random.random() < _ADJECTIVE else "",
            _word(random, NOUN_CATEGORIES),
            _word(random, VERB_CATEGORIES),
        )
        hypothesis = _changed(random, premise, change)
        if hypothesis != premise and entails(premise, hypothesis) == (label == 0):
            return premise.text(), hypothesis.text()


def _changed(random: Random, claim: Claim, change: str) -> Claim:
    match change:
        case "noun":
            return claim._replace(noun=_moved(random, claim.noun, NOUN_CATEGORIES))
        case "verb":
            return claim._replace(verb=_moved(random, claim.verb, VERB_CATEGORIES))
        case "adjective":
            return claim._replace(adjective="" if claim.adjective else random.choice(ADJECTIVES))
        case _:
            return claim._replace(quantifier=(_WEAKER | _STRONGER)[claim.quantifier])


def _moved(random: Random, word: Word, table: dict[Word, tuple[Word, ...]]) -> Word:
    if word in table:
        return random.choice(table[word])
    return random.choice(table[ABOVE[word]]) if random.random() < _SISTER else ABOVE[word]


def _word(random: Random, table: dict[Word, tuple[Word, ...]]) -> Word:
    above = random.choice(list(table))
    return above if random.random() < _HYPERNYM else random.choice(table[above])


def _weighted(random: Random, weights: dict[str, int]) -> str:
    return random.choices(list(weights), list(weights.values()))[0]


def _within(claim: Claim, other: Claim) -> bool:
    return _below(claim.noun, other.noun) and other.adjective in ("", claim.adjective)


def _below(word: Word, other: Word) -> bool:
    return word == other or ABOVE.get(word) == other
