"""The forms of the SAGE factor. Nothing here imports torch."""

__all__ = ["FORMS"]

FORMS = ("paper", "released")
"""(|I-Î|+s) / (Î+s), and |I-Î| / (Î+s) as in the authors' code."""
