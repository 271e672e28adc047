"""peft's own format, both ways: the same logits from `PeftModel.from_pretrained` and `load_adaptation`."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_transformers import classifier, disturb, logits

from finetune_common.errors import ConfigurationError
from parameter_efficient import (
    IA3,
    BitFit,
    BottleneckAdapter,
    Fusion,
    LoRA,
    adapt,
    load_adaptation,
    merge,
    remove,
    save_adaptation,
    trainable_parameters,
    unmerge,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
]

OURS = {
    "plain": LoRA(rank=2, alpha=3.0),
    "rank-stabilised": LoRA(rank=4, alpha=3.0, rslora=True),
    "rank-stabilised, no scaling": LoRA(rank=4, rslora=True, rank_pattern={"v": 2}),
    "dora": LoRA(rank=2, dora=True),
    "ranks by role": LoRA(rank=2, targets=("q", "v", "ffn_out"), rank_pattern={"v": 3, "ffn_out": 1}),
    "ranks by layer": LoRA(rank=2, rank_pattern={r".*\.1\..*": 5}, alpha=4.0),
    "alphas": LoRA(rank=2, alpha=1.0, alpha_pattern={"q": 8.0}),
    "norms beside": LoRA(rank=2, also_train=("norms",)),
    "no head": LoRA(rank=2, head="none"),
    "pissa": LoRA(rank=2, init="pissa"),
    "olora": LoRA(rank=2, init="olora", alpha=4.0),
    "orthogonal": LoRA(rank=2, init="orthogonal"),
    "ia3": IA3(),
}


ELSEWHERE = [(case, "gpt2") for case in ("dora", "ranks by role", "pissa", "ia3")]
ELSEWHERE += [(case, "t5") for case in ("rank-stabilised", "norms beside", "olora")]


@pytest.mark.parametrize(("case", "architecture"), [*((case, "bert") for case in OURS), *ELSEWHERE])
def test_what_is_written_gives_peft_the_same_logits_and_loads_here_again(case, architecture, tmp_path):
    model = disturb(adapt(classifier(architecture), OURS[case]))
    save_adaptation(model, tmp_path, format="peft")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    theirs = PeftModel.from_pretrained(classifier(architecture), str(tmp_path)).eval()
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-6, rtol=1e-5)
    again = load_adaptation(classifier(architecture), tmp_path)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-6, rtol=1e-5)


THEIRS = {
    "ranks and alphas": {"rank_pattern": {"value": 4}, "alpha_pattern": {r"layer\.1\..*query": 9}},
    "rank-stabilised dora": {"use_rslora": True, "use_dora": True},
    "modules to save": {"modules_to_save": ["classifier", "pooler"]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "ia3": {"peft_type": "IA3"},
    "loha": {"peft_type": "LOHA"},
}


@pytest.mark.parametrize("case", THEIRS)
def test_what_peft_writes_gives_the_same_logits_here(case, tmp_path):
    import peft

    settings = dict(THEIRS[case])
    kind = settings.pop("peft_type", "LORA")
    kinds = {"LORA": LoraConfig, "IA3": peft.IA3Config, "LOHA": peft.LoHaConfig}
    settings |= {"feedforward_modules": []} if kind == "IA3" else {"r": 2}
    config = kinds[kind](target_modules=["query", "value"], **settings)
    theirs = disturb(get_peft_model(classifier("bert"), config)).eval()
    theirs.save_pretrained(str(tmp_path))
    ours = classifier("bert")
    base = logits(ours)
    load_adaptation(ours, tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-6, rtol=1e-5)
    assert torch.equal(logits(remove(ours)), base)


@pytest.mark.parametrize("config", [BitFit(), BottleneckAdapter(), Fusion(lora=LoRA(), bitfit=BitFit())])
def test_what_is_no_method_of_peft_is_refused_and_nothing_is_written(config, tmp_path):
    if isinstance(config, Fusion):
        config = Fusion(lora=LoRA(), adapter=BottleneckAdapter())
    model = adapt(classifier("bert"), config)
    with pytest.raises(ConfigurationError, match="without format='peft'"):
        save_adaptation(model, tmp_path / "kept", format="peft")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_starts_from_the_weights_is_the_base_model_and_gives_them_back(init):
    """The first B A is the best approximation of its rank (pissa) or the first columns of QR (olora)."""
    model = classifier("bert")
    base, weights = logits(model), {n: p.clone() for n, p in model.named_parameters()}
    adapt(model, LoRA(rank=3, targets=("q",), init=init))
    torch.testing.assert_close(logits(model), base, atol=1e-5, rtol=1e-5)
    layer = model.bert.encoder.layer[0].attention.self.query
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    whole = weights["bert.encoder.layer.0.attention.self.query.weight"]
    if init == "pissa":
        u, s, v = torch.linalg.svd(whole)
        expected = u[:, :3] @ torch.diag(s[:3]) @ v[:3]
    else:
        q, r = torch.linalg.qr(whole)
        expected = q[:, :3] @ r[:3]
    torch.testing.assert_close(update, expected, atol=1e-5, rtol=1e-4)
    adapted = logits(disturb(model))
    torch.testing.assert_close(logits(merge(model)), adapted, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(unmerge(model)), adapted)
    remove(model)
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())


def test_a_start_that_does_not_fit_transposed_matrices_is_refused():
    """gpt2's are kept as (inputs, outputs), which peft's QR does not see."""
    model = classifier("gpt2")
    base = logits(model)
    with pytest.raises(ConfigurationError, match=r"init='olora'.*use init='pissa'"):
        adapt(model, LoRA(targets=("o",), init="olora"))
    assert torch.equal(logits(model), base)


def test_ranks_of_their_own_count_by_the_formula():
    """r (d + d) for q and v in two layers of width 16: ranks 2 and, in layer 1, 5."""
    config = LoRA(rank=2, head="none", rank_pattern={"encoder.layer.1.attention.self.query": 5})
    assert trainable_parameters(adapt(classifier("bert"), config)).trainable == 32 * (2 + 2 + 5 + 2)
    with pytest.raises(ConfigurationError, match="rank_pattern='ffn_in' names none of the targets"):
        adapt(classifier("bert"), LoRA(rank_pattern={"ffn_in": 3}))


def test_a_damaged_or_unknown_checkpoint_is_named(tmp_path):
    save_adaptation(adapt(classifier("bert"), LoRA()), tmp_path, format="peft")
    file = tmp_path / "adapter_config.json"
    described = json.loads(file.read_text())
    for change, message in [
        ({"peft_type": "NOTHING"}, "'NOTHING' is unknown to this peft"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq' may have changed the base weights"),
        ({"bias": "all"}, "trains biases of the base"),
    ]:
        file.write_text(json.dumps(described | change))
        with pytest.raises(ConfigurationError, match=message):
            load_adaptation(classifier("bert"), tmp_path)
