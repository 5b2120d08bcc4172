"""The sensor of TSPD: a small network that tells from a token's trajectory whether it is final (arXiv 2605.30753).

Reconstruction: the authors' network was not public. Shapes: B rows, K positions in the block, N positions read,
P positions of traces, T predictions of each.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..canvas import Canvas
from ..prediction import Prediction
from ..whole import put
from .extrapolation import cells

FEATURES = ("confidence", "entropy", "momentum", "position")
MEMORY = 16  # numbers the network remembers of a position, twice
INNER = 32
KEPT = 0.7  # of the momentum at each step
SAMPLED = 64  # numbers of a parameter that identify it
FORMAT, VERSION = "unveil sensor", 1
AGAIN = "run `unveil calibrate tspd` for this model and block"


@dataclass(frozen=True)
class Origin:
    """What a sensor was trained for: it knows one model, decoded in blocks of one size."""

    vocab: int  # logits of a prediction
    mask_id: int
    attention: str  # full, block, leader or causal
    trained: int  # positions per block of the model's attention; 0: it has none
    block: int  # positions per block while decoding
    identity: str = ""  # a hash of the model's shape and weights; "": unknown
    reset: bool = False  # does the network forget a position when its best token changes?
    noise: tuple[float, float, float] = (0.02, 0.02, 0.10)  # fitted to the traces; as in `extrapolation.Noise`


class Sensor(nn.Module):
    """LSTM(4 -> 16), then 16 -> 32 -> 1: 1,985 parameters shared by all positions."""

    mean: Tensor
    scale: Tensor

    def __init__(self, origin: Origin):
        super().__init__()
        self.origin = origin
        self.memory = nn.LSTM(len(FEATURES), MEMORY, batch_first=True)
        self.head = nn.Sequential(nn.Linear(MEMORY, INNER), nn.ReLU(), nn.Linear(INNER, 1))
        self.register_buffer("mean", torch.zeros(len(FEATURES)))  # of the features in training
        self.register_buffer("scale", torch.ones(len(FEATURES)))  # their standard deviations; inf: left out

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Uniform random weights, within one over the root of what each unit reads."""
        for name, p in self.named_parameters():
            reads = INNER if name.startswith("head.2") else MEMORY
            p.uniform_(-(reads**-0.5), reads**-0.5, generator=generator)

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 4) features and (N, 32) state to (N,) log-odds of being final and the next state."""
        inner = (features - self.mean) / self.scale
        hidden = torch.lstm_cell(inner, state.chunk(2, -1), *self.memory.all_weights[0])
        return self.head(hidden[0])[:, 0], torch.cat(hidden, -1)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """(P, T, 4) features and (P, T) best tokens to (P, T) log-odds of being final."""
        if not self.origin.reset:
            return self.head(self.memory((features - self.mean) / self.scale)[0])[..., 0]
        state, out = features.new_zeros(len(features), 2 * MEMORY), []
        for t in range(features.shape[1]):
            if t:
                state = state * (tokens[:, t] == tokens[:, t - 1])[:, None]
            score, state = self.step(features[:, t], state)
            out.append(score)
        return torch.stack(out, 1)

    def check(self, canvas: Canvas) -> None:
        """ValueError where a canvas shows that it is another model's."""
        ours, look = self.origin, canvas.look
        if (look.kind, look.block or 0) != (ours.attention, ours.trained) or canvas.mask_id != ours.mask_id:
            raise ValueError(
                f"the sensor was trained for a model with {ours.attention} attention{of(ours.trained)} and mask token "
                f"{ours.mask_id}, and this one has {look.kind} attention{of(look.block)} and mask token "
                f"{canvas.mask_id}: {AGAIN}"
            )

    def check_block(self, canvas: Canvas) -> None:
        """ValueError where blocks have another size; a shorter one may be what is left at the end."""
        width, rest = canvas.block.width, int((canvas.lengths - canvas.starts).max())
        if width > self.origin.block or (width < self.origin.block and width < rest):
            raise ValueError(
                f"the sensor was trained for blocks of {self.origin.block} positions, and these have {width}: "
                f"decode with block={self.origin.block}, or {AGAIN}"
            )

    def check_identity(self, model: nn.Module) -> None:
        """ValueError where the weights are others than those it was trained for."""
        if self.origin.identity and self.origin.identity != identity(model):
            raise ValueError(f"the sensor was trained for other weights than this model has: {AGAIN}")

    def check_vocabulary(self, seen: Prediction) -> None:
        """ValueError where the model has another number of tokens."""
        if seen.logits.shape[1] != self.origin.vocab:
            raise ValueError(
                f"the sensor was trained for a vocabulary of {self.origin.vocab} tokens, and this model has "
                f"{seen.logits.shape[1]}: {AGAIN}"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file with what it was trained for in its metadata, by way of a temporary name."""
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"format": FORMAT, "version": str(VERSION), "origin": json.dumps(asdict(self.origin))}
        put(path, save({key: value.cpu().contiguous() for key, value in self.state_dict().items()}, about))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensor:
        """Read what `save` wrote. ValueError when it is missing, no sensor, or a sensor of another version."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no sensor {path}: make one with `unveil calibrate tspd`")
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a sensor, or damaged ({error})") from error
        if about.get("format") != FORMAT:
            raise ValueError(f"{path} is not a sensor: `unveil calibrate tspd` writes them")
        if about.get("version") != str(VERSION):
            raise ValueError(
                f"{path} is a sensor of version {about.get('version')}, and version {VERSION} is read here: {AGAIN}"
            )
        sensor = cls(origin(about.get("origin", ""), path))
        expected = {name: value.shape for name, value in sensor.state_dict().items()}
        if {name: value.shape for name, value in tensors.items()} != expected:
            raise ValueError(f"{path} does not hold the tensors of a sensor: {AGAIN}")
        sensor.load_state_dict(tensors)
        return sensor.eval().requires_grad_(False)


def identity(model: nn.Module) -> str:
    """A hash of the shapes of all parameters and of a few numbers of each, the same in float32 and bfloat16."""
    digest = hashlib.blake2b(digest_size=16)
    for name, p in model.named_parameters():
        some = p.detach().flatten()[:SAMPLED].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(json.dumps([name, list(p.shape), some.tolist()]).encode())
    return digest.hexdigest()


def of(block: int | None) -> str:
    return f" in blocks of {block}" if block else ""


def origin(text: str, path: Path) -> Origin:
    """What a file's metadata say of it."""
    try:
        known = json.loads(text)
        known["noise"] = tuple(known["noise"])
        return Origin(**{each.name: known[each.name] for each in fields(Origin)})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say what it was trained for: {AGAIN}") from error


def features(confidence: Tensor, entropy: Tensor, position: Tensor) -> Tensor:
    """(P, T) confidences, (P, T) entropies in shares of ln V and (P,) positions in shares of a block to (P, T, 4)."""
    momentum = [torch.zeros_like(confidence[:, 0])]
    for t in range(1, confidence.shape[1]):
        momentum.append(follow(momentum[-1], confidence[:, t] - confidence[:, t - 1]))
    place = position[:, None].expand_as(confidence)
    return torch.stack([confidence, entropy, torch.stack(momentum, 1), place], -1)


def follow(momentum: Tensor, difference: Tensor) -> Tensor:
    """The moving mean of differences of confidences."""
    return KEPT * momentum + (1 - KEPT) * difference


class Trajectories:
    """What a sensor remembers of every position of one block."""

    def __init__(self, sensor: Sensor, canvas: Canvas):
        count, device = len(canvas.tokens) * canvas.block.width, canvas.tokens.device
        self.sensor = sensor
        self.state = torch.zeros(count, 2 * MEMORY, device=device)
        self.confidence = torch.zeros(count, device=device)
        self.momentum = torch.zeros(count, device=device)
        self.token = torch.full((count,), -1, device=device)  # the best token; -1: never read

    @torch.no_grad()
    def follow(self, canvas: Canvas, seen: Prediction) -> Tensor:
        """(B, W) the probability that the best token is final; -inf where not read. Once a step, before writing."""
        at, origin = cells(canvas, seen), self.sensor.origin
        c, best = seen.confidence.view(-1)[seen.read], seen.best.reshape(-1)[seen.read]
        share = seen.entropy.view(-1)[seen.read] / math.log(origin.vocab)
        known = self.token[at] >= 0
        momentum = torch.where(known, follow(self.momentum[at], c - self.confidence[at]), 0)
        position = (at % canvas.block.width) / origin.block
        state = self.state[at]
        if origin.reset:
            state = state * (self.token[at] == best)[:, None]
        score, state = self.sensor.step(torch.stack([c, share, momentum, position], -1), state)
        self.state[at], self.confidence[at], self.momentum[at], self.token[at] = state, c, momentum, best
        return seen.spread(score.sigmoid(), -torch.inf)
