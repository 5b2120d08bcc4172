"""What one engine and its application are made of, as plain data that can be sent to another process or machine."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from ..codecs.text import Text
from ..folder import locate
from .limits import Limits


@dataclass(frozen=True)
class Setup:
    """A model with its adapters, where it runs, and what requests may ask.

    `model` is a folder, a hub id or an embedded model, `name` what requests call it. `adapters` are names and folders
    of LoRA adapters of this model. `memory` is bytes for keys, values and logits of requests; None: what fits.
    `interval` is seconds for which a step may wait to be told with later ones.
    """

    model: str
    name: str
    limits: Limits
    adapters: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"
    dtype: str | None = None
    memory: int | None = None
    threads: int | None = None
    interval: float = 0.0
    log: str | None = None

    def text(self) -> Text:
        """The model's tokenizer with the chat template that conversations are put into. ValueError where one fails."""
        text = Text.load(locate(self.model))
        if self.limits.template is not None:
            text.template = self.limits.template
            text.chat_text([{"role": "user", "content": "Good morning."}])
        return text

    def command(self) -> list[str]:
        """What starts the engine's process, which finds modules where this one does."""
        here = "" in sys.path or os.getcwd() in sys.path
        options = {"name": self.name, "device": self.device, "dtype": self.dtype}
        options |= {"memory": self.memory, "threads": self.threads, "interval": self.interval}
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        given += [f"--adapter={name}={folder}" for name, folder in self.adapters]
        return [sys.executable, *([] if here else ["-P"]), "-m", "unveil.serve.worker", *given, "--", self.model]
