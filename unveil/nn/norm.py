"""Root-mean-square normalisation, quick under autograd on a CPU.

x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(..., E) to (..., 1)."""
    return torch.linalg.vecdot(x, x).unsqueeze(-1).div_(x.shape[-1]).add_(eps).rsqrt_()


class Normalise(torch.autograd.Function):
    """The closed form of the gradient takes five passes over memory, where the recorded formula takes nine."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = inverse_rms(x, eps)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        unit, scale, weight = ctx.saved_tensors
        for_weight = (grad * unit).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        pull = grad * weight
        along = torch.linalg.vecdot(pull, unit).unsqueeze(-1).div_(unit.shape[-1])
        return pull.addcmul_(unit, along, value=-1).mul_(scale), for_weight, None


class RMSNorm(nn.Module):
    """(..., E) to (..., E); computed in float32 whatever the type of the input. `offset` is added to the weight."""

    def __init__(self, width: int, eps: float, offset: float = 0.0):
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((width,), 1 - offset))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.offset if self.offset else self.weight
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.rms_norm(x, weight.shape, weight, self.eps)
        if x.dtype != torch.float32:
            wide = x.float()
            return weight * (wide * inverse_rms(wide, self.eps)).to(x.dtype)
        if torch.is_grad_enabled():
            return Normalise.apply(x, weight, self.eps)
        return (x * inverse_rms(x, self.eps)).mul_(weight)
