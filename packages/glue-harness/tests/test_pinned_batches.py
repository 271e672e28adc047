"""Batches lie in pinned memory where a GPU waits for them: those of training and those of evaluation."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from glue_harness.run.plan import Data


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("there", [True, False])
def test_batches_are_pinned_where_there_is_a_gpu(split, there, monkeypatch):
    rows = Dataset.from_dict({"input_ids": [[1, 2]] * 4, "labels": [0, 1, 0, 1]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    data = SimpleNamespace(datasets={split: rows}, collator=list, marks={})
    assert Data.loader(data, split, [[0, 1], [2, 3]]).pin_memory is there  # type: ignore[arg-type]
