"""A small forward pass through a model, which leaves the model as it was."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from finetune_common.errors import ConfigurationError
from parameter_efficient.typed import forked_random_numbers

__all__ = [
    "DOES_NOT_RUN",
    "TOKENS",
    "Inputs",
    "first_tensor",
    "floating",
    "logits_of",
    "outputs_of",
    "predictions",
    "run",
    "undisturbed",
    "valueless",
    "working_inputs",
]

DOES_NOT_RUN = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError),
    *(LookupError, RuntimeError, TypeError, ValueError),
)
"""Errors that a model's code raises on inputs that it does not accept; not those of a missing file."""

TOKENS = 11
"""Length of a made-up text: a prime, so that it equals no width of a model."""

Inputs = Mapping[str, object]
"""Keyword arguments of a model's forward pass."""


@contextmanager
def undisturbed(model: nn.Module) -> Generator[None, None, None]:
    """Run the block in evaluation mode, then restore the model and the random state.

    Attributes of modules and configurations, sub-modules, hooks and buffers are restored: BigBird, for
    example, changes its attention for good when it sees a short text.
    """
    objects = {id(m): m for m in model.modules()}
    objects |= {
        id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "__dict__")
    }
    saved = [(changed, dict(vars(changed)), _copies(vars(changed))) for changed in objects.values()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    model.eval()
    for module in model.modules():
        if any(hasattr(parameter, "quant_state") for parameter in module.parameters(recurse=False)):
            # In evaluation mode bitsandbytes repacks 4-bit weights on a CPU, and then builds no graph.
            module.training = True
    try:
        with forked_random_numbers(devices), torch.no_grad():
            yield
    finally:
        for changed, attributes, copies in saved:
            vars(changed).clear()
            vars(changed).update(attributes)
            for name, content in copies.items():
                attributes[name].clear()
                attributes[name].update(content)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _copies(attributes: Mapping[str, object]) -> dict[str, dict[object, object]]:
    """Return copies of the dictionaries among an object's attributes: hooks and sub-modules."""
    return {
        name: cast("dict[object, object]", value).copy()
        for name, value in attributes.items()
        if isinstance(value, dict)
    }


def first_tensor(value: object) -> Tensor | None:
    """Return the first tensor in nested sequences and mappings."""
    if isinstance(value, Tensor):
        return value
    entries: Sequence[object] = ()
    if isinstance(value, Mapping):
        entries = [*cast("Mapping[object, object]", value).values()]
    elif isinstance(value, (tuple, list)):  # a tuple of types: torch 2.9 compiles no union of them
        entries = cast("Sequence[object]", value)
    return next((tensor for entry in entries if (tensor := first_tensor(entry)) is not None), None)


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    return (parameters[0].device, parameters[0].dtype) if parameters else (torch.device("cpu"), torch.float32)


def _made_up(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield inputs that a model may accept, made from its configuration; the first that works is used."""
    config: Any = getattr(model, "config", None)
    name: str = getattr(model, "main_input_name", "input_ids")
    if config is None:
        return
    device, dtype = _place(model)
    vision: Any = getattr(config, "vision_config", config)
    height, width = _height_and_width(getattr(vision, "image_size", 224))
    frames = 2 * getattr(config, "max_source_positions", 500)
    shapes: dict[str, tuple[int, ...]] = {
        "pixel_values": (1, getattr(vision, "num_channels", 3), height, width),
        "input_features": (1, getattr(config, "num_mel_bins", 80), frames),
        "input_values": (1, 2000),
    }
    text = getattr(config, "get_text_config", lambda: config)()
    vocabulary = getattr(text, "vocab_size", None) or getattr(config, "vocab_size", None) or 50
    chunk = getattr(text, "chunk_size_feed_forward", 0) or 1
    ids = torch.arange(-(-TOKENS // chunk) * chunk) * 7 % max(vocabulary - 5, 1) + min(4, vocabulary - 1)
    for special in ("pad_token_id", "eos_token_id"):
        token = getattr(text, special, None)
        if isinstance(token, int):
            ids[ids == token] = (token + 1) % vocabulary
    end = getattr(text, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < vocabulary:
        ids[-1] = end  # t5 and bart classify by the state of this token
    ids = ids[None].to(device)
    main = {name: torch.randn(shapes[name], device=device, dtype=dtype)} if name in shapes else {name: ids}
    decoder = {"decoder_input_ids": ids[:, :-1]}
    extras = [decoder, {}] if getattr(model, "can_generate", lambda: False)() else [{}, decoder]
    for extra in extras if getattr(config, "is_encoder_decoder", False) else [{}]:
        yield main | extra
    if "pixel_values" in main and isinstance(getattr(vision, "num_patches", None), int):
        # An image of any height and width, as its patches in a row.
        side = math.isqrt(vision.num_patches)
        patches = torch.randn(1, side**2, shapes["pixel_values"][1] * vision.patch_size**2)
        yield {
            "pixel_values": patches.to(device, dtype),
            "pixel_attention_mask": torch.ones(1, side**2, dtype=torch.long, device=device),
            "spatial_shapes": torch.tensor([[side, side]], device=device),
        }
    if "pixel_values" not in main:
        yield {"pixel_values": torch.randn(shapes["pixel_values"], device=device, dtype=dtype)}
        yield {name: ids[:, None]}  # several choices in each row


def _height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return all logits of a model; without any, its first tensor."""
    return predictions(run(model, inputs))


def predictions(output: object) -> list[Tensor]:
    """Return all logits in a model's output; without any, its first tensor."""
    first = first_tensor(output)
    return _logits(output) or ([] if first is None else [first])


def logits_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return all logits of a model; nothing if it returns hidden states only."""
    output = run(model, inputs)
    return [output] if isinstance(output, Tensor) else _logits(output)


def floating(value: object) -> list[Tensor]:
    """Return all floating-point tensors in nested sequences and mappings."""
    return [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point()]


def valueless(model: nn.Module) -> bool:
    """Return whether a model has shapes only: on the meta device, or of fake tensors."""
    return any(p.is_meta or type(p).__name__ == "FakeTensor" for p in model.parameters())


def run(model: nn.Module, inputs: Inputs) -> object:
    """Return a model's output."""
    try:
        return _called(model, inputs)
    except DOES_NOT_RUN:
        if not valueless(model) or "input_ids" not in inputs:
            raise
    # A head that looks for the last token needs values, and so does a mask of two dimensions.
    ids = cast(Tensor, inputs["input_ids"])
    mask = ids.new_ones((1, 1, ids.shape[-1], ids.shape[-1]), dtype=torch.bool)
    base = getattr(model, "base_model", model)
    try:
        return _called(base, inputs)
    except DOES_NOT_RUN:
        return _called(base, {**inputs, "attention_mask": mask})


def _called(model: nn.Module, inputs: Inputs) -> object:
    cached = hasattr(getattr(model, "config", None), "use_cache") and "use_cache" not in inputs
    try:
        return model(**inputs, **({"use_cache": False} if cached else {}))
    except TypeError:
        return model(**inputs)


def _logits(output: object) -> list[Tensor]:
    if not isinstance(output, Mapping):
        return []
    entries = cast("Mapping[str, object]", output).items()
    return [value for name, value in entries if "logits" in name and isinstance(value, Tensor)]


def _last_row(model: nn.Module, inputs: dict[str, object], outputs: list[Tensor]) -> dict[str, object]:
    """Return a batch's last row where a model gives for it alone what it gives for it in the batch.

    Rows beside it would cost time, and could not be told from tokens. If the first axis is that of tokens,
    this does not hold: the last of them depends on those before it.
    """
    sizes = {len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim}
    if len(sizes) != 1 or sizes == {1}:
        return inputs
    row = {n: v[-1:] if isinstance(v, Tensor) and v.ndim else v for n, v in inputs.items()}
    try:
        alone = outputs_of(model, row)
    except DOES_NOT_RUN:
        return inputs
    pairs = [*zip(outputs, alone, strict=True)]
    if not all(every.ndim and every[-1:].shape == one.shape for every, one in pairs):
        return inputs
    same = valueless(model) or all(_equal(every[-1:].float(), one.float()) for every, one in pairs)
    return row if same else inputs


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether numbers are the same up to rounding, in any order of sums, also in half precision."""
    return torch.allclose(one, other, rtol=0.02, atol=0.02 * float(one.abs().max()), equal_nan=True)


def working_inputs(model: nn.Module, example: Inputs | None = None) -> dict[str, object]:
    """Return inputs that a model accepts: the example, or inputs made up from its configuration.

    Args:
        model: The model; call this within `undisturbed`.
        example: Keyword arguments of its forward pass.

    Raises:
        ConfigurationError: The model runs on none of them.
    """
    reasons: list[str] = []
    for inputs in [dict(example)] if example is not None else _made_up(model):
        with ExitStack() as stack:
            stack.enter_context(undisturbed(model))
            try:
                outputs = outputs_of(model, inputs)
                return dict(inputs) if example is None else _last_row(model, {**inputs}, outputs)
            except DOES_NOT_RUN as error:
                reasons.append(" ".join(f"{type(error).__name__}: {error}".split())[:160])
    raise ConfigurationError(
        f"{type(model).__name__} cannot be run on "
        f"{'the example' if example is not None else 'made-up inputs'} "
        f"({reasons[0] if reasons else 'it has no configuration'}): pass example= with the keyword "
        "arguments of one forward pass"
    )
