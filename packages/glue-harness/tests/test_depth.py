"""Another depth than a configuration was made for: what it lists layer by layer follows."""

import pytest
import torch
import transformers

from finetune_common.errors import ConfigurationError
from glue_harness.config.parsing import parse_line
from glue_harness.cost.capacity import resized
from glue_harness.cost.footprint import predict
from glue_harness.cost.steps import Steps
from glue_harness.run.architectures import changed

NARROW = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FEW_HEADS = {"num_key_value_heads": 1, "head_dim": 8}
TINY = {
    "modernbert": transformers.ModernBertConfig(
        **NARROW, num_hidden_layers=4, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
    ),
    "qwen3": transformers.Qwen3Config(
        **NARROW, **FEW_HEADS, num_hidden_layers=4, use_sliding_window=True, max_window_layers=3
    ),
    "gemma3_text": transformers.Gemma3TextConfig(**NARROW, **FEW_HEADS, num_hidden_layers=4),
    "bert": transformers.BertConfig(**NARROW, num_hidden_layers=4),
    "deberta-v2": transformers.DebertaV2Config(
        **NARROW, num_hidden_layers=2, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
}
"""Of the last, a list is as long as the model is deep by chance."""


def copy(name: str) -> transformers.PretrainedConfig:
    return type(TINY[name]).from_dict(TINY[name].to_dict())


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("name", TINY)
def test_a_model_has_the_layers_that_its_class_makes_for_the_depth(tmp_path, name, depth):
    """As the class makes it anew; the model runs, and can be saved and loaded again."""
    unlisted = {"layer_types": None} if hasattr(TINY[name], "layer_types") else {}
    made = type(TINY[name]).from_dict({**TINY[name].to_dict(), "num_hidden_layers": depth, **unlisted})
    config = changed(copy(name), {"num_hidden_layers": depth})
    assert config.to_dict() == made.to_dict()
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    assert [len(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList)] == [depth]
    rows = torch.tensor([[5, 6, 7, 8]])
    logits = model(input_ids=rows).logits
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(input_ids=rows).logits, logits)


@pytest.mark.parametrize("name", TINY)
def test_a_configuration_of_the_same_depth_is_as_it_was(name):
    same = changed(copy(name), {"num_hidden_layers": TINY[name].num_hidden_layers, "initializer_range": 0.01})
    assert same.to_dict() == {**TINY[name].to_dict(), "initializer_range": 0.01}


@pytest.mark.parametrize(
    ("depth", "kinds"),
    [
        (2, "full sliding"),
        (5, "full sliding full sliding full"),
        (6, "full sliding full sliding full sliding"),
    ],
)
def test_layers_of_one_s_own_keep_their_order(depth, kinds):
    """The class would make every third one full: the layers that were there stay what they were."""
    own = copy("modernbert")
    own.layer_types = ["full_attention", "sliding_attention"] * 2
    deep = changed(own, {"num_hidden_layers": depth})
    assert deep.layer_types == [f"{kind}_attention" for kind in kinds.split()]


@pytest.mark.parametrize("order", [1, -1])
def test_a_list_that_is_given_is_taken(order):
    given = {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2}
    config = changed(copy("modernbert"), dict(list(given.items())[::order]))
    assert config.layer_types == given["layer_types"]


def nested() -> transformers.PretrainedConfig:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 8, "patch_size": 4}
    return transformers.Gemma3Config(
        text_config=TINY["gemma3_text"].to_dict(),
        vision_config={**vision, "model_type": "siglip_vision_model"},
    )


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 7}, {"text_config": {"num_hidden_layers": 7}}])
def test_the_text_part_of_a_nested_configuration_is_changed(fields):
    config = changed(nested(), fields)
    assert (len(config.text_config.layer_types), config.vision_config.num_hidden_layers) == (7, 1)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert len(model.model.language_model.layers) == 7
    with pytest.raises(ConfigurationError, match="did you mean 'num_hidden_layers'"):
        changed(nested(), {"num_hiden_layers": 7})


@pytest.mark.parametrize("name", ["modernbert", "gemma3"])
def test_capacity_searches_models_deeper_than_they_are(tmp_path, allocated, name):
    (nested() if name == "gemma3" else TINY[name]).save_pretrained(tmp_path)
    line = ["--task", "sst2", "--output-dir", "-", "--max-length", "8", "--batch-size", "32"]
    deeper = resized(parse_line([*line, "--model", str(tmp_path)])[0], "layers", 6)
    predicted, steps = predict(deeper), Steps(deeper)
    assert [len(m) for m in steps.model.modules() if isinstance(m, torch.nn.ModuleList)].count(6) == 1
    steps.forward_backward()
    stored, measured = allocated(steps)
    assert predicted.activations == stored
    assert predicted.peak - predicted.optimizer == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (copy("bert"), {"hidden_size": "wide"}),
        (
            transformers.GPTNeoConfig(num_layers=4, attention_types=[[["global", "local"], 2]]),
            {"num_layers": 3},
        ),
    ],
)
def test_what_the_class_refuses_is_one_line(config, fields):
    """GPT-Neo's layers are written in another field, which must be given too."""
    with pytest.raises(ConfigurationError, match=r"of this shape: .*(expected int|attention_types)") as told:
        changed(config, fields)
    assert "\n" not in str(told.value)
