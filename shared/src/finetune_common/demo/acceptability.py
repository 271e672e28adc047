"""Sentences with or without an agreement violation."""

from random import Random

from finetune_common.demo.lexicon import ADJECTIVES, NOUNS, VERBS, Word, sentence

__all__ = ["acceptability_row"]


def acceptability_row(random: Random) -> tuple[tuple[str], int]:
    """Return ((sentence,), label): 1 when the subject agrees with its determiner and its verb, else 0.

    The subject is singular or plural with equal chance, and so is a noun that stands between it and the verb:
    no word says anything about the label, only the subject's form together with the verb's or the
    determiner's.
    """
    plural = random.random() < 0.5
    acceptable = random.random() < 0.5
    demonstrative = random.random() < 0.5
    determiner_violation = not acceptable and demonstrative and random.random() < 0.5
    verb_violation = not acceptable and not determiner_violation
    determiner = Word("this", "these")[plural != determiner_violation] if demonstrative else "the"
    attractor = ("near the", random.choice(NOUNS)[random.random() < 0.5]) if random.random() < 0.3 else ()
    adjective = random.choice(ADJECTIVES) if random.random() < 0.3 else ""
    verb = random.choice(VERBS)[plural != verb_violation]
    return (sentence(determiner, adjective, random.choice(NOUNS)[plural], *attractor, verb),), int(acceptable)
