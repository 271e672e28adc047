"""The demo tasks: reproducible, disjoint, right by their rules, and beyond a bag of words."""

import hashlib
import json
from itertools import combinations, product

import numpy as np
import pytest
from scipy.sparse import hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from finetune_common.data import load_task
from finetune_common.demo import demo_rows, demo_tokenizer, demo_vocabulary
from finetune_common.demo.entailment import Claim, entails
from finetune_common.demo.lexicon import ABOVE, ADJECTIVES, NOUN_CATEGORIES, NOUNS, VERB_CATEGORIES, VERBS
from finetune_common.metrics import compute_metrics

DEMOS = ("demo-acceptability", "demo-entailment", "demo-similarity")
DIGESTS = {
    "demo-acceptability": "68361022c7d21d2b",
    "demo-entailment": "83e859f9ab801a39",
    "demo-similarity": "f1778839b8a5d259",
}


def texts(rows):
    return list(zip(*(rows[name] for name in rows if name.startswith("sentence")), strict=True))


@pytest.mark.parametrize("name", DEMOS)
def test_rows_are_pinned_distinct_and_as_many_as_promised(name):
    train, validation = demo_rows(name, "train"), demo_rows(name, "validation")
    digest = hashlib.sha256(json.dumps([train, validation]).encode()).hexdigest()
    assert digest[:16] == DIGESTS[name], "other rows under the same name: raise the task's version"
    assert len(texts(train)) == 2000
    assert len(texts(validation)) == 500
    assert len({*texts(train), *texts(validation)}) == 2500
    assert train["idx"] == list(range(2000))


@pytest.mark.parametrize("name", DEMOS[:2])
def test_classes_are_balanced(name):
    """2,000 labels of chance 1/2: five standard deviations of the mean are 0.056."""
    assert abs(np.mean(demo_rows(name, "train")["label"]) - 0.5) < 0.056


@pytest.mark.parametrize("name", DEMOS)
def test_the_tokenizer_knows_every_word(name):
    tokenizer = demo_tokenizer()
    for row in texts(demo_rows(name, "train")):
        encoded = tokenizer(*row)
        assert tokenizer.unk_token_id not in encoded["input_ids"]
        back = tokenizer.batch_decode([encoded["input_ids"]], skip_special_tokens=True)[0]
        assert back.replace(" .", ".") == " ".join(row).lower()


def test_the_tokenizer_is_bert_like():
    tokenizer = demo_tokenizer()
    assert tokenizer.get_vocab() == demo_vocabulary()
    assert sorted(demo_vocabulary().values()) == list(range(len(demo_vocabulary())))
    encoded = tokenizer("The dog sleeps.", "The unicorn sleeps.")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == (
        ["[CLS]", "the", "dog", "sleeps", ".", "[SEP]", "the", "[UNK]", "sleeps", ".", "[SEP]"]
    )
    assert encoded["token_type_ids"] == [0] * 6 + [1] * 5
    assert tokenizer("The dog.", padding="max_length", max_length=8)["attention_mask"] == [1] * 5 + [0] * 3


NUMBER = {word: number for words in (NOUNS, VERBS) for pair in words for number, word in enumerate(pair)}


def agrees(sentence):
    """Read the sentence word by word: determiner, adjective, subject, (near the noun), verb."""
    words = sentence.removesuffix(".").lower().split()
    subject = words[2] if words[1] in ADJECTIVES else words[1]
    determiner = {"this": 0, "these": 1, "the": NUMBER[subject]}[words[0]]
    return determiner == NUMBER[subject] == NUMBER[words[-1]]


def test_acceptability_is_agreement():
    rows = demo_rows("demo-acceptability", "train")
    assert [agrees(sentence) for sentence in rows["sentence"]] == [label == 1 for label in rows["label"]]
    assert sum("near the" in sentence for sentence in rows["sentence"]) > 200


def parse(sentence):
    words = sentence.removesuffix(".").lower().split()
    *quantifier, noun, verb = words
    adjective = quantifier.pop() if quantifier[-1] in ADJECTIVES else ""
    find = {word.singular: word for word in (*NOUNS, *NOUN_CATEGORIES, *VERBS, *VERB_CATEGORIES)}
    return Claim(" ".join(quantifier), adjective, find[noun], find[verb])


def holds(claim, world):
    """Whether the claim is true of a world of (noun, adjective, verbs); None where it is about nobody."""
    subjects = [
        {*verbs, *(ABOVE[verb] for verb in verbs)}
        for noun, adjective, verbs in world
        if claim.noun in (noun, ABOVE[noun]) and claim.adjective in ("", adjective)
    ]
    if not subjects:
        return None
    does = [claim.verb in verbs for verbs in subjects]
    quantifiers = {"some": any(does), "every": all(does), "no": not any(does), "not every": not all(does)}
    return quantifiers[claim.quantifier]


def leaves(words, table):
    return list(dict.fromkeys(leaf for word in words for leaf in table.get(word, [word])[:2]))


def entails_by_worlds(premise, hypothesis):
    """Look for a world in which the premise is true and the hypothesis false.

    Two individuals are enough: one that makes a claim true or gives it a subject, one for the other claim.
    """
    verbs = leaves((premise.verb, hypothesis.verb), VERB_CATEGORIES)
    doings = [chosen for size in range(len(verbs) + 1) for chosen in combinations(verbs, size)]
    nouns = leaves((premise.noun, hypothesis.noun), NOUN_CATEGORIES)
    beings = list(product(nouns, dict.fromkeys(("", premise.adjective, hypothesis.adjective)), doings))
    return not any(
        holds(premise, world) is True and holds(hypothesis, world) is False
        for size in (1, 2)
        for world in combinations(beings, size)
    )


def test_entailment_holds_in_every_world_exactly_where_the_rule_says():
    rows = demo_rows("demo-entailment", "validation")
    for (premise, hypothesis), label in list(zip(texts(rows), rows["label"], strict=True))[:120]:
        assert entails_by_worlds(parse(premise), parse(hypothesis)) == (label == 0), (premise, hypothesis)


def test_the_rule_covers_more_than_the_rows_show():
    animal, dog, cat = next(iter(NOUN_CATEGORIES)), *NOUNS[:2]
    move, walk, run = next(iter(VERB_CATEGORIES)), *VERBS[:2]
    quantifiers = ("some", "every", "no", "not every")
    for first, second, nouns, adjectives, verbs in product(
        quantifiers,
        quantifiers,
        [(dog, animal), (animal, dog), (dog, cat)],
        [("", ""), ("old", ""), ("", "old")],
        [(walk, walk), (walk, move), (move, walk), (walk, run)],
    ):
        premise = Claim(first, adjectives[0], nouns[0], verbs[0])
        hypothesis = Claim(second, adjectives[1], nouns[1], verbs[1])
        assert entails(premise, hypothesis) == entails_by_worlds(premise, hypothesis), (premise, hypothesis)


def test_similarity_counts_what_the_sentences_share():
    rows = demo_rows("demo-similarity", "train")
    category = {word.singular: above for word, above in ABOVE.items()}
    for (first, second), score in zip(texts(rows), rows["label"], strict=True):
        (_, *a), (_, *b) = first.removesuffix(".").split(), second.removesuffix(".").split()
        expected = 0.5 * (a[0] == b[0])
        for x, y, same, sister in ((a[1], b[1], 2.5, 1.5), (a[2], b[2], 2.0, 1.0)):
            expected += same if x == y else sister if category[x] == category[y] else 0.0
        assert score == expected
    assert {min(rows["label"]), max(rows["label"])} == {0.0, 5.0}


@pytest.mark.parametrize(
    ("name", "metric", "most"),
    [
        ("demo-acceptability", "matthews_correlation", 0.30),
        ("demo-entailment", "accuracy", 0.68),
        ("demo-similarity", "pearson", 0.40),
    ],
)
def test_a_bag_of_words_stays_well_below_the_rules(name, metric, most):
    """The rules give 1.0. Words are counted per sentence, so that premise and hypothesis are told apart."""
    data = load_task(name)
    columns = [column for column in data["train"].column_names if column.startswith("sentence")]
    bags = [CountVectorizer().fit(data["train"][column]) for column in columns]
    train, validation = (
        hstack([bag.transform(data[split][column]) for bag, column in zip(bags, columns, strict=True)])
        for split in ("train", "validation")
    )
    labels = np.array(data["train"]["label"][:])
    if name == "demo-similarity":
        outputs = Ridge().fit(train, labels).predict(validation)
    else:
        outputs = LogisticRegression(max_iter=1000).fit(train, labels).predict_proba(validation)
    assert compute_metrics(name, outputs, data["validation"]["label"][:])[metric] < most
