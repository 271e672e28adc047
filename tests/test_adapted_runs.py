"""Adapted models in the harness: a run that is cut off goes on to the same numbers."""

import pytest
from interrupted import cut_off_and_continued

ADAPTATIONS = [
    {"name": "head-only", "encoder_layers": 1},
    {"name": "bottleneck-adapter", "layers": [1], "bottleneck": 2, "pooling": "mean"},
    {"name": "lora", "layers": [0], "rank": 2, "dropout": 0.1, "rank_pattern": {"v": 3}},
    {"name": "peft", "settings": {"peft_type": "LOHA", "r": 2, "target_modules": ["query", "value"]}},
    {"name": "prefix", "layers": [-1]},
    {"name": "bitfit"},
    {"name": "ffn-only", "layers": [1]},
    {"name": "fusion", "adapter": {"layers": [1], "parallel": True}, "lora": {"rank": 1}, "prefix": {}},
]
"""The last one nests mappings, as a file does."""


@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=lambda adaptation: adaptation["name"])
def test_a_run_cut_off_after_a_checkpoint_ends_as_one_that_was_not(adaptation, tmp_path, monkeypatch):
    optimizer = {"name": "adamw", "lr": 0.01}
    whole = cut_off_and_continued(tmp_path, monkeypatch, adaptation=adaptation, optimizer=optimizer)
    assert 0 < whole["parameters"]["trainable"] < whole["parameters"]["total"]
