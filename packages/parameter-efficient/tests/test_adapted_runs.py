"""Adapted models in the harness: a run that is cut off goes on to the same numbers."""

import json

import pytest

harness = pytest.importorskip("glue_harness")

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


class CutOffError(Exception):
    """What stops a run in these tests."""


@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=lambda adaptation: adaptation["name"])
def test_a_run_cut_off_after_a_checkpoint_ends_as_one_that_was_not(adaptation, tmp_path, monkeypatch):
    from glue_harness import parse_mapping, run
    from glue_harness.run import loop

    def settings(folder):
        return parse_mapping(
            {
                "task": "demo-entailment",
                "model": "demo",
                "output_dir": str(tmp_path / folder),
                "max_train_samples": 64,
                "max_steps": 4,
                "batch_size": 8,
                "save_every": 2,
                "log_every": 1,
                "adaptation": adaptation,
                "optimizer": {"name": "adamw", "lr": 0.01},
            }
        )

    whole = run(settings("whole"))
    finish = loop.Training._train_step

    def cut_off(self, *args):
        if self.step == 3:
            raise CutOffError
        return finish(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Training, "_train_step", cut_off)
        with pytest.raises(CutOffError):
            run(settings("cut"))
    again = run(settings("cut"))
    assert again["metrics"] == whole["metrics"]
    assert again["parameters"] == whole["parameters"]
    assert 0 < whole["parameters"]["trainable"] < whole["parameters"]["total"]

    def losses(folder):
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]

    assert losses("cut") == losses("whole")
    files = [(tmp_path / folder / "predictions.tsv").read_text() for folder in ("whole", "cut")]
    assert files[0] == files[1]
