"""Options that published runs need: another head or schedule, metrics of batches, dependent options."""

import numpy as np
import pytest
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification

from finetune_common.errors import ConfigurationError
from finetune_common.tasks import get_task
from glue_harness.config.parsing import parse_mapping
from glue_harness.run.evaluation import _of_batches
from glue_harness.run.plan import Plan
from glue_harness.run.pooler import renew_pooler
from glue_harness.sweep.spec import read_spec

BASE = {"task": "demo-entailment", "model": "demo", "output_dir": "none"}


def rates(steps, **settings):
    """The learning rate of each step, in shares of the highest."""
    config = parse_mapping({**BASE, "max_steps": steps, **settings})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = Plan(config, np.ones(8, dtype=int), 1).schedule(optimizer)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_warmup_linear_falls_as_if_there_had_been_no_warm_up():
    """x/w below w, then 1 - x: at the end of warm-up the rate drops from 1 to 1 - w."""
    found = rates(20, schedule="warmup-linear", warmup=0.2)
    x = np.arange(20) / 20
    np.testing.assert_allclose(found, np.where(x < 0.2, x / 0.2, 1 - x))


def test_a_schedule_for_more_steps_ends_above_zero():
    """10 % of 40 steps are 4 of warm-up; after 20 steps 20 of the 36 others are left."""
    found = rates(21, schedule_steps=40, warmup=0.1)
    assert found[4] == 1.0
    assert found[20] == pytest.approx(20 / 36)


def bert(**fields):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(**shape, vocab_size=32, **fields))


def test_a_new_pooler_has_a_dropout_before_it_and_the_names_it_had():
    torch.manual_seed(0)
    model = bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    renew_pooler(model)
    after = model.state_dict()
    assert list(before) == list(after)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"bert.pooler.dense.weight"}
    seen = []
    model.bert.pooler.dense.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    ids = torch.arange(8).view(2, 4)
    model.train()(ids)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.25)
    model.eval()(ids)
    assert not (seen[1] == 0).any()


def test_metrics_of_batches_are_means_over_batches():
    """Five rows in batches of two, right in 2 of 2, 1 of 2 and 0 of 1: (1 + 0.5 + 0) / 3, not 3/5."""
    labels = np.array([0, 1, 0, 1, 1])
    said = np.array([0, 1, 0, 0, 0])
    found = _of_batches(get_task("rte"), np.eye(2)[said], labels, "validation", 2)
    assert found == {"accuracy_of_batches": pytest.approx(0.5)}


def test_options_that_are_left_alone_do_not_change_what_a_run_is():
    plain = parse_mapping(BASE)
    assert parse_mapping({**BASE, "head": "pretrained", "head_seed": None}).hash == plain.hash
    others = [{"head": "new"}, {"head_seed": 0}, {"schedule_steps": 9}, {"metric_batch": 4}]
    hashes = {parse_mapping({**BASE, **other}).hash for other in others}
    assert len(hashes | {plain.hash}) == 5


BAD = [{"head": "old"}, {"head_seed": -1}, {"schedule_steps": 0}, {"metric_batch": 0}]


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_is_refused_by_name(bad):
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        parse_mapping({**BASE, **bad})


def test_options_of_a_sweep_may_follow_from_others(tmp_path):
    spec = {
        "base": {"model": "demo", "max_steps": 1},
        "grid": {"task": ["demo-entailment", "demo-similarity"]},
        "where": [{"if": {"task": "demo-similarity"}, "then": {"metric": "spearmanr", "epochs": 5}}],
        "exclude": [{"epochs": 5, "task": "demo-entailment"}],
    }
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    configs = [run.config for run in read_spec(file, tmp_path)]
    assert [(c.task, c.metric, c.epochs) for c in configs] == [
        ("demo-entailment", None, 3.0),
        ("demo-similarity", "spearmanr", 5.0),
    ]
    file.write_text(yaml.safe_dump({**spec, "where": [{"if": {}}]}), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="where"):
        read_spec(file, tmp_path)
