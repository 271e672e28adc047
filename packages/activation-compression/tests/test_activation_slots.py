"""Entry points, options, what the harness reads, the Trainer, and offloading's bookkeeping."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from activation_compression import ActivationCompressor, checkpoint_blocks
from activation_compression.plots import plot_sensitivities, plot_widths
from activation_compression.trainer import CompressActivations
from finetune_common.errors import ConfigurationError
from finetune_common.slots import find


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=100, **sizes)).train()


BATCH = {"input_ids": torch.arange(8 * 16).view(8, 16) % 100, "labels": torch.tensor([0, 1] * 4)}


def step(method, model, number=1):
    model.zero_grad()
    torch.manual_seed(number)
    with method.around_forward(model):
        loss = model(**BATCH).loss
    loss.backward()
    method.after_backward(number, lambda: model(**BATCH).loss)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def plain(model):
    model.zero_grad()
    torch.manual_seed(1)
    model(**BATCH).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ["compress", "checkpoint", "compress+checkpoint"])
def test_methods_report_bytes_and_come_close_to_the_plain_gradient(name):
    method = find("activation", name)
    method = method(method.Options())
    assert method.name == name
    assert method.stats() == {}
    model = bert()
    expected, found = plain(model), step(method, model)
    limit = 0.0 if name == "checkpoint" else 0.5
    assert float((found - expected).norm() / expected.norm()) <= limit
    stats = method.stats()
    assert stats["stored_bytes"] == sum(row["stored_bytes"] for row in stats["rows"])
    if name == "compress":
        assert stats["original_bytes"] > 5 * stats["stored_bytes"]


def test_checkpointing_keeps_less_and_gives_forward_back():
    model = bert()
    sizes = {}
    for name in ("compress", "checkpoint", "compress+checkpoint"):
        method = find("activation", name)
        method = method(method.Options())
        step(method, model)
        sizes[name] = method.stats()["stored_bytes"]
    assert sizes["compress+checkpoint"] < sizes["compress"]
    assert sizes["compress+checkpoint"] < sizes["checkpoint"]
    assert all("forward" not in vars(module) for module in model.modules())
    with pytest.raises(ConfigurationError, match="no list"), checkpoint_blocks(nn.Linear(2, 2)):
        pass


def test_a_model_of_one_layer_is_checkpointed():
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=100, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=64
        )
    ).train()
    with checkpoint_blocks(model) as blocks:
        assert blocks == [model.bert.encoder.layer[0]]


def test_checkpointing_leaves_a_wrapped_forward_wrapped():
    """A block that stands there twice, and has a forward of its own."""
    block = nn.Linear(4, 4)
    plain = block.forward
    block.forward = lambda x: 2 * plain(x)
    own, x = block.forward, torch.randn(3, 4)
    model = nn.Sequential(block, block)
    expected = model(x)
    with checkpoint_blocks(model):
        assert model(x).equal(expected)
    assert block.forward is own
    assert model(x).equal(expected)


def test_a_resumed_method_rounds_as_the_one_that_went_on():
    kind, model = find("activation", "compress"), bert()
    options = kind.Options(level="L2.2", seed=3, interval=2, warmup=1)
    method = kind(options)
    states = []
    for number in range(1, 5):
        states.append(method.state_dict())
        last = step(method, model, number)
    assert len(method.compressor.log) == 2
    resumed = kind(options)
    resumed.load_state_dict(states[-1])
    assert step(resumed, model, 4).equal(last)
    assert not step(kind(options), model, 4).equal(last)
    log = method.compressor.log
    tensors = len(log[-1]["sensitivities"])
    assert [len(line.get_xdata()) for line in plot_widths(log).lines] == [tensors] * len(log)
    assert [bar.get_width() for bar in plot_sensitivities(log).patches] == [
        *log[-1]["sensitivities"].values()
    ]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("compress", {"level": "L5"}, "L5"),
        ("compress", {"bits": 0.1}, "bits"),
        ("compress", {"group_size": 0}, "group_size"),
        ("compress", {"interval": 0}, "interval"),
        ("compress", {"warmup": -1}, "warmup"),
        ("compress", {"seed": -1}, "seed"),
        ("offload", {"level": "L1"}, "L1"),
    ],
)
def test_options_validate_themselves_in_compression(name, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        find("activation", name).Options(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_offloading_says_that_it_needs_cuda():
    kind = find("activation", "offload")
    with pytest.raises(ConfigurationError, match="CUDA"):
        kind(kind.Options()).around_forward(bert())


def trainer(folder, model, callback, *others, **options):
    rows = [{"input_ids": row, "labels": label} for row, label in zip(*BATCH.values(), strict=True)]
    options = {"max_steps": 3, "save_strategy": "no"} | options
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return Trainer(model, arguments, train_dataset=rows, callbacks=[callback, *others])


class Interruption(TrainerCallback):
    def on_step_end(self, *_, **__):
        raise KeyboardInterrupt


@pytest.mark.filterwarnings("default")
def test_an_interrupted_training_is_compressed_when_it_begins_again(tmp_path):
    model, callback = bert(), CompressActivations("L1")
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, model, callback, Interruption()).train()
    trainer(tmp_path, model, callback).train()
    assert callback.compressor.stats.ratio > 5
    assert "forward" not in vars(model)


@pytest.mark.filterwarnings("default")
def test_a_resumed_training_goes_on_with_widths_and_roundings(tmp_path):
    states = []
    for options in (
        {"save_strategy": "steps", "save_steps": 2},
        {"restore_callback_states_from_checkpoint": True},
    ):
        callback = CompressActivations("L2", interval=1000)
        trained = trainer(tmp_path / "a", bert(), callback, **options)
        resume = str(tmp_path / "a" / "checkpoint-2") if states else None
        trained.train(resume_from_checkpoint=resume)
        [callback] = [c for c in trained.callback_handler.callbacks if isinstance(c, CompressActivations)]
        states.append(callback.compressor.state_dict())
    assert states[0]["widths"]
    assert states[0] == states[1]


@pytest.mark.filterwarnings("default")
def test_the_trainer_keeps_its_own_wrapper_of_the_forward_pass(tmp_path):
    """With bf16 it wraps the model's forward, and evaluates with it after training."""
    model = bert()
    trained = trainer(tmp_path, model, CompressActivations("L1"), bf16=True)
    trained.train()
    assert trained.model_wrapped(**BATCH).logits.dtype == torch.float32
    seen = []
    model.classifier.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    model(**BATCH)
    assert seen == [torch.bfloat16]


@pytest.mark.filterwarnings("default")
def test_automatic_precision_says_that_it_needs_the_models_loss(tmp_path):
    with pytest.raises(ConfigurationError, match="label_smoothing"):
        trainer(tmp_path, bert(), CompressActivations("L2"), label_smoothing_factor=0.1).train()


@pytest.mark.filterwarnings("default")
def test_trainer_trains_compressed_and_gives_the_model_back(tmp_path):
    model = bert()
    callback = CompressActivations("L2", interval=2)
    before = model.classifier.weight.detach().clone()
    trainer(tmp_path, model, callback).train()
    assert not model.classifier.weight.equal(before)
    assert callback.compressor.stats.ratio > 5
    assert len(callback.compressor.log) == 2
    assert "forward" not in vars(model)


def test_statistics_print_a_table():
    model = bert()
    with ActivationCompressor(model, "L1") as compressor:
        model(**BATCH)
    lines = str(compressor.stats).splitlines()
    assert lines[0].split() == ["module", "operation", "shape", "dtype", "bits", "before", "after"]
    assert len(lines) == len(compressor.stats.rows) + 2
    assert lines[-1].startswith(f"total: {compressor.stats.original_bytes} bytes before")
