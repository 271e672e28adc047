"""The saved tensors of a forward pass and their bytes: a row for each tensor, totals, a table."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["SavedTensor", "Statistics"]


@dataclass(frozen=True)
class SavedTensor:
    """One saved tensor; memory that several tensors share is counted once.

    Attributes:
        module: Name of the module in whose forward pass it was saved; empty outside of modules.
        operation: The torch function that saved it, or the operation that made it.
        shape: Its shape.
        dtype: Its dtype, without `torch.`.
        bits: Bits per stored element, without minima and steps.
        original_bytes: Bytes of its storage; 0 if an earlier row counts them.
        stored_bytes: Bytes that are kept instead.
        derived_from: How it is computed again; empty if it is stored.
    """

    module: str
    operation: str
    shape: tuple[int, ...]
    dtype: str
    bits: int
    original_bytes: int
    stored_bytes: int
    derived_from: str = ""


@dataclass
class Statistics:
    """The saved tensors of a forward pass, without parameters and buffers.

    Attributes:
        rows: A row for each tensor.

    Examples:
        >>> rows = [SavedTensor("encoder", "linear", (512,), "float32", 4, 2048, 264)]
        >>> print(Statistics(rows))
        module   operation  shape  dtype    bits  before  after
        encoder  linear     512    float32     4    2048    264
        total: 2048 bytes before, 264 after, ratio 7.76
    """

    rows: list[SavedTensor] = field(default_factory=list[SavedTensor])

    @property
    def original_bytes(self) -> int:
        """Bytes without compression; each storage counts once."""
        return sum(row.original_bytes for row in self.rows)

    @property
    def stored_bytes(self) -> int:
        """Bytes that are kept until backward."""
        return sum(row.stored_bytes for row in self.rows)

    @property
    def ratio(self) -> float:
        """`original_bytes / stored_bytes`; 1 if nothing is stored."""
        return self.original_bytes / self.stored_bytes if self.stored_bytes else 1.0

    def __str__(self) -> str:
        header = ("module", "operation", "shape", "dtype", "bits", "before", "after")
        lines = [header] + [
            (
                row.module,
                row.operation,
                "x".join(map(str, row.shape)),
                row.dtype,
                str(row.bits),
                str(row.original_bytes),
                str(row.stored_bytes) if not row.derived_from else f"derived from {row.derived_from}",
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join(
                text.rjust(width) if number >= 4 else text.ljust(width)
                for number, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        total = (
            f"total: {self.original_bytes} bytes before, {self.stored_bytes} after, ratio {self.ratio:.2f}"
        )
        return "\n".join([*aligned, total])
