"""Configurations of peft: its methods with this package's head, counting, files and removal."""

import copy

import peft
import pytest
import torch
import transformers
from small_transformers import batch, classifier, disturb, logits

from finetune_common.errors import ConfigurationError
from parameter_efficient import ThroughPeft, adapt, load_adaptation, merge, remove, save_adaptation, unmerge

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),  # peft's own, of its own norms
]

MATRICES = ["query", "value"]
CONFIGURATIONS = {
    "lora": peft.LoraConfig(r=2, target_modules=MATRICES),
    "vera": peft.VeraConfig(r=4, target_modules=MATRICES),
    "loha": peft.LoHaConfig(r=2, target_modules=MATRICES),
    "lokr": peft.LoKrConfig(r=2, target_modules=MATRICES),
    "oft": peft.OFTConfig(r=0, oft_block_size=4, target_modules=MATRICES),
    "hra": peft.HRAConfig(r=2, target_modules=MATRICES),
    "fourierft": peft.FourierFTConfig(n_frequency=20, target_modules=MATRICES),
    "ia3": peft.IA3Config(target_modules=MATRICES, feedforward_modules=[]),
    "norms": peft.LNTuningConfig(target_modules=["LayerNorm"]),
}


@pytest.mark.parametrize("method", CONFIGURATIONS)
def test_a_method_of_peft_trains_saves_loads_merges_and_goes(method, tmp_path):
    model = classifier("bert")
    base, weights, names = logits(model), copy.deepcopy(model.state_dict()), list(model.state_dict())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    adapt(model, CONFIGURATIONS[method])
    assert torch.equal(torch.get_rng_state(), state)
    disturb(model).train()
    model(**batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trained
    assert {"classifier.weight", "bert.pooler.dense.weight"} < trained
    adapted = logits(model.eval())
    assert not torch.equal(adapted, base)
    save_adaptation(model, tmp_path)
    assert torch.equal(logits(load_adaptation(classifier("bert"), tmp_path)), adapted)
    torch.testing.assert_close(logits(merge(model)), adapted, atol=1e-4, rtol=1e-4)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(logits(unmerge(model)), adapted, atol=1e-6, rtol=1e-6)
    remove(model)
    assert all(torch.equal(weights[n], value) for n, value in model.state_dict().items())
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.PrefixTuningConfig(num_virtual_tokens=3), "wraps a whole model"),
        (peft.PromptTuningConfig(num_virtual_tokens=3), "wraps a whole model"),
        (peft.AdaLoraConfig(total_step=10, target_modules=MATRICES), "a call at every step"),
        (peft.LoraConfig(init_lora_weights="pissa", target_modules=MATRICES), "LoRA\\(init='pissa'\\)"),
        (peft.LoraConfig(bias="all", target_modules=MATRICES), "Fusion with BitFit"),
        (peft.LoHaConfig(target_modules=["nowhere"]), "peft cannot adapt BertForSequenceClassification"),
        (peft.TrainableTokensConfig(token_indices=[99]), "peft cannot adapt BertForSequenceClassification"),
        ("lora", "is not a configuration"),
        (ThroughPeft(settings={"peft_type": "NOTHING"}), "'NOTHING' is unknown to this peft: choose from"),
        (ThroughPeft(settings={"peft_type": "LOHA", "width": 3}), "peft refuses these settings of LOHA"),
    ],
)
def test_what_cannot_act_inside_of_a_model_is_refused_and_the_model_left_alone(config, message):
    model = classifier("bert")
    base, names = logits(model), [name for name, _ in model.named_modules()]
    with pytest.raises(ConfigurationError, match=message):
        adapt(model, config)
    assert torch.equal(logits(model), base)
    assert [name for name, _ in model.named_modules()] == names
    assert not hasattr(model, "peft_config")


def test_modules_to_save_train_beside():
    config = peft.LoHaConfig(r=2, target_modules=MATRICES, modules_to_save=["attention.output.LayerNorm"])
    model = adapt(classifier("bert"), config)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "bert.encoder.layer.0.attention.output.LayerNorm.weight" in trained


TOKENS = [3, 11]
ROWS = {
    "tokens": peft.TrainableTokensConfig(token_indices=TOKENS),
    "lora": peft.LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, trainable_token_indices=TOKENS
    ),
}


@pytest.mark.parametrize("how", ROWS)
@pytest.mark.parametrize("tied", [True, False])
def test_single_rows_of_the_vocabulary_train_merge_and_go(how, tied, tmp_path):
    def base():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2}
            config = transformers.GPT2Config(**sizes, tie_word_embeddings=tied)
            return transformers.GPT2LMHeadModel(config).eval()

    def logits(model):
        with torch.no_grad():
            return model(input_ids=torch.tensor([[3, 5, 11, 7]])).logits

    model = base()
    first, weights = logits(model), copy.deepcopy(model.state_dict())
    adapt(model, copy.deepcopy(ROWS[how]))
    assert torch.equal(logits(model), first)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(input_ids=torch.tensor([[3, 5, 11, 7]]), labels=torch.tensor([[5, 3, 7, 11]])).loss.backward()
        optimizer.step()
    adapted = logits(model)
    save_adaptation(model, tmp_path / "own")
    assert torch.equal(logits(load_adaptation(base(), tmp_path / "own")), adapted)
    save_adaptation(model, tmp_path / "peft", format="peft")
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(base(), tmp_path / "peft")), adapted)
    torch.testing.assert_close(logits(load_adaptation(base(), tmp_path / "peft")), adapted)
    torch.testing.assert_close(logits(merge(model)), adapted)
    assert list(model.state_dict()) == list(weights)
    changed = (model.get_input_embeddings().weight != weights["transformer.wte.weight"]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == TOKENS
    torch.testing.assert_close(logits(unmerge(model)), adapted)
    remove(model)
    assert all(torch.equal(weights[n], value) for n, value in model.state_dict().items())
    assert torch.equal(logits(model), first)
    assert not any("peft" in type(module).__module__ for module in model.modules())
