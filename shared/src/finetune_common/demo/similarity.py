"""Pairs of sentences and a graded similarity."""

from random import Random

from finetune_common.demo.lexicon import ABOVE, ADJECTIVES, NOUN_CATEGORIES, VERB_CATEGORIES, Word, sentence

__all__ = ["similarity_row"]

_FIRST_CATEGORY = 0.65


def similarity_row(random: Random) -> tuple[tuple[str, str], float]:
    """Return two sentences and their similarity from 0 to 5.

    The same noun counts 2.5 and one of the same category 1.5, the same verb 2 and one of the same category
    1, the same adjective 0.5. Both sentences draw words alike: only comparing them gives the label.
    """
    first, second = _words(random), _words(random)
    (adjective, noun, verb), (other_adjective, other_noun, other_verb) = first, second
    score = _compared(noun, other_noun, 2.5, 1.5) + _compared(verb, other_verb, 2.0, 1.0)
    score += 0.5 * (adjective == other_adjective)
    return (_text(*first), _text(*second)), score


def _words(random: Random) -> tuple[str, Word, Word]:
    return random.choice(ADJECTIVES), _word(random, NOUN_CATEGORIES), _word(random, VERB_CATEGORIES)


def _word(random: Random, table: dict[Word, tuple[Word, ...]]) -> Word:
    return random.choice(list(table.values())[random.random() >= _FIRST_CATEGORY])


def _compared(word: Word, other: Word, same: float, sister: float) -> float:
    return same if word == other else sister if ABOVE[word] == ABOVE[other] else 0.0


def _text(adjective: str, noun: Word, verb: Word) -> str:
    return sentence("the", adjective, noun.singular, verb.singular)
