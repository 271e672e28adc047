"""GaLore: AdamW on projected gradients (Zhao et al. 2024, arXiv 2403.03507)."""
