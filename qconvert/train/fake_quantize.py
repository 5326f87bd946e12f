"""Fake quantization with gradients: activations and weights rounded as in the graph that ships.

Rounding passes the gradient through (a straight-through estimator); clipped values get none. A step
learns as in LSQ (Esser et al. 2020), relative to its start, so that one learning rate suits all:

    y = s clip(round(x / s))         s = s0 exp(p)         dL/dp = g s dL/ds

g is LSQ's scale of the gradient, 1 / sqrt(values * largest integer).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qconvert.quantize import pairs

# A latent weight is at most so far from its learned integer, in steps: at first it is rounded there.
NEAR = 0.49


class _RoundToGrid(torch.autograd.Function):
    """Values of a grid with one step: y = s (clip(round(x / s) + z) - z)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_step: Tensor, grid: tuple[float, float, float], gradient: float
    ) -> Tensor:
        step, low, high = grid
        y = torch.div(x, step).round_().clamp_(low, high).mul_(step)
        ctx.edges, ctx.gradient = ((low - 0.5) * step, (high + 0.5) * step), gradient
        ctx.save_for_backward(*((x, y) if ctx.needs_input_grad[1] else (x,)))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (above,) = gradients
        x = ctx.saved_tensors[0]
        inside = torch.ops.aten.hardtanh_backward(above, x, *ctx.edges)
        of_step = None
        if ctx.needs_input_grad[1]:
            # s dy/ds is y where x is clipped, and y - x inside.
            total = _dot(above, ctx.saved_tensors[1]) - _dot(inside, x)
            of_step = total * ctx.gradient
        return inside, of_step, None, None


def _mirror(offsets: Tensor) -> Tensor:
    """Return how far a latent weight is from its integer, from how far the float weight is.

    One that was rounded to its farther neighbour is mirrored between both. If all of these were
    equally far instead, a small step would round all of them anew at once.
    """
    mirrored = torch.where(offsets.abs() <= 0.5, offsets, offsets.sign() * (1.0 - offsets.abs()))
    return torch.where(offsets.abs() <= 1.0, mirrored, 0.0).clamp(-NEAR, NEAR)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum of products, in one pass over tensors that lie in memory alike."""
    if first.stride() != second.stride():
        first, second = first.contiguous(), second.contiguous()
    if first.is_contiguous() or first.dim() != 4:
        return torch.dot(first.reshape(-1), second.reshape(-1))
    return torch.dot(*(one.permute(0, 2, 3, 1).reshape(-1) for one in (first, second)))


class _Round(torch.autograd.Function):
    """The nearest integers; the gradient passes through."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_: Any, *gradients: Any) -> Any:
        return gradients[0]


class ActivationQuantizer(nn.Module):
    """A quantized activation: its step is learned, its zero point stays.

    With `quantizes` off it returns its input.
    """

    log_step: Tensor

    def __init__(self, step: float, zero_point: int, limits: tuple[int, int], fixed: bool) -> None:
        super().__init__()
        self.first_step, self.zero_point, self.limits = step, zero_point, limits
        self.quantizes = True
        start = torch.zeros(())
        if fixed:
            self.register_buffer("log_step", start)
        else:
            self.log_step = nn.Parameter(start)

    @property
    def step(self) -> float:
        """The step as it is now."""
        return float(self.first_step * math.exp(float(self.log_step.detach())))

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        """Return the values that represent `x`; with a factor, `factor` times `x` on the grid."""
        if not self.quantizes:
            return x * factor if factor != 1.0 else x
        low, high = (limit - self.zero_point for limit in self.limits)
        per_image = x.numel() / max(1, x.shape[0] if x.dim() else 1)
        gradient = 1.0 / math.sqrt(per_image * max(high, 1))
        y: Tensor = _RoundToGrid.apply(  # type: ignore[no-untyped-call]
            x, self.log_step, (self.step / factor, float(low), float(high)), gradient
        )
        return y * factor if factor != 1.0 else y


class WeightQuantizer(nn.Module):
    """A quantized weight, and its step for each output channel.

    The parameter `latent` times `unit` is the float weight: with the steps as unit, one learning
    rate suits all channels; with 1 it is the weight itself. Pairs stay within their limit.
    """

    unit: Tensor
    first_steps: Tensor

    def __init__(
        self,
        weight: Tensor,
        integers: Tensor,
        steps: Tensor,
        *,
        largest: int,
        pair_places: Sequence[tuple[Tensor, Tensor]],
        in_steps: bool,
    ) -> None:
        super().__init__()
        self.largest, self.quantizes = largest, True
        start = integers + _mirror(weight / steps - integers)
        self.register_buffer("first_steps", steps)
        self.register_buffer("unit", steps.clone() if in_steps else torch.ones_like(steps))
        latent = start * steps / self.unit
        if latent.dim() == 4:
            latent = latent.to(memory_format=torch.channels_last)
        self.latent = nn.Parameter(latent)
        self.log_steps = nn.Parameter(torch.zeros_like(steps))
        self.pair_places = pair_places

    @property
    def steps(self) -> Tensor:
        """The steps as they are now, in a shape that broadcasts over the weight."""
        return self.first_steps * torch.exp(self.log_steps)

    def integers(self) -> Tensor:
        """Return the integers as they are now."""
        with torch.no_grad():
            self._limit_pairs()
            values = self.latent * (self.unit / self.steps)
            return values.round().clamp(-self.largest, self.largest)

    def forward(self) -> Tensor:
        """Return the weight that the integers stand for."""
        if not self.quantizes:
            return self.latent * self.unit
        with torch.no_grad():
            self._limit_pairs()
        # LSQ's scale of the gradient, without a change of the value.
        gradient = 1.0 / math.sqrt(self.latent.numel() / self.log_steps.numel() * self.largest)
        logs = self.log_steps * gradient + (self.log_steps * (1.0 - gradient)).detach()
        steps = self.first_steps * torch.exp(logs)
        values = (self.latent * (self.unit / steps)).clamp(-self.largest, self.largest)
        rounded: Tensor = _Round.apply(values)  # type: ignore[no-untyped-call]
        return steps * rounded

    def _limit_pairs(self) -> None:
        """Make the weights of a pair smaller by half of what is too much for the limit.

        Two numbers whose sum is within the limit round to integers whose sum is.
        """
        if not self.pair_places:
            return
        steps = self.steps / self.unit
        flat = (self.latent / steps).clamp(-self.largest, self.largest).contiguous().reshape(-1)
        for firsts, seconds in self.pair_places:
            first, second = flat[firsts], flat[seconds]
            total = first + second
            excess = (total.abs() - pairs.PAIR_LIMIT).clamp(min=0.0) * total.sign() / 2
            flat[firsts], flat[seconds] = first - excess, second - excess
        self.latent.copy_(flat.reshape(self.latent.shape) * steps)
