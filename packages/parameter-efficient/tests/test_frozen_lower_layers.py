"""Below the lowest layer that trains there is no backward pass and nothing is saved for one."""

from itertools import pairwise

import pytest
import small_transformers
import torch
from torch import nn

from finetune_common.measure import SavedTensorMeter
from parameter_efficient import BitFit, BottleneckAdapter, FFNTuning, HeadOnly, LoRA, PrefixTuning, adapt

LAYERS = 4


def classifier(architecture: str = "bert") -> nn.Module:
    depth = "num_layers" if architecture == "t5" else "num_hidden_layers"
    return small_transformers.classifier(architecture, **{depth: LAYERS}).train()


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 50, (4, 10), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 2  # the end of a text
    return {"input_ids": ids, "labels": torch.tensor([0, 1, 0, 1])}


def saved_bytes(
    config: object, checkpointing: bool = False, architecture: str = "bert"
) -> tuple[int, list[bool]]:
    """Bytes saved by a training step, and for every layer whether its backward pass ran."""
    model = adapt(classifier(architecture), config).train()
    if checkpointing:
        small_transformers.recompute_activations(model)
    encoder = model.get_submodule(
        {"t5": "transformer.encoder", "bert": "bert.encoder"}.get(architecture, "deberta.encoder")
    )
    layers = encoder.block if architecture == "t5" else encoder.layer
    needs_backward = []

    def note(module: nn.Module, args: tuple, output: object) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        needs_backward.append(hidden.requires_grad)

    for layer in layers:
        layer.register_forward_hook(note)
    with SavedTensorMeter(model) as meter:
        loss = model(**inputs()).loss
    loss.backward()
    return meter.bytes, needs_backward


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize(
    "method",
    [
        lambda layer: BottleneckAdapter(layers=[layer]),
        lambda layer: LoRA(layers=[layer]),
        lambda layer: PrefixTuning(layers=[layer]),
        lambda layer: BitFit(layers=[layer]),
        lambda layer: FFNTuning(layers=[layer]),
    ],
    ids=["adapter", "lora", "prefix", "bitfit", "ffn"],
)
def test_the_graph_begins_at_the_adapted_layer_and_each_layer_below_saves_less(method, checkpointing):
    seen = [saved_bytes(method(layer), checkpointing) for layer in range(LAYERS)]
    for layer, (_, needs_backward) in enumerate(seen):
        assert needs_backward == [False] * layer + [True] * (LAYERS - layer)
    sizes = [size for size, _ in seen]
    assert sizes == sorted(sizes, reverse=True)
    steps = [low - high for low, high in pairwise(sizes)]
    assert len(set(steps)) == 1  # a frozen layer below saves nothing at all
    assert steps[0] > 0 or checkpointing  # a checkpointed layer saves its input only, past the meter


def test_head_alone_saves_what_the_head_needs():
    size, needs_backward = saved_bytes(HeadOnly())
    assert not any(needs_backward)
    a_row = 16 * 4
    last_states, few_of_the_first_token = 4 * 10 * a_row, 12 * 4 * a_row
    assert size <= last_states + few_of_the_first_token


@pytest.mark.parametrize("architecture", ["t5", "deberta-v2"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_position_scores_that_layers_share_start_no_backward_pass(architecture, checkpointing):
    _, needs_backward = saved_bytes(BottleneckAdapter(layers=[2]), checkpointing, architecture)
    assert needs_backward == [False, False, True, True]
