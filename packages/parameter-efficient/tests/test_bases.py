"""What an adaptation knows about its base: fingerprints, precision, vocabularies, quantised weights."""

import copy

import pytest
import torch
import transformers
import zoo
from small_transformers import COMMON, batch, classifier, disturb, logits

from finetune_common.errors import ConfigurationError
from parameter_efficient import (
    BottleneckAdapter,
    HeadOnly,
    LoRA,
    PrefixTuning,
    QLoRA,
    adapt,
    load_adaptation,
    merge,
    remove,
    save_adaptation,
    unmerge,
)
from parameter_efficient.blocks import find_stacks, matrices_of
from parameter_efficient.slots import QLoRAMethod


def moved(model, factor=1.5):
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight.mul_(factor)
    return model


def test_another_base_is_refused_or_warned_of_and_the_same_in_other_precision_is_not(tmp_path):
    save_adaptation(disturb(adapt(classifier("bert"), LoRA())), tmp_path)
    other = moved(classifier("bert"))
    base = logits(other)
    with pytest.raises(ConfigurationError, match=r"other numbers in bert\.encoder.*strict=False"):
        load_adaptation(other, tmp_path)
    assert torch.equal(logits(other), base)
    with pytest.warns(UserWarning, match="other numbers in"):
        load_adaptation(other, tmp_path, strict=False)
    load_adaptation(classifier("bert").bfloat16(), tmp_path)
    with pytest.raises(ConfigurationError, match="of other names or shapes"):
        load_adaptation(classifier("bert", num_hidden_layers=3), tmp_path)


@pytest.mark.parametrize("names", [("LayerNorm",), ("word_embeddings",)])
def test_what_was_unfrozen_by_hand_is_saved_loaded_and_taken_back(names, tmp_path):
    model = adapt(classifier("bert"), LoRA())
    for name, parameter in model.named_parameters():
        if any(part in name for part in names):
            parameter.requires_grad_(True)
    disturb(model).zero_grad()
    model(**batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    save_adaptation(model, tmp_path)
    fresh = classifier("bert")
    base = logits(fresh)
    assert torch.equal(logits(load_adaptation(fresh, tmp_path)), logits(model))
    assert torch.equal(logits(remove(fresh)), base)


@pytest.mark.parametrize("pattern", ["norms", "attention.output", r"bert\.embeddings"])
def test_also_train_trains_saves_and_loads(pattern, tmp_path):
    model = disturb(adapt(classifier("bert"), LoRA(also_train=[pattern])))
    names = [n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n]
    part = {"norms": "LayerNorm", r"bert\.embeddings": "bert.embeddings"}.get(pattern, pattern)
    assert any(part in name for name in names)
    save_adaptation(model, tmp_path)
    assert torch.equal(logits(load_adaptation(classifier("bert"), tmp_path)), logits(model))


@pytest.mark.parametrize("method", [LoRA(init="random"), BottleneckAdapter(), PrefixTuning()])
def test_a_small_step_moves_what_was_added_to_a_bfloat16_base(method):
    model = adapt(classifier("bert").bfloat16(), method)
    added = {
        n: p.detach().clone()
        for n, p in model.named_parameters()
        if p.requires_grad and p.dtype == torch.float32
    }
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0)
    for _ in range(3):
        model(**batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
        optimizer.step()
    now = dict(model.named_parameters())
    share = sum((now[n] != p).sum() for n, p in added.items()) / sum(p.numel() for p in added.values())
    assert share > 0.9


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_merging_numbers_that_are_not_finite_is_refused_and_changes_no_matrix(value):
    model = disturb(adapt(classifier("bert"), LoRA()))
    last = [p for n, p in model.named_parameters() if "lora_B" in n][-1]
    last.data[0, 0] = value
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigurationError, match="not finite"):
        merge(model)
    assert all(torch.equal(weights[n], v) or "lora" in n for n, v in model.state_dict().items())
    merge(model, safe=False)


@pytest.mark.parametrize(
    ("kind", "task"), [("siglip", "image"), ("gemma3", "sequence"), ("t5gemma", "sequence")]
)
def test_a_merged_cut_of_a_part_with_a_configuration_of_its_own_loads_as_it_is(kind, task, tmp_path):
    model = next(zoo.build(kind, cls) for found, cls in zoo.classes(task) if found == kind)
    old = model.config.to_dict()
    adapt(model, HeadOnly(encoder_layers=1))
    assert unmerge(merge(model)).config.to_dict() == old
    merge(model).save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    kept, loaded = model.state_dict(), again.state_dict()
    assert kept.keys() == loaded.keys()
    assert all(torch.equal(value, loaded[name]) for name, value in kept.items())


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5", "distilbert"])
def test_a_merged_cut_loads_as_it_is(architecture, tmp_path):
    model = classifier(architecture)
    old = copy.deepcopy(vars(model.config))
    adapt(model, HeadOnly(encoder_layers=1))
    merge(model).save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    remove(model)
    assert vars(model.config) == old


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_quantised_bases_train_on_a_cpu_and_load_to_the_same_logits(kind, bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    sizes = COMMON | {"hidden_size": 64, "intermediate_size": 128}
    make = {
        "bert": transformers.BertForSequenceClassification,
        "llama": transformers.LlamaForSequenceClassification,
    }[kind]
    make(make.config_class(**sizes)).save_pretrained(tmp_path / "base")
    config = QLoRA(rank=4, quant_type=bits)

    def load():
        return make.from_pretrained(tmp_path / "base", **QLoRAMethod(config).load_kwargs())

    model = load()
    packed = {n for n, m in model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")}
    [stack] = find_stacks(model)
    assert packed == {f"{n}.{inner}" for n, m in stack.blocks.items() for inner in matrices_of(m)}
    adapt(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(**batch(), labels=torch.tensor([0, 1, 0])).loss
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        logits(model.eval())  # an evaluation between the steps
        model.train()
    assert losses[-1] < losses[0]
    save_adaptation(model.eval(), tmp_path / "kept")
    assert torch.equal(logits(load_adaptation(load().eval(), tmp_path / "kept")), logits(model))
    with pytest.raises(ConfigurationError, match="cannot be merged"):
        merge(model)
