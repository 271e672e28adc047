"""Rows at the end of a vocabulary train alone, as if the whole matrix trained and the others were kept."""

import copy

import pytest
import torch
import zoo
from small_transformers import classifier, disturb
from transformers import ViTForImageClassification

from finetune_common.errors import ConfigurationError
from parameter_efficient import (
    HeadOnly,
    LoRA,
    adapt,
    load_adaptation,
    merge,
    remove,
    save_adaptation,
    unmerge,
)
from parameter_efficient.new_tokens import NewTokens

NEW = 3
MODELS = {
    "gpt2": "causal",  # tied to its head
    "llama": "causal",  # not tied
    "gemma3_text": "causal",  # scaled embeddings
    "inkling_text": "causal",  # normalised embeddings
    "bert": "masked",  # a tied head with a bias
    "deberta-v2": "masked",  # a head that reads the matrix out of the embeddings
    "bart": "seq2seq",  # two embeddings and a head share one matrix
}


def base(kind):
    """A model whose vocabulary has three new tokens, and a bias that is not zero."""
    cls = next(cls for found, cls in zoo.classes(MODELS[kind]) if found == kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.build(kind, cls)
        model.resize_token_embeddings(96 + NEW, mean_resizing=False)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    return model.eval()


def inputs(kind):
    ids = torch.tensor([[5, 97, 98, 7, 96, 9], [98, 11, 12, 97, 6, 8]])
    decoder = {"decoder_input_ids": ids.flip(0)} if MODELS[kind] == "seq2seq" else {}
    return {"input_ids": ids, **decoder}


def logits(model, kind):
    with torch.no_grad():
        return model(**inputs(kind), use_cache=False).logits


def train(model, kind, parameters, changed=lambda gradient: gradient):
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs(kind), labels=inputs(kind)["input_ids"]).loss.backward()
        for parameter in parameters:
            parameter.grad = changed(parameter.grad)
        optimizer.step()


def only_the_last(gradient):
    gradient[:-NEW] = 0
    return gradient


@pytest.mark.parametrize("kind", MODELS)
def test_new_rows_train_as_in_the_whole_matrix_and_merge_to_the_same_logits(kind, tmp_path):
    model, whole = base(kind), base(kind)
    first, weights = logits(model, kind), copy.deepcopy(model.state_dict())
    adapt(model, HeadOnly(head="none", new_tokens=NEW))
    [rows] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(rows) == NEW
    torch.testing.assert_close(logits(model, kind), first)
    train(model, kind, [rows])
    train(whole, kind, [whole.get_input_embeddings().weight], only_the_last)
    adapted = logits(model, kind)
    assert not torch.allclose(adapted, first, atol=1e-3)
    torch.testing.assert_close(adapted, logits(whole, kind))
    save_adaptation(model, tmp_path)
    assert torch.equal(logits(load_adaptation(base(kind), tmp_path), kind), adapted)
    torch.testing.assert_close(logits(merge(model), kind), adapted)
    assert list(model.state_dict()) == list(weights)
    assert torch.equal(logits(unmerge(model), kind), adapted)
    assert torch.equal(logits(remove(model), kind), first)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_new_rows_train_beside_a_method_in_a_compiled_model():
    model = disturb(adapt(base("gpt2"), LoRA(new_tokens=NEW)))
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, "gpt2"), logits(model, "gpt2"))


class Mixture(torch.nn.Embedding):
    """Words that are mixed in given shares."""

    def forward(self, shares):
        return torch.tanh(shares @ self.weight)


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (lambda: Mixture(9, 4), torch.rand(2, 3, 9)),
        (lambda: Mixture(9, 9), torch.rand(2, 3, 9)),
        (lambda: torch.nn.Embedding(9, 4, padding_idx=8), torch.tensor([[1, 8, 7], [0, 7, 8]])),
        (lambda: torch.nn.Embedding(9, 4, padding_idx=0), torch.tensor([[1, 8, 7], [0, 7, 8]])),
        (lambda: torch.nn.EmbeddingBag(9, 4), torch.tensor([[1, 8, 7], [0, 7, 8]])),
    ],
    ids=["mixed", "as many as wide", "padding is new", "padding is old", "bags"],
)
def test_any_module_that_holds_the_vocabulary_acts_as_with_the_whole(make, given):
    words, whole = make(), make()
    whole.load_state_dict(words.state_dict())
    model = torch.nn.Sequential(words)
    model.get_input_embeddings = lambda: words
    new = NewTokens(model, 2, "model")
    with torch.no_grad():
        new.rows.mul_(3)
        whole.weight[-2:] = new.rows
    torch.testing.assert_close(model(given), whole(given))
    model(given).pow(3).sum().backward()
    whole(given).pow(3).sum().backward()
    torch.testing.assert_close(new.rows.grad, whole.weight.grad[-2:])


def test_a_model_can_be_copied_after_a_pass():
    """The rows are of another dtype than the vocabulary, and the head's bias trains."""
    model = adapt(base("bert").bfloat16(), HeadOnly(head="none", new_tokens=NEW))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    first = model(**inputs("bert")).logits
    assert torch.equal(copy.deepcopy(model)(**inputs("bert")).logits, first)


def test_a_pass_that_fails_leaves_the_vocabulary_in_its_place():
    model = adapt(base("gpt2"), HeadOnly(head="none", new_tokens=NEW))
    words = model.get_input_embeddings()
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[999]]))
    assert isinstance(words.weight, torch.nn.Parameter)


@pytest.mark.parametrize(
    ("make", "count", "message"),
    [
        (lambda: classifier("bert"), 50, "the vocabulary has only 50 tokens"),
        (lambda: zoo.build("vit", ViTForImageClassification), 2, "has no vocabulary"),
    ],
)
def test_tokens_that_the_vocabulary_does_not_have_are_refused(make, count, message):
    with pytest.raises(ConfigurationError, match=f"new_tokens={count}: .*{message}"):
        adapt(make(), LoRA(new_tokens=count))
