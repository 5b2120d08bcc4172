"""One training loop for every objective: it accumulates, clips, averages, saves, resumes and reports."""

from .checkpoint import newest
from .loop import Result, Source, Stopped, Training, train
from .recipe import Recipe

__all__ = ["Recipe", "Result", "Source", "Stopped", "Training", "newest", "train"]
