"""A small forward pass through a model, which leaves the model as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError

__all__ = [
    "DOES_NOT_RUN",
    "TOKENS",
    "first_tensor",
    "logits_of",
    "outputs_of",
    "undisturbed",
    "valueless",
    "working_inputs",
]

DOES_NOT_RUN = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError),
    *(LookupError, RuntimeError, TypeError, ValueError),
)
"""What a model's own code raises on inputs that it does not take; a missing file is another matter."""

TOKENS = 11
"""Of a made-up text: a prime, so that it is no width of a model."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode, then restore the model and the random state.

    Attributes of modules and configurations, sub-modules, hooks and buffers are put back: BigBird, for
    example, changes its own attention for good when it sees a short text.
    """
    objects = {id(m): m for m in model.modules()}
    objects |= {
        id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "__dict__")
    }
    kept = [
        (one, dict(vars(one)), {k: v.copy() for k, v in vars(one).items() if isinstance(v, dict)})
        for one in objects.values()
    ]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    model.eval()
    for module in model.modules():
        if any(hasattr(parameter, "quant_state") for parameter in module.parameters(recurse=False)):
            # In evaluation bitsandbytes packs 4-bit weights anew on a CPU, and multiplies without a graph.
            module.training = True
    try:
        with torch.random.fork_rng(list(devices)), torch.no_grad():
            yield
    finally:
        for one, attributes, mappings in kept:
            vars(one).clear()
            vars(one).update(attributes)
            for name, content in mappings.items():
                attributes[name].clear()
                attributes[name].update(content)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor in nested sequences and mappings."""
    if isinstance(value, Tensor):
        return value
    # A tuple of types: torch 2.9 compiles no union of them.
    sequence = isinstance(value, (tuple, list))
    values = value.values() if isinstance(value, Mapping) else value if sequence else ()
    return next((found for value in values if (found := first_tensor(value)) is not None), None)


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    return (parameters[0].device, parameters[0].dtype) if parameters else (torch.device("cpu"), torch.float32)


def _made_up(model: Any) -> Iterator[dict[str, Tensor]]:
    """Yield inputs that a model may take, from its configuration; the first that works serves."""
    config, name = getattr(model, "config", None), getattr(model, "main_input_name", "input_ids")
    if config is None:
        return
    device, dtype = _place(model)
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 224)
    height, width = size if isinstance(size, tuple | list) else (size, size)
    frames = 2 * getattr(config, "max_source_positions", 500)
    shapes = {
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
        ids[-1] = end  # t5 and bart classify what stands there
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
        yield {name: ids[:, None]}  # several choices a row


def outputs_of(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Return what a model computes: its logits, all of them; without any, its first floating-point tensor."""
    output = _run(model, inputs)
    first = first_tensor(output)
    return _logits(output) or ([] if first is None else [first])


def logits_of(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Return a model's logits, all of them; nothing, where it gives states only."""
    output = _run(model, inputs)
    return [output] if isinstance(output, Tensor) else _logits(output)


def valueless(model: nn.Module) -> bool:
    """Return whether a model has shapes only: on the meta device, or of fake tensors."""
    return any(p.is_meta or type(p).__name__ == "FakeTensor" for p in model.parameters())


def _run(model: Any, inputs: Mapping[str, Any]) -> Any:
    try:
        return _called(model, inputs)
    except DOES_NOT_RUN:
        if not valueless(model) or "input_ids" not in inputs:
            raise
    # A head that looks for the last token needs values, and so does a mask of two dimensions.
    ids = inputs["input_ids"]
    mask = ids.new_ones(1, 1, ids.shape[-1], ids.shape[-1], dtype=torch.bool)
    base = getattr(model, "base_model", model)
    try:
        return _called(base, inputs)
    except DOES_NOT_RUN:
        return _called(base, {**inputs, "attention_mask": mask})


def _called(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    cached = hasattr(getattr(model, "config", None), "use_cache") and "use_cache" not in inputs
    try:
        return model(**inputs, **({"use_cache": False} if cached else {}))
    except TypeError:
        return model(**inputs)


def _logits(output: Any) -> list[Tensor]:
    items = output.items() if isinstance(output, Mapping) else ()
    return [value for name, value in items if "logits" in name and isinstance(value, Tensor)]


def working_inputs(model: nn.Module, example: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return inputs that a model takes: the example, or such as its configuration suggests.

    Args:
        model: The model; call it within `undisturbed`.
        example: Keyword arguments of its forward pass.

    Raises:
        ConfigurationError: None works.
    """
    reasons = []
    for inputs in [dict(example)] if example is not None else _made_up(model):
        with ExitStack() as stack:
            stack.enter_context(undisturbed(model))
            try:
                outputs_of(model, inputs)
            except DOES_NOT_RUN as error:
                reasons.append(" ".join(f"{type(error).__name__}: {error}".split())[:160])
                continue
        return inputs
    raise ConfigurationError(
        f"{type(model).__name__} cannot be run on "
        f"{'the example' if example is not None else 'made-up inputs'} "
        f"({reasons[0] if reasons else 'it has no configuration'}): pass example= with the keyword "
        "arguments of "
        "one forward pass"
    )
