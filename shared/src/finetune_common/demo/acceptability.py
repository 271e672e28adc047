"""Sentences with or without an agreement violation."""

from random import Random

from finetune_common.demo.lexicon import ADJECTIVES, NOUNS, VERBS, sentence

__all__ = ["acceptability_row"]

_SINGULAR = 0.4
_DEMONSTRATIVE = 0.3
_ADJECTIVE = 0.5
_ATTRACTOR = 0.2


def acceptability_row(random: Random, acceptable: int) -> tuple[str]:
    """Return a sentence whose subject agrees with its demonstrative and verb, or disagrees with one of them.

    A noun, singular or plural, may stand between subject and verb. No single word decides the label: the
    subject's form does, together with the verb's or the demonstrative's.

    Args:
        random: Draws the words.
        acceptable: The label, 1 for a sentence without a violation.
    """
    plural = random.random() >= _SINGULAR
    demonstrative = random.random() < _DEMONSTRATIVE
    wrong = "" if acceptable else random.choice(["determiner", "verb"]) if demonstrative else "verb"
    determiner = ("this", "these")[plural != (wrong == "determiner")] if demonstrative else "the"
    adjective = random.choice(ADJECTIVES) if random.random() < _ADJECTIVE else ""
    subject = random.choice(NOUNS)[plural]
    attractor = f"near the {random.choice(random.choice(NOUNS))}" if random.random() < _ATTRACTOR else ""
    verb = random.choice(VERBS)[plural != (wrong == "verb")]
    return (sentence(determiner, adjective, subject, attractor, verb),)
