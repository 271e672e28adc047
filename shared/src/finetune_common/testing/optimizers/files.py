"""States that come from files, hooks, other optimizers, and torch's checkpoint tools."""

from __future__ import annotations

# torch's seeding has no types:
# pyright: reportUnknownMemberType=false
import copy
import json
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from finetune_common.aliases import Settings, StateDict
from finetune_common.errors import ConfigurationError
from finetune_common.testing.optimizers.case import Factory, OptimizerCase
from finetune_common.testing.optimizers.training import assert_equal, pair, step, tensors

__all__ = [
    "begins_momentum_late",
    "loads_older_states",
    "loads_or_refuses_foreign_states",
    "loads_what_a_hook_returns",
    "survives_checkpoint_tools",
    "survives_other_files",
]


def loads_what_a_hook_returns(cls: Factory, case: OptimizerCase) -> None:
    """A pre-hook that sorts state by name is obeyed exactly; a post-hook sees the loaded state."""
    a, b = pair()
    first = cls([("a", a), ("b", b)], **case.settings)
    step(first, [a, b], [1.0, 5.0])
    second = cls([("b", b), ("a", a)], **case.settings)
    sizes: list[int] = []

    def note_size(optimizer: torch.optim.Optimizer) -> None:
        sizes.append(len(optimizer.state))

    def by_name(optimizer: torch.optim.Optimizer, state: StateDict) -> StateDict:
        names = state["param_groups"][0]["param_names"]
        param_names = optimizer.param_groups[0]["param_names"]
        sorted_state = {i: state["state"][names.index(name)] for i, name in enumerate(param_names)}
        return {**state, "state": sorted_state}

    second.register_load_state_dict_pre_hook(by_name)
    second.register_load_state_dict_post_hook(note_size)
    second.load_state_dict(first.state_dict())
    assert sizes == [2]
    for param in (a, b):
        assert second.state[param].keys() == first.state[param].keys()
        assert_equal(
            [v for v in second.state[param].values() if isinstance(v, Tensor)],
            [v for v in first.state[param].values() if isinstance(v, Tensor)],
        )


def loads_older_states(cls: Factory, case: OptimizerCase) -> None:
    """Missing settings get their defaults; steps may be numbers; another model's state writes nothing."""
    params = pair()
    optimizer = cls(params, **case.settings)
    step(optimizer, params, [1.0, 2.0])
    saved = optimizer.state_dict()
    for name in set(saved["param_groups"][0]) - {"params", "lr"}:
        older = copy.deepcopy(saved)
        older["param_groups"][0].pop(name)
        optimizer.load_state_dict(older)
        step(optimizer, params, [1.0, 2.0])
    for name in saved["state"][0]:
        older = copy.deepcopy(saved)
        older["state"][0].pop(name)
        optimizer.load_state_dict(older)
        step(optimizer, params, [1.0, 2.0])
    if "step" in saved["state"][0]:
        numeric = copy.deepcopy(saved)
        for entries in numeric["state"].values():
            entries["step"] = float(entries["step"])
        optimizer.load_state_dict(numeric)
        assert all(float(state["step"]) == 1 for state in optimizer.state.values())
    before = copy.deepcopy(optimizer.state_dict())
    wrong = copy.deepcopy(saved)
    names = [n for n, v in wrong["state"][1].items() if isinstance(v, Tensor) and v.shape == (3,)]
    if names:
        wrong["state"][1][names[0]] = torch.zeros(7)
        with pytest.raises(ConfigurationError, match="shape"):
            optimizer.load_state_dict(wrong)
        assert str(optimizer.state_dict()) == str(before)


def survives_checkpoint_tools(cls: Factory, case: OptimizerCase) -> None:
    """torch.distributed.checkpoint carries all of the state, plain and flattened, into a new optimizer."""
    for flatten in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flatten)
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = cls(model.parameters(), **case.settings)
        for size in (1.0, 3.0):
            step(optimizer, [*model.parameters()], [size, -size])
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        twin = copy.deepcopy(model)
        other = cls(twin.parameters(), **case.settings)
        set_optimizer_state_dict(twin, other, saved, options=options)
        for network, trained_by in ((model, optimizer), (twin, other)):
            step(trained_by, [*network.parameters()], [2.0, 1.0])
        assert_equal([*twin.parameters()], [*model.parameters()])


FOREIGN: dict[str, Settings] = {
    "Adam": {},
    "AdamW": {},
    "Adamax": {},
    "NAdam": {},
    "Adagrad": {},
    "RMSprop": {"momentum": 0.9},
    "SGD": {"momentum": 0.9},
}
"""torch's optimizers whose state users may load, with settings that make them keep state."""


def loads_or_refuses_foreign_states(cls: Factory, case: OptimizerCase) -> None:
    """State of torch's optimizers is loaded, exactly if the names agree, or refused without writing."""
    for name, settings in FOREIGN.items():
        params = pair()
        foreign = getattr(torch.optim, name)(params, lr=0.01, **settings)
        step(foreign, params, [1.0, 2.0])
        optimizer = cls(params, **case.settings)
        step(optimizer, params, [1.0, 2.0])
        names, saved = {*optimizer.state[params[0]]} - {"step"}, copy.deepcopy(foreign.state_dict())
        before = copy.deepcopy(optimizer.state_dict())
        try:
            optimizer.load_state_dict(saved)
        except ConfigurationError:
            assert str(optimizer.state_dict()) == str(before), f"{name}: refused, and half loaded"
            continue
        for param in params:
            torch_state = foreign.state[param]
            shared = [entry for entry in names & torch_state.keys() if isinstance(torch_state[entry], Tensor)]
            assert_equal([optimizer.state[param][e] for e in shared], [torch_state[e] for e in shared])
        step(optimizer, params, [1.0, 2.0])
        assert all(torch.isfinite(param).all() for param in params), name


def survives_other_files(cls: Factory, case: OptimizerCase) -> None:
    """A state goes through names (FSDP.rekey_optim_state_dict) and through safetensors beside JSON."""
    safetensors = pytest.importorskip("safetensors.torch")
    model = nn.Linear(3, 2)
    params = [*model.parameters()]
    optimizer = cls(params, **case.settings)
    step(optimizer, params, [1.0, -2.0])
    saved = copy.deepcopy(optimizer.state_dict())
    flat = {f"{key}.{name}": value for key, name, value in tensors(saved)}
    numbers = {
        key: {name: value for name, value in entries.items() if not isinstance(value, Tensor)}
        for key, entries in saved["state"].items()
    }
    text = json.dumps({"state": numbers, "param_groups": saved["param_groups"]})
    read = json.loads(text)
    state: dict[int, StateDict] = {int(key): entries for key, entries in read["state"].items()}
    for path, value in safetensors.load(safetensors.save(flat)).items():
        key, _, name = path.partition(".")
        state[int(key)][name] = value
    for given in (_rekeyed(saved, model, optimizer), {**read, "state": state}):
        twin = copy.deepcopy(model)
        other = cls(twin.parameters(), **case.settings)
        other.load_state_dict(given)
        again = copy.deepcopy(model)
        reference = cls(again.parameters(), **case.settings)
        reference.load_state_dict(copy.deepcopy(saved))
        for trained_by, network in ((other, twin), (reference, again)):
            step(trained_by, [*network.parameters()], [3.0, 1.0])
        assert_equal([*twin.parameters()], [*again.parameters()])


def _rekeyed(saved: StateDict, model: nn.Module, optimizer: torch.optim.Optimizer) -> StateDict:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp import OptimStateKeyType as Keys

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        by_name = FSDP.rekey_optim_state_dict(saved, Keys.PARAM_NAME, model, optim=optimizer)
        assert {*by_name["state"]} == {"weight", "bias"}
        return FSDP.rekey_optim_state_dict(by_name, Keys.PARAM_ID, model, optim=optimizer)


def begins_momentum_late(cls: Factory, case: OptimizerCase) -> None:
    """Momentum switched on late starts from the gradient, like torch's SGD."""
    if "momentum" not in case.settings:
        return
    settings = {**case.settings, "momentum": 0.0} | (
        {"nesterov": False} if "nesterov" in case.settings else {}
    )
    params = pair()
    optimizer = cls(params, **settings)
    step(optimizer, params, [1.0, 1.0])
    buffers: list[list[Tensor]] = []
    for momentum in (0.5, 0.5):
        optimizer.param_groups[0]["momentum"] = momentum
        step(optimizer, params, [0.1, -0.2])
        buffers.append([optimizer.state[param]["momentum_buffer"].clone() for param in params])
    first, second = buffers
    for left, two in zip(first, second, strict=True):
        assert bool(left.all())
        torch.testing.assert_close(two, 1.5 * left)
