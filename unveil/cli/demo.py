"""`unveil demo`: adapt the embedded parent on this machine, watch it fill held-out code, read the report."""

from __future__ import annotations


def demo() -> None:
    """x"""
