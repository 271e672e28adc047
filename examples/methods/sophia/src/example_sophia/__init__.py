"""Sophia: momentum over an estimate of the curvature (Liu et al. 2023, arXiv 2305.14342)."""
