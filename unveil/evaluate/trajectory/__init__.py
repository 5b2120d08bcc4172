"""Denoising trajectories of partially masked text, recorded and measured (arXiv 2604.23235)."""
