"""`unveil score`: how well a model predicts text, exactly or by a bound, and which of the two."""

from __future__ import annotations


def score() -> None:
    """x"""
