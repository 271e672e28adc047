"""The forms of the SAGE factor. Nothing here imports torch."""

__all__ = ["FORMS"]

FORMS = ("released", "paper")
"""|I-Î| / (Î+s) as in the authors' code, and (|I-Î|+s) / (Î+s)."""
