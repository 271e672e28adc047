"""LoReFT against the formula, written out token by token, and its positions in padded rows."""

import copy
from typing import Any

import pytest
import torch
import zoo
from small_transformers import batch, classifier, disturb, logits, past_of
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient import LoReFT, adapt, load_adaptation, save_adaptation


def written_out(h: Tensor, mask: Tensor, positions: Any, weights: dict[str, Tensor]) -> Tensor:
    """h' = h + Rᵀ (W h + b - R h), by loops; R from the free matrix by Gram and Schmidt."""
    rows: list[Tensor] = []
    for row in weights["free"]:
        rest = row - sum((row @ other) * other for other in rows)
        rows.append(rest / rest.norm())
    changed = h.clone()
    for number, tokens in enumerate(mask):
        real = [place for place, one in enumerate(tokens) if one]
        if positions != "all":
            first, last = positions
            real = [p for n, p in enumerate(real) if n < first or n >= len(real) - last]
        for place in real if positions != "all" else range(len(tokens)):
            old = h[number, place]
            for r, row in enumerate(rows):
                wanted = weights["source.weight"][r] @ old + weights["source.bias"][r]
                changed[number, place] += row * (wanted - row @ old)
    return changed


@pytest.mark.parametrize("positions", ["all", (2, 0), (0, 1), (1, 2), (9, 9)])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_chosen_tokens_change_by_the_formula_and_no_others(positions: Any, padding: str) -> None:
    base = classifier("bert")
    model = disturb(adapt(copy.deepcopy(base), LoReFT(layers=[0], rank=3, positions=positions)), 0.3)
    given = batch()
    if padding == "left":
        given = {name: value.flip(1) for name, value in given.items()}
    with torch.no_grad():
        plain = base(**given, output_hidden_states=True).hidden_states[1]
        found = model(**given, output_hidden_states=True).hidden_states[1]
    weights = {n: p.detach() for n, p in model.bert.encoder.layer[0].loreft.named_parameters()}
    expected = written_out(plain, given["attention_mask"], positions, weights)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, plain)


def test_a_rows_change_does_not_depend_on_padding_or_neighbours() -> None:
    model = disturb(adapt(classifier("bert"), LoReFT(rank=2, positions=(1, 1))))
    given = batch()
    alone = {name: value[:1, :5] for name, value in given.items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**alone).logits, model(**given).logits[:1])
        torch.testing.assert_close(model(alone["input_ids"]).logits, model(**alone).logits)


def test_a_generated_text_changes_at_its_prompt_only() -> None:
    """With a cache, each further token is what the changed prompt and the base model's own layers give."""
    model = next(zoo.build(kind, cls) for kind, cls in zoo.classes("causal") if kind == "llama")
    disturb(adapt(model, LoReFT(rank=2, positions=(1, 1))), 0.3)
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        step = model(input_ids=ids, use_cache=True)
        past = past_of(step)
        after = model(input_ids=ids[:, :1], **copy.deepcopy(past)).logits
        for layer in model.model.layers:
            layer.loreft.source.weight.copy_(layer.loreft.rows())
            layer.loreft.source.bias.zero_()
        unchanged = model(input_ids=ids[:, :1], **past).logits
    torch.testing.assert_close(after, unchanged)


def test_positions_are_saved_and_checked(tmp_path: Any) -> None:
    model = disturb(adapt(classifier("roberta"), LoReFT(positions=[1, 1])))
    save_adaptation(model, tmp_path)
    assert torch.equal(logits(load_adaptation(classifier("roberta"), tmp_path)), logits(model))
    for wrong in ([1], [-1, 1], [0, 0], "last", [1.0, 1]):
        with pytest.raises(ConfigurationError, match=r"positions=.* cannot be used: give how many first"):
            LoReFT(positions=wrong)
    given = batch()
    four = nn.functional.pad(given["attention_mask"][:, None, None].bool(), (0, 0))
    with pytest.raises(ConfigurationError, match=r"needs an attention mask of shape \(3, 7\)"):
        model(input_ids=given["input_ids"], attention_mask=four)
