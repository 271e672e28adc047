"""The harness's activation methods where a run compiles its model."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from activation_compression.slots import (
    CheckpointMethod,
    CompressCheckpointMethod,
    CompressMethod,
    CompressOptions,
    NoOptions,
    OffloadMethod,
    OffloadOptions,
)
from finetune_common.errors import ConfigurationError


def test_compress_gives_options_and_then_needs_no_context():
    method = CompressMethod(CompressOptions("L1.1", seed=3))
    options = method.compile_options()
    assert "custom_partitioner_fn" in options
    assert isinstance(method.around_forward(nn.Linear(2, 2)), nullcontext)
    assert method.stats() == {"stored_bytes": 0, "original_bytes": 0, "rows": []}


@pytest.mark.parametrize("before", [True, False])
def test_a_resumed_run_goes_on_with_the_roundings(before):
    method = CompressMethod(CompressOptions("L1"))
    if before:
        method.load_state_dict({"drawn": 17})
    method.compile_options()
    if not before:
        method.load_state_dict({"drawn": 17})
    assert method.state_dict() == {"drawn": 17}


@pytest.mark.parametrize(
    "method",
    [
        CheckpointMethod(NoOptions()),
        CompressCheckpointMethod(CompressOptions()),
        OffloadMethod(OffloadOptions()),
        CompressMethod(CompressOptions("L2")),
        CompressMethod(CompressOptions(bits=3.5)),
    ],
    ids=["checkpoint", "compress+checkpoint", "offload", "automatic", "bits"],
)
def test_what_cannot_be_compiled_says_what_to_use(method):
    with pytest.raises(ConfigurationError, match=r"L1|--compile"):
        method.compile_options()


def test_seeds_of_the_run_round_differently():
    torch.manual_seed(5)
    first = CompressMethod(CompressOptions("L1")).compile_options()
    torch.manual_seed(6)
    second = CompressMethod(CompressOptions("L1")).compile_options()
    assert first["custom_partitioner_fn"].uuid() != second["custom_partitioner_fn"].uuid()


def test_a_trainer_gives_the_compiler_its_settings_back():
    config = pytest.importorskip("torch._inductor.config")
    trainer = pytest.importorskip("activation_compression.trainer")
    before = config.custom_partitioner_fn, config.allow_buffer_reuse
    callback = trainer.CompressActivations("L1")
    arguments = SimpleNamespace(torch_compile=True, torch_compile_backend="inductor")
    callback.on_train_begin(arguments, None, None)
    assert config.custom_partitioner_fn is callback.compiled["custom_partitioner_fn"]
    assert config.allow_buffer_reuse is False
    callback.on_train_end(arguments, None, None)
    assert (config.custom_partitioner_fn, config.allow_buffer_reuse) == before


def test_what_was_compiled_before_a_training_or_in_it_is_compiled_anew():
    """Otherwise a plain training in the same process would give its code to a compressed one, or take it."""
    trainer = pytest.importorskip("activation_compression.trainer")
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    function, x = torch.compile(lambda x: x.sin(), backend=backend), torch.ones(3)
    callback = trainer.CompressActivations("L1")
    arguments = SimpleNamespace(torch_compile=True, torch_compile_backend="inductor")
    for begin in (lambda: None, lambda: callback.on_train_begin(arguments, None, None)):
        begin()
        function(x), function(x)
    callback.on_train_end(arguments, None, None)
    function(x)
    assert len(compiled) == 3
