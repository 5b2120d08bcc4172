"""Commit what a trained sensor takes to be final, and what is about to be (TSPD with confidence extrapolation)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..denoiser import Denoiser
from ..nn.extrapolation import Extrapolation, Noise
from ..nn.sensor import Origin, Sensor, Trajectories
from ..prediction import Prediction
from . import Decoder, or_best


@dataclass
class Tspd(Decoder):
    """Reconstruction of arXiv 2605.30753, whose equations were not public.

    Chosen: tokens that the sensor gives `theta` or more; without a sensor, those of probability `tau` or more, which is
    the threshold decoder. To them extrapolation (`ce`) adds what is about to reach `tau`, and from them it takes what
    oscillates or declines (`veto`). A row where nothing is left commits its surest token.
    """

    sensor: str | Sensor = ""  # the file that `unveil calibrate tspd` wrote; "": none
    theta: float = 0.5  # probability of being final; above 1: the sensor chooses nothing
    ce: bool = True  # extrapolate confidences
    tau: float = 0.9  # probability at which extrapolation takes a token to be settled
    kappa: float = 0.5  # standard deviations that a forecast must have to spare
    coverage: float = 0.7  # share of what stands left of a token that must be written; above 1: no look-ahead
    horizon: int = 3  # steps ahead at most
    veto: bool = True  # hold back what oscillates or declines
    noise: tuple[float, float, float] | None = None  # variances of level, slope and reading; None: the sensor's

    def __post_init__(self):
        super().__post_init__()
        if self.theta < 0:
            raise ValueError(f"theta is {self.theta}; expected a probability, or above 1 for none")
        if self.noise is not None and (len(self.noise) != 3 or min(self.noise) <= 0):
            raise ValueError(f"noise is {self.noise}; expected three variances above 0: of level, slope and reading")
        self.net: Sensor | None = None
        if self.sensor:
            self.net = self.sensor if isinstance(self.sensor, Sensor) else Sensor.load(self.sensor)
        fitted = self.net.origin.noise if self.net else Origin.noise
        noise = Noise(*(self.noise or fitted))
        self.trend = Extrapolation(self.tau, self.kappa, self.coverage, self.horizon, self.veto, noise)

    def meet(self, model: Denoiser) -> None:
        if self.net:
            self.net.check_identity(model)

    def begin(self, canvas: Canvas) -> None:
        if self.net:
            self.net.check(canvas)
            self.net = self.net.to(canvas.tokens.device)

    def enter(self, canvas: Canvas) -> None:
        self.trend.enter(canvas)
        if self.net:
            self.net.check_block(canvas)
            self.trajectories = Trajectories(self.net, canvas)

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        allowed = canvas.open & seen.seen
        if self.net:
            self.net.check_vocabulary(seen)
            # The sensor speaks of the likeliest token; a draw is held to be final only where it is that one.
            chosen = (self.trajectories.follow(canvas, seen) >= self.theta) & (token == seen.best)
        else:
            chosen = p >= self.tau
        if self.ce:
            chosen = self.trend.settle(canvas, seen, token, chosen)
        chosen = chosen & allowed
        return torch.where(or_best(chosen, p, allowed), token, canvas.seen)
