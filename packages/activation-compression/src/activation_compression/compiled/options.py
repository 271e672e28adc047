"""Options for `torch.compile` that keep activations in few bits until backward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

from activation_compression.compiled.settings import Settings
from activation_compression.levels import WIDTHS, find_level
from activation_compression.statistics import Statistics
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_choice, check_number

__all__ = ["CompileOptions", "compile_options"]


class CompileOptions(dict[str, object]):
    """Options for `torch.compile(model, options=...)`, and statistics of the compiled model's saved tensors.

    `allow_buffer_reuse` is off, since the compiler would keep a free buffer until one of the same size is
    needed: from one layer's backward pass to that of the layer before.

    A copy has the same graphs, and so the same statistics; in another process it has its own.

    Args:
        settings: What packing is to do.
    """

    def __init__(self, settings: Settings) -> None:
        from activation_compression.compiled.operators import STATES, State
        from activation_compression.compiled.partitioner import Partitioner  # imports the compiler

        super().__init__(custom_partitioner_fn=Partitioner(settings), allow_buffer_reuse=False)
        named = {"exclude": settings.exclude, "widths": settings.widths}
        self._settings, self._state = settings, STATES.setdefault(settings.state, State(settings.seed, named))

    def __reduce__(self) -> tuple[object, ...]:
        return CompileOptions, (self._settings,), None, None, iter(self.items())

    @property
    def stats(self) -> Statistics:
        """The tensors that crossed in the last forward pass: a row per tensor, totals, ratio.

        Earlier passes whose backward pass has not run yet are included.

        Raises:
            ConfigurationError: A name in `exclude` or `widths` that this pass does not have; the next forward
                pass raises it too.
        """
        self._state.check_names()
        return Statistics(self._state.rows)

    def state_dict(self) -> dict[str, object]:
        """Return how many tensors were rounded."""
        return {"drawn": self._state.draws.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of another run."""
        self._state.draws.drawn = state["drawn"]


@explain_arguments
def compile_options(
    level: str = "L1",
    *,
    widths: Mapping[str, int] | None = None,
    group_size: int = 256,
    seed: int = 0,
    min_elements: int = 1024,
    exclude: Iterable[str] = (),
    derive: bool = True,
) -> CompileOptions:
    """Return options under which `torch.compile` keeps activations in few bits between forward and backward.

        h that crosses to the backward graph → Q_b(h),   E[Q_b(h)] = h

    torch's min-cut partition decides which tensors cross; cheap ones are recomputed. For the rest, the table
    (`activation_compression.formulas`) says by operation what may be rounded; masks take one bit. Backward's
    comparisons are made in the forward pass, one bit per element. Each step rounds anew.

    Args:
        level: lossless: no rounding; L1, L1.1, L1.2 fixed 4, 8, 2 bits; L2, L2.1, L2.2 with `widths`.
        widths: "module:operation:number", as rows of `stats` count them → 1, 2, 4, 8, 16 or 32 bits; others
            get the level's.
        group_size: Elements that share a minimum and a step, at least 1.
        seed: Seed of the rounding, which uses no global random stream.
        min_elements: Tensors with fewer elements are kept unchanged.
        exclude: Patterns (`*`, `?`) of "module:operation" whose tensors are kept unchanged.
        derive: Whether backward may recompute values that it needs whole; torch's partition stores them.

    Returns:
        A dictionary for `options=`, whose `stats` describes the last forward pass's saved tensors.

    Raises:
        ConfigurationError: A setting that does not exist; L0; a level that uses host memory; automatic
            precision without `widths`. In the second forward pass: a name in `exclude` or `widths` that the
            first one did not have.

    Source: Liu et al. 2022 (arXiv 2206.11357) for the rounding; the released code works on eager models only.

    Examples:
        >>> options = compile_options("L1")  # torch.compile(model, options=options)
        >>> list(options), options.stats.ratio
        (['custom_partitioner_fn', 'allow_buffer_reuse'], 1.0)
    """
    rounding = find_level(level)
    if rounding.offload or not rounding.packs:
        raise ConfigurationError(
            f"level {level!r} is not for compiled models: use lossless, L1, L1.1 or L1.2, or L2 with widths="
        )
    if rounding.automatic and not widths:
        raise ConfigurationError(
            f"level {level!r} measures its widths on eager models only: use L1, or give widths="
        )
    for name, bits in (widths or {}).items():
        check_choice(f"widths[{name!r}]", bits, (*WIDTHS, 16, 32))
    check_number("group_size", group_size, at_least=1)
    check_number("seed", seed, at_least=0, below=2**63)
    check_number("min_elements", min_elements, at_least=0)
    by_name = dict(sorted((widths or {}).items()))
    settings = Settings(rounding, group_size, min_elements, derive, by_name, tuple(exclude), seed, "")
    from activation_compression.compiled.operators import STATES  # imports the compiler

    states = (f"{settings} {number}" for number in count())
    return CompileOptions(replace(settings, state=next(state for state in states if state not in STATES)))
