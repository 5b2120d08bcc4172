"""Diffusion language models: adapt any autoregressive checkpoint, then decode, evaluate and serve it."""

__version__ = "0.1.0"
