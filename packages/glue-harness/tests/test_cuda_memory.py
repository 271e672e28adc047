"""CUDA's memory, predicted where there is none: what its kernels keep, and what the commands say."""

import json
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from finetune_common.errors import ConfigurationError
from finetune_common.measure import SavedTensorMeter
from glue_harness.cli import main
from glue_harness.config.parsing import parse_line
from glue_harness.cost import cuda
from glue_harness.cost.capacity import read_bytes
from glue_harness.cost.footprint import predict
from glue_harness.cost.steps import Steps


def config(*line):
    rest = ["--max-length", "32", "--batch-size", "4", *line]
    return parse_line(["--task", "sst2", "--output-dir", "-", "--model", "demo", *rest])[0]


def saved(compute, attention="sdpa", autocast=None):
    """Bytes that a computation keeps of what it makes."""
    with cuda.cuda_kernels(attention), FakeTensorMode():
        meter = SavedTensorMeter(torch.nn.Module())
        with meter, torch.autocast("cpu", autocast) if autocast else nullcontext():
            loss = compute()
        loss.sum().backward()
        return meter.bytes


def test_dropout_keeps_its_input_s_number_of_bools():
    x = lambda: torch.zeros(30, 70, requires_grad=True)  # noqa: E731
    assert saved(lambda: F.dropout(x(), 0.1)) == 30 * 70
    assert saved(lambda: F.dropout(x(), 0.1, training=False)) == 0


@pytest.mark.parametrize("length", [32, 40, 129])
@pytest.mark.parametrize("masked", [False, True])
def test_the_memory_efficient_kernel_keeps_what_its_definition_says(length, masked):
    """q, k, v, the output; a float32 log-sum-exp a query, in multiples of 32; a seed and an offset."""
    rows, heads, width = 3, 4, 16
    size = (rows, heads, length, width)
    mask = lambda: torch.ones(rows, 1, length, length, dtype=torch.bool) if masked else None  # noqa: E731

    def attend():
        q, k, v = (torch.zeros(size, requires_grad=True) for _ in range(3))
        return F.scaled_dot_product_attention(q, k, v, mask(), dropout_p=0.1)

    padded = -(-length // 32) * 32
    biases = rows * length * -(-length // 16) * 16 * 4 if masked else 0
    expected = 4 * rows * heads * length * width * 4 + rows * heads * padded * 4 + 2 * 8 + biases
    assert saved(attend) == expected


@pytest.mark.parametrize(("attention", "masked"), [("sdpa", False), ("flash", False), ("flash", True)])
def test_flash_attention_keeps_half_precision_and_one_number_a_query(attention, masked):
    rows, heads, length, width = 3, 4, 40, 16

    def attend():
        q, k, v = (
            torch.zeros(rows, heads, length, width, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        )
        mask = torch.ones(rows, 1, length, length, dtype=torch.bool) if masked else None
        return F.scaled_dot_product_attention(q, k, v, mask)

    expected = 4 * rows * heads * length * width * 2 + rows * heads * length * 4
    assert expected < saved(attend, attention) <= expected + 32  # seed and offset


def test_grouped_heads_in_float32_are_written_out_as_no_kernel_takes_them():
    def attend(enable_gqa):
        q = torch.zeros(2, 8, 128, 16, requires_grad=True)
        k, v = (torch.zeros(2, 2 if enable_gqa else 8, 128, 16, requires_grad=True) for _ in range(2))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=enable_gqa)

    probabilities = 2 * 8 * 128 * 128 * 4
    assert saved(lambda: attend(True)) > probabilities > saved(lambda: attend(False))


@pytest.mark.parametrize(
    ("operation", "dtype"),
    [
        (lambda x: x.softmax(-1), torch.float32),
        (lambda x: F.layer_norm(x, (8,)), torch.float32),
        (lambda x: x.pow(2), torch.float32),
        (lambda x: x.exp(), torch.float32),
        (lambda x: F.cross_entropy(x, torch.zeros(8, dtype=torch.long)), torch.float32),
        (lambda x: F.gelu(x), torch.bfloat16),
        (lambda x: x + x, torch.bfloat16),
        (lambda x: x.float() @ x, torch.bfloat16),
        (lambda x: F.scaled_dot_product_attention(*(x.view(1, 1, 8, 8).float(),) * 3), torch.bfloat16),
    ],
    ids=["softmax", "layer_norm", "pow", "exp", "cross_entropy", "gelu", "add", "matmul", "sdpa"],
)
def test_autocast_is_that_of_cuda(operation, dtype):
    """As torch's documentation lists it for CUDA; the CPU's own keeps softmax and norms in half precision."""
    with cuda.cuda_kernels(), FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        assert operation(torch.zeros(8, 8, dtype=torch.bfloat16)).dtype == dtype


def test_nothing_of_it_is_left_afterwards():
    kept = F.dropout, F.scaled_dot_product_attention
    with cuda.cuda_kernels():
        assert kept != (F.dropout, F.scaled_dot_product_attention)
    assert kept == (F.dropout, F.scaled_dot_product_attention)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.zeros(8, dtype=torch.bfloat16).softmax(-1).dtype == torch.bfloat16


@pytest.mark.parametrize("line", [[], ["--activation", "none", "--model.num_hidden_layers", "4"]])
def test_written_out_attention_is_what_the_allocator_measures(line, monkeypatch, allocated):
    """With CUDA's choices imposed on real tensors: saved bytes exactly, the peak within 2 %."""
    monkeypatch.setattr("glue_harness.cost.footprint.WORKSPACE", 0)
    monkeypatch.setattr("glue_harness.cost.footprint.ROUNDING", 1)
    one = config("--batch-size", "16", *line)
    predicted = predict(one, "cuda", "eager")
    with cuda.cuda_kernels():
        steps = Steps(one, attention="eager")
        steps.forward_backward()
        stored, measured = allocated(steps)
    assert predicted.activations == stored
    assert predicted.peak - predicted.optimizer == pytest.approx(measured, rel=0.02)


def test_rounding_and_work_space_are_added():
    plain, rounded = predict(config("--model.attention_probs_dropout_prob", "0"), "cpu", "eager"), None
    rounded = predict(config("--model.attention_probs_dropout_prob", "0"), "cuda", "eager")
    assert rounded.parameters == plain.parameters
    assert rounded.peak > cuda.WORKSPACE
    assert rounded.activations < plain.activations  # masks of bools


def test_half_precision_keeps_less():
    sizes = [predict(config("--precision", p), "cuda", "sdpa").activations for p in ("fp32", "bf16")]
    assert sizes[1] < sizes[0]


def test_a_gpu_is_a_budget():
    assert read_bytes("t4") == int(14.7 * 2**30) - cuda.CONTEXT
    with pytest.raises(ConfigurationError, match="A100-40"):
        cuda.usable_bytes("A100")


def test_capacity_of_a_gpu_that_is_not_here(tmp_path):
    line = ["--model", "demo", "--max-length", "16", "--compare", "none", "--output-dir", str(tmp_path)]
    assert main(["capacity", "--device", "cuda", "--attention", "eager", "--budget", "40MB", *line]) == 0
    found = json.loads((tmp_path / "max_batch_size_results.json").read_text())
    assert found["device"] == "cuda"
    assert found["attention"] == "eager"
    assert found["results"]["none"]["peak_bytes"] <= 40_000_000
    assert found["results"]["none"]["largest"] > 1


def test_a_profile_is_predicted(tmp_path, capsys):
    line = ["--model", "demo", "--max-length", "16", "--batch-sizes", "2,4", "--output-dir", str(tmp_path)]
    assert main(["profile", "--predict", "--device", "cuda", *line]) == 0
    report = json.loads((tmp_path / "speed_results.json").read_text())
    assert [row["batch_size"] for row in report["rows"]] == [2, 4]
    assert report["rows"][0]["bytes"]["peak"] < report["rows"][1]["bytes"]["peak"]
    assert "rows/s" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--device", "cuda"], "--precision bf16"),
        (["--device", "cpu"], "can only be predicted"),
        (["--device", "cuda", "--by", "measurement"], "measure"),
    ],
)
def test_flash_attention_where_it_cannot_be_is_refused_in_one_line(line, said, capsys):
    budget = ["--model", "demo", "--budget", "1GB", "--compare", "none", "--attention", "flash"]
    assert main(["capacity", *budget, *line]) == 2
    [message] = capsys.readouterr().err.splitlines()
    assert said in message


@pytest.mark.parametrize("attention", ["sdpa", "flash"])
def test_an_attention_that_the_model_does_not_have_is_refused_in_one_line(attention, capsys):
    """DeBERTa adds terms of its own to the scores, for which there is no kernel."""
    shape = ["--model.num_hidden_layers", "1", "--precision", "bf16", "--attention", attention]
    line = ["--device", "cuda", "--budget", "T4", "--compare", "none", "--model", "deberta-v3-base"]
    assert main(["capacity", *line, *shape]) == 2
    [message] = capsys.readouterr().err.splitlines()
    assert f"--attention {attention}: DebertaV2" in message
