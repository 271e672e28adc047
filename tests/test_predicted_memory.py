"""What `capacity` predicts for compressed activations is what a real step allocates, in BERT-base's shape."""

import pytest

pytest.importorskip("activation_compression", reason="activation-compression is not installed")


@pytest.mark.parametrize(("rows", "level"), [(1, "L1"), (2, "L1.2"), (3, "L2.1"), (4, "L1")])
def test_saved_bytes_exactly_and_the_peak_within_five_percent(rows: int, level: str) -> None:
    from glue_harness.config.parsing import parse_line
    from glue_harness.cost.footprint import measured_peak, predict
    from glue_harness.cost.steps import Steps

    line = ["--task", "sst2", "--output-dir", "-", "--model", "bert-base-uncased", "--max-length", "48"]
    small = ["--model.num_hidden_layers", "2", "--model.vocab_size", "1000", "--batch-size", str(rows)]
    chosen = ["--activation", "compress", "--activation.level", level]
    config = parse_line([*line, *small, *chosen])[0]
    predicted = predict(config)
    steps = Steps(config)
    steps.forward_backward()  # compiles
    steps.model.zero_grad()
    loss, stored = steps.metered_forward()
    assert predicted.activations == stored
    del loss
    measured = measured_peak(steps.forward_backward) + steps.state_bytes()["parameters"]
    assert predicted.peak - predicted.optimizer == pytest.approx(measured, rel=0.05)
