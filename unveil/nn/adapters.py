"""Low-rank adapters (LoRA): a frozen network with small trained matrices beside some of its linear layers.

LoRA (2106.09685): W x becomes W x + s B A x, with A (r, in) random, B (out, r) zero at first, and s = alpha / r.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ATTENTION, MLP = ("q", "k", "v", "out"), ("gate", "up", "down")
TARGETS = {"all": (*ATTENTION, *MLP), "attention": ATTENTION, "mlp": MLP} | {name: (name,) for name in ATTENTION + MLP}


class Pair(NamedTuple):
    """What is beside one linear layer."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)

    def change(self, scale: float) -> Tensor:
        """(out, in) float32: what is added to the layer's weight."""
        return scale * (self.b.float() @ self.a.float())


@dataclass(frozen=True)
class Lora:
    """Which linear layers get an adapter, and of what size.

    r        rank
    alpha    the change is scaled by alpha / r
    targets  all, attention, mlp, or several of q, k, v, out, gate, up, down joined by +
    dropout  share of a layer's input that its adapter does not see in training
    """

    r: int = 8
    alpha: int = 16
    targets: str = "all"
    dropout: float = 0.0

    def __post_init__(self):
        if self.r < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                "an adapter needs a rank of at least 1, an alpha of at least 1 and a dropout from 0 up to 1; "
                f"got r={self.r}, alpha={self.alpha}, dropout={self.dropout:g}"
            )
        if unknown := [name for name in self.targets.split("+") if name not in TARGETS]:
            raise ValueError(f"no adapter target called {unknown[0]!r}; there are: {', '.join(TARGETS)}, joined by +")

    @classmethod
    def parse(cls, text: str) -> Lora:
        """`r=8,alpha=16,targets=q+v`; what is left out has its default."""
        kinds = {"r": int, "alpha": int, "targets": str, "dropout": float}
        given = {}
        for part in text.split(","):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not equals or name not in kinds:
                raise ValueError(f"an adapter is written r=8,alpha=16,targets=all,dropout=0; got {text!r}")
            try:
                given[name] = kinds[name](value)
            except ValueError:
                raise ValueError(f"an adapter's {name} is a number, whole but for dropout; got {value!r}") from None
        return cls(**given)

    def layers(self, net: nn.Module) -> list[str]:
        """The linear layers of a network that it names; routers, experts, embeddings and the head are none of them."""
        wanted = {leaf for name in self.targets.split("+") for leaf in TARGETS[name]}
        modules = ((name, name.split("."), module) for name, module in net.named_modules())
        return [
            name
            for name, path, module in modules
            if isinstance(module, nn.Linear) and path[-1] in wanted and path[-2:-1] in (["attention"], ["mlp"])
        ]


@dataclass(frozen=True)
class Adapter:
    """What a network that carries an adapter knows of it."""

    lora: Lora
    names: Mapping[str, str]  # our names of the layers that have one, to those of the checkpoint
    base: str  # where the frozen weights came from
    fingerprint: str  # and what tells them from others
    turned: bool = False  # does the checkpoint store these layers (in, out)?


def peft() -> Any:
    """The engine of adapters in training. It imports transformers, so nothing but training asks for it."""
    try:
        import peft
    except ImportError as error:
        raise ValueError("training an adapter needs peft: pip install 'unveil[tune]'") from error
    return peft


def attach(net: nn.Module, adapter: Adapter, seed: int = 0) -> None:
    """Freeze the network and put the adapter's new matrices, which alone are trained, beside its layers.

    The network computes what it did before until they are. ValueError when peft is not installed.
    """
    engine, training = peft(), net.training
    with torch.random.fork_rng():  # the first matrices are random, and depend on the seed alone
        torch.manual_seed(seed)
        engine.inject_adapter_in_model(config(engine, adapter.lora, list(adapter.names)), net)
    net.train(training)


def pairs(net: nn.Module, adapter: Adapter) -> dict[str, Pair]:
    """The adapter's matrices by the names of the layers that they stand beside."""
    state = peft().get_peft_model_state_dict(net)
    return {name: Pair(state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]) for name in adapter.names}


def config(engine: Any, lora: Lora, layers: list[str]) -> Any:
    """What peft calls this adapter."""
    return engine.LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers)


def described(adapter: Adapter) -> dict[str, Any]:
    """The adapter_config.json that peft reads, for the checkpoint's own names."""
    made = config(peft(), adapter.lora, []).to_dict()
    layers = sorted(adapter.names.values())
    about = {"base_model_name_or_path": adapter.base, "inference_mode": True, "fan_in_fan_out": adapter.turned}
    return {**made, **about, "target_modules": layers}
