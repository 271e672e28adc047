"""LISA: a few layers train at a time, others every few steps (Pan et al. 2024, arXiv 2403.17919)."""
