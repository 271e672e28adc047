"""Pairs of sentences and a graded similarity."""

from random import Random

from finetune_common.demo.lexicon import ADJECTIVES, NOUNS, PLACES, VERBS, sentence

__all__ = ["similarity_row"]

_SLOTS = (ADJECTIVES, NOUNS, VERBS, PLACES)
_WEIGHTS = (0.5, 2.0, 1.5, 1.0)


def similarity_row(random: Random) -> tuple[tuple[str, str], float]:
    """Return ((sentence, sentence), score): 2 for the same noun, 1.5 verb, 1 place, 0.5 adjective; 0 to 5.

    Each word is drawn alike whether or not it is repeated: only the comparison of the two says anything.
    """
    first = [random.choice(words) for words in _SLOTS]
    second = [
        word if random.random() < 0.5 else random.choice(words)
        for word, words in zip(first, _SLOTS, strict=True)
    ]
    score = sum(weight for a, b, weight in zip(first, second, _WEIGHTS, strict=True) if a == b)
    return (_text(first), _text(second)), score


def _text(slots: list) -> str:
    adjective, noun, verb, place = slots
    return sentence("the", adjective, noun.singular, verb.singular, "in the", place)
