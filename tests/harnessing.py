"""`unveil harness` in one of several processes, for the test of what they do together."""

from __future__ import annotations

import io
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import torch

from unveil import cli

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lm_eval.tasks import TaskManager

PLAIN = TaskManager.__init__


def without_defaults(self: TaskManager, *given, **named) -> None:
    """Reading the harness's thousands of tasks takes longer than all of these tests."""
    PLAIN(self, *given, **{**named, "include_defaults": False})


def harnessed(words: list[str]) -> tuple[int, str, str]:
    """The exit code of `unveil harness WORDS` in this process, its output and its errors."""
    torch.set_num_threads(1)
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with (
        patch.object(sys, "argv", ["unveil", "harness", *words]),
        patch.object(TaskManager, "__init__", without_defaults),
        patch("lm_eval.evaluator.add_env_info", lambda results: None),  # it takes seconds
        redirect_stdout(out),
        redirect_stderr(errors),
        warnings.catch_warnings(action="ignore"),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return code, out.getvalue(), errors.getvalue()


def all_harnessed(many: list[list[str]]) -> list[tuple[int, str, str]]:
    """One after the other, since starting a process takes longer than what it does."""
    return [harnessed(words) for words in many]
