"""Parameters a layer at hidden size 768, feed-forward size 3072, as the work counts them."""

import pytest
import torch
import transformers

from parameter_efficient import (
    BitFit,
    BottleneckAdapter,
    FFNTuning,
    HeadOnly,
    LoRA,
    PrefixTuning,
    adapt,
    remove,
)
from parameter_efficient import trainable_parameters as counted


@pytest.fixture(scope="module")
def base() -> transformers.PreTrainedModel:
    with torch.device("meta"):
        return transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(vocab_size=100, num_hidden_layers=12)
        )


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (BottleneckAdapter(layers=[5], bottleneck=1), 3_841),
        (BottleneckAdapter(layers=[5], bottleneck=1, layer_norm=False), 2_305),
        (BottleneckAdapter(layers=[5], bottleneck=1, elementwise_affine=False), 2_305),
        (BottleneckAdapter(layers=[5], bottleneck=55), 86_839),
        (LoRA(layers=[10], rank=1, targets=("q", "k")), 3_072),
        (PrefixTuning(layers=[10], length=2), 3_072),
        (BitFit(layers=[10]), 3_840),
        (FFNTuning(layers=[5]), 4_722_432),
        (FFNTuning(layers=[5], include_attention_output=True), 5_316_096),
        (BottleneckAdapter(layers=[5, 6], bottleneck=1), 7_682),
        (HeadOnly(encoder_layers=6), 0),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_parameters_beside_the_head(base, config, parameters):
    head = 768 * 768 + 768 + 768 * 2 + 2
    assert counted(adapt(base, config)).trainable == head + parameters
    remove(base)


def test_a_head_on_six_layers_is_a_model_of_six_layers(base):
    all_layers = counted(base).total
    a_layer = sum(p.numel() for p in base.roberta.encoder.layer[0].parameters())
    assert counted(adapt(base, HeadOnly(encoder_layers=6))).total == all_layers - 6 * a_layer
    assert counted(remove(base)).total == all_layers
