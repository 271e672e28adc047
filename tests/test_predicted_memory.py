"""What `capacity` predicts for compressed activations is what a real step allocates, in BERT-base's shape."""

from collections.abc import Callable
from typing import Any

import pytest

Allocated = Callable[[Any], tuple[int, int]]

pytest.importorskip("activation_compression", reason="activation-compression is not installed")


@pytest.mark.parametrize(("rows", "level"), [(1, "L1"), (2, "L1.2"), (3, "L2.1"), (4, "L1")])
def test_saved_bytes_exactly_and_the_peak_within_five_percent(
    rows: int, level: str, allocated: Allocated
) -> None:
    from glue_harness.config.parsing import parse_line
    from glue_harness.cost.footprint import predict
    from glue_harness.cost.steps import Steps

    line = ["--task", "sst2", "--output-dir", "-", "--model", "bert-base-uncased", "--max-length", "48"]
    small = ["--model.num_hidden_layers", "2", "--model.vocab_size", "1000", "--batch-size", str(rows)]
    chosen = ["--activation", "compress", "--activation.level", level]
    config = parse_line([*line, *small, *chosen])[0]
    predicted = predict(config)
    steps = Steps(config)
    steps.forward_backward()  # compiles
    stored, measured = allocated(steps)
    assert predicted.activations == stored
    assert predicted.peak - predicted.optimizer == pytest.approx(measured, rel=0.05)


WAYS = [
    ["checkpoint"],
    ["compress+checkpoint"],
    *(["compress", "--activation.level", level] for level in ("lossless", "L1", "L1.1", "L1.2", "L2")),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[-1])
def test_cuda_s_choices_at_every_level(
    way: list[str], monkeypatch: pytest.MonkeyPatch, allocated: Allocated
) -> None:
    """Imposed on real tensors of a CPU: the saved bytes exactly, the peak within 2 % of the allocator's."""
    from glue_harness.config.parsing import parse_line
    from glue_harness.cost.cuda import cuda_kernels
    from glue_harness.cost.footprint import predict
    from glue_harness.cost.steps import Steps

    monkeypatch.setattr("glue_harness.cost.footprint.WORKSPACE", 0)
    monkeypatch.setattr("glue_harness.cost.footprint.ROUNDING", 1)
    line = ["--task", "sst2", "--output-dir", "-", "--model", "bert-base-uncased", "--max-length", "64"]
    small = ["--model.num_hidden_layers", "1", "--model.vocab_size", "500", "--batch-size", "8"]
    config = parse_line([*line, *small, "--activation", *way])[0]
    predicted = predict(config, "cuda", "eager")
    with cuda_kernels():
        steps = Steps(config, attention="eager")
        steps.forward_backward()  # compiles
        stored, measured = allocated(steps)
    assert predicted.activations == stored
    assert predicted.peak - predicted.optimizer == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(("length", "group"), [(51, 256), (37, 100), (45, 7)])
def test_other_lengths_and_groups_that_divide_nothing(
    length: int, group: int, monkeypatch: pytest.MonkeyPatch, allocated: Allocated
) -> None:
    """As above, of a batch that comes after one of another length."""
    from glue_harness.config.parsing import parse_line
    from glue_harness.cost.cuda import cuda_kernels
    from glue_harness.cost.footprint import predict
    from glue_harness.cost.steps import Steps

    monkeypatch.setattr("glue_harness.cost.footprint.WORKSPACE", 0)
    monkeypatch.setattr("glue_harness.cost.footprint.ROUNDING", 1)
    line = ["--task", "sst2", "--output-dir", "-", "--model", "bert-base-uncased", "--batch-size", "7"]
    small = ["--model.num_hidden_layers", "1", "--model.vocab_size", "500"]
    chosen = ["--activation", "compress", "--activation.level", "L1", "--activation.group_size", str(group)]
    short, long = (parse_line([*line, *small, *chosen, "--max-length", str(n)])[0] for n in (length, 64))
    predicted = predict(short, "cuda", "eager")
    with cuda_kernels():
        steps = Steps(long, attention="eager")
        steps.forward_backward()
        steps.batch["input_ids"] = steps.batch["input_ids"][:, :length].clone()
        steps.forward_backward()  # compiles for any length
        stored, measured = allocated(steps)
    assert predicted.activations == stored
    assert predicted.peak - predicted.optimizer == pytest.approx(measured, rel=0.02)


def test_lora_of_a_large_llama_is_predicted_in_seconds() -> None:
    """Eight billion parameters, of which none is there: what trains alone has gradients and a state."""
    pytest.importorskip("parameter_efficient", reason="parameter-efficient is not installed")
    from glue_harness.config.parsing import parse_line
    from glue_harness.cost.footprint import predict

    line = ["--task", "sst2", "--output-dir", "-", "--model", "Meta-Llama-3-8B", "--adaptation", "lora"]
    config = parse_line([*line, "--precision", "bf16", "--batch-size", "4"])[0]
    found = predict(config, "cuda", "flash")
    assert found.parameters > 4 * 7.5e9
    assert 0 < found.gradients < 0.01 * found.parameters
    assert found.optimizer == pytest.approx(2 * found.gradients)


@pytest.mark.parametrize("name", ["bottleneck-adapter", "compacter", "ia3", "loreft", "lora", "prefix"])
def test_what_an_adaptation_adds_is_made_of_fake_tensors_too(name: str) -> None:
    """Few parameters train, so that there are fewer gradients than parameters."""
    from glue_harness.config.parsing import parse_line
    from glue_harness.cost.footprint import predict

    line = ["--task", "sst2", "--output-dir", "-", "--model", "bert-base-uncased", "--max-length", "32"]
    small = ["--model.num_hidden_layers", "1", "--model.vocab_size", "500", "--batch-size", "2"]
    predicted = predict(parse_line([*line, *small, "--adaptation", name])[0])
    assert 0 < predicted.gradients < predicted.parameters < predicted.peak
