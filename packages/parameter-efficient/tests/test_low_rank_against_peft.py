"""LoRA against peft's own model: same weights, same logits; and peft's checkpoints load."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_transformers import classifier, disturb, logits

from finetune_common.errors import ConfigurationError
from parameter_efficient import LoRA, adapt, load_adaptation, trainable_parameters

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""peft asks for it by its old name."""

BERT = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"}


def peft_model(layers=None, targets=("q", "v"), base="bert", **settings):
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=settings.pop("r", 2),
        lora_alpha=settings.pop("lora_alpha", 3),
        target_modules=[BERT[t] for t in targets],
        layers_to_transform=layers,
        **settings,
    )
    return disturb(get_peft_model(classifier(base), config)).eval()


CASES = {
    "plain": ({}, LoRA(rank=2, alpha=3, targets=("q", "v"))),
    "one layer, query and key": (
        {"layers": [1], "targets": ("q", "k"), "r": 1, "lora_alpha": 1},
        LoRA(layers=[1], rank=1, targets=("q", "k")),
    ),
    "rslora": ({"use_rslora": True, "r": 4}, LoRA(rank=4, alpha=3, rslora=True)),
    "gaussian": ({"init_lora_weights": "gaussian"}, LoRA(rank=2, alpha=3)),
    "dora": ({"use_dora": True}, LoRA(rank=2, alpha=3, dora=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_same_weights_give_the_same_logits(case):
    settings, config = CASES[case]
    theirs = peft_model(**settings)
    ours = adapt(classifier("bert"), config)
    weights = {n.removeprefix("base_model.model."): p for n, p in theirs.named_parameters()}
    weights = {
        n.replace("modules_to_save.default.", ""): p
        for n, p in weights.items()
        if ".original_module" not in n
    }
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(weights[name])
    assert torch.equal(logits(ours), logits(theirs))
    names = [n for n, p in theirs.named_parameters() if p.requires_grad and "lora" in n]
    assert sum("lora" in n for n, p in ours.named_parameters() if p.requires_grad) == len(names)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_peft_loads_to_equal_logits(case, tmp_path):
    settings, _ = CASES[case]
    theirs = peft_model(**settings)
    theirs.save_pretrained(tmp_path)
    ours = classifier("bert")
    # peft saves the classifier, but no pooler: it trains it neither.
    with torch.no_grad():
        for name, parameter in ours.bert.pooler.named_parameters():
            parameter.copy_(theirs.base_model.model.bert.pooler.get_parameter(name))
    load_adaptation(ours, tmp_path)
    assert torch.equal(logits(ours), logits(theirs))


def test_checkpoints_of_another_form_are_refused(tmp_path):
    peft_model(bias="lora_only").save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="trains biases"):
        load_adaptation(classifier("bert"), tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(described | {"bias": "none", "peft_type": "IA3"})
    )
    with pytest.raises(ConfigurationError, match="does not fit this BertForSequenceClassification"):
        load_adaptation(classifier("bert"), tmp_path)


@pytest.mark.parametrize("initialisation", ["pissa_niter_2"])
def test_a_checkpoint_that_changed_the_base_weights_is_refused(initialisation, tmp_path):
    peft_model(init_lora_weights=initialisation).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=f"init_lora_weights='{initialisation}'.*load it with peft"):
        load_adaptation(classifier("bert"), tmp_path)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        (LoRA(rank=4), 1.0),
        (LoRA(rank=4, alpha=8), 2.0),
        (LoRA(rank=4, alpha=8, rslora=True), 4.0),
        (LoRA(rank=4, rslora=True), 1.0),
    ],
)
def test_update_is_the_scaled_product(config, scaling):
    """W' = W + scaling · B A, by hand on the query of one layer."""
    model = disturb(adapt(classifier("bert"), config))
    query = model.bert.encoder.layer[0].attention.self.query
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    down, up = query.lora_A["default"].weight, query.lora_B["default"].weight
    weight = query.base_layer.weight + scaling * up @ down
    torch.testing.assert_close(query(x), x @ weight.T + query.base_layer.bias)


@pytest.mark.parametrize(("init", "bound"), [("normal", None), ("kaiming", 0.25), ("random", 0.25)])
def test_initial_values(init, bound):
    """N(0, 1), or U(-1/√16, 1/√16); 1,024 numbers: mean within 4 σ/32, standard deviation within 10 %."""
    model = adapt(classifier("bert"), LoRA(layers=[0], rank=32, targets=("q", "k"), init=init, seed=3))
    named = dict(model.named_parameters())
    down = torch.cat([p.flatten() for n, p in named.items() if "lora_A" in n])
    up = torch.cat([p.flatten() for n, p in named.items() if "lora_B" in n])
    std = 1.0 if bound is None else bound / 3**0.5
    assert down.numel() == 1024
    assert abs(down.mean()) < 4 * std / 32
    assert abs(down.std() / std - 1) < 0.1
    assert bound is None or down.abs().max() <= bound
    assert bool(up.any()) == (init == "random")


def test_dora_is_the_base_model_at_the_start_up_to_rounding():
    model = classifier("bert")
    base = logits(model)
    torch.testing.assert_close(logits(adapt(model, LoRA(dora=True))), base, atol=1e-6, rtol=1e-6)
    assert any("magnitude" in row.module for row in trainable_parameters(model).modules)
