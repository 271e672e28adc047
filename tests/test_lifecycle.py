"""Whatever a slot or a monitor hands back is told of each step, in order, and its state is in checkpoints."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_common.slots import GROUPS, available

ALL = {
    "adaptation": "told",
    "activation": "told",
    "gradient": ["told"],
    "optimizer": "told",
    "monitor": ["told"],
}


@pytest.fixture
def heard(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """A package with a method for every slot, as `pip install --target` leaves it; returns what they hear."""
    site = tmp_path / "site"
    information = site / "told-1.dist-info"
    information.mkdir(parents=True)
    shutil.copy(root / "tests/told_methods.py", site)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: told\nVersion: 1\n")
    points = [f"[{group}]\ntold = told_methods:{slot.capitalize()}\n" for slot, group in GROUPS.items()]
    (information / "entry_points.txt").write_text("\n".join(points))
    monkeypatch.syspath_prepend(site)
    available.cache_clear()
    import told_methods

    yield told_methods.HEARD
    available.cache_clear()
    del sys.modules["told_methods"]


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run a configuration of a few steps, without dropout, and return what it logged."""
    from glue_harness import parse_mapping, run

    def call(folder: str, dropout: float = 0.0, **settings: Any) -> list[dict[str, Any]]:
        defaults = {"task": "demo-entailment", "model": "demo", "output_dir": str(tmp_path / folder)}
        shape = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}
        small = {"max_train_samples": 32, "batch_size": 8, "max_steps": 4, "save_every": 2, "log_every": 1}
        run(parse_mapping(defaults | small | {"model_config": shape} | settings))
        return [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]

    return call


def test_a_step_is_told_in_the_order_in_which_it_happens(
    heard: list[tuple[Any, ...]], train: Callable[..., Any]
) -> None:
    logged = train("run", accumulate=2, max_steps=2, **ALL)
    parts = ("adaptation", "activation", "optimizer", "gradient", "monitor")
    expected = []
    for step in (1, 2):
        expected += [(part, "before_forward", step) for part in parts]
        expected += [("activation", "around_forward")] * 2
        expected += [(part, "after_backward", step) for part in parts]
        expected += [("gradient", "acts"), ("optimizer", "step")]
        expected += [(part, "on_step", step) for part in parts]
    assert [entry[:3] for entry in heard] == expected
    assert [[entry[f"{part}.count"] for part in parts] for entry in logged] == [[1] * 5, [2] * 5]


def test_the_loss_is_the_mean_of_the_last_micro_batch(
    heard: list[tuple[Any, ...]], train: Callable[..., Any]
) -> None:
    """However many micro-batches a step has: with a learning rate of 0 one loss a micro-batch is known."""
    single = [entry["loss"] for entry in train("single", monitor="told", optimizer="told")]
    heard.clear()
    train("double", monitor="told", optimizer="told", accumulate=2, max_steps=2)
    told = [entry[3] for entry in heard if entry[:2] == ("monitor", "after_backward")]
    assert told == pytest.approx([single[1], single[3]], rel=1e-5)


def test_what_parts_draw_at_random_leaves_the_run_alone(
    heard: list[tuple[Any, ...]], train: Callable[..., Any]
) -> None:
    """They draw numbers, and run the forward pass again with its dropout; masks stay the plain run's."""
    plain = train("plain", dropout=0.3, optimizer={"name": "sgd", "lr": 0.1})
    among = train(
        "among", dropout=0.3, optimizer={"name": "sgd", "lr": 0.1}, monitor="told", activation="told"
    )
    assert heard
    assert [entry["loss"] for entry in among] == [entry["loss"] for entry in plain]


def test_gradient_methods_act_in_the_order_given(
    heard: list[tuple[Any, ...]], train: Callable[..., Any]
) -> None:
    """One step from the same weights, after clipping: g, then g/2 + 3, then (g + 3)/2."""
    scale, add = {"name": "told", "factor": 0.5}, {"name": "told", "shift": 3.0}
    found = {}
    for name, methods in {"none": [], "scale, add": [scale, add], "add, scale": [add, scale]}.items():
        [entry] = train(name, gradient=methods, monitor="told", max_steps=1, max_grad_norm=0.1)
        found[name] = entry["gradient"]
    g = found["none"]
    assert abs(g) <= 0.1
    assert found["scale, add"] == pytest.approx(g / 2 + 3, abs=1e-6)
    assert found["add, scale"] == pytest.approx((g + 3) / 2, abs=1e-6)


class Stop(Exception):
    """Ends a run in the middle."""


def test_the_state_of_every_part_survives_an_interruption(
    heard: list[tuple[Any, ...]], train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from glue_harness.run.loop import Training

    whole = train("whole", **ALL)
    with monkeypatch.context() as patch:
        step = Training._train_step

        def stop(self: Training, *rest: Any) -> Any:
            if self.step == 3:
                raise Stop
            return step(self, *rest)

        patch.setattr(Training, "_train_step", stop)
        with pytest.raises(Stop):
            train("stopped", **ALL)
    assert train("stopped", **ALL) == whole
    assert [entry["adaptation.count"] for entry in whole] == [1, 2, 3, 4]
