"""How far outputs are from those of FP32, as a loss: the figures by which changes are accepted.

Rows of scores count by their squared error and by the KL divergence of their probabilities. Dense
outputs, as heads of detectors have them, count channel by channel (`measure.dense_error`): a box
in pixels beside a score between 0 and 1, and boxes only where something is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qconvert.measure.dense_error import (
    MIN_POWER_SHARE,
    channel_axis,
    find_dense_outputs,
    find_scores,
)


@dataclass(frozen=True)
class RowLoss:
    """The error of an output with a row for each image, relative to the power of all rows."""

    power: float
    has_classes: bool

    def __call__(self, expected: Tensor, actual: Tensor, _: Tensor | None) -> Tensor:
        """Return the loss of a batch."""
        rows = [tensor.reshape(len(expected), -1) for tensor in (expected, actual)]
        loss = (rows[1] - rows[0]).square().sum(1).mean() / self.power
        if self.has_classes:
            logs = [row.log_softmax(1) for row in rows]
            loss = loss + functional.kl_div(
                logs[1], logs[0], reduction="batchmean", log_target=True
            )
        return loss


@dataclass(frozen=True, eq=False)
class DenseLoss:
    """The error of a dense output, relative to the power of its channels over all images."""

    axis: int
    scores: Tensor
    score_power: float
    powers: Tensor

    def __call__(self, expected: Tensor, actual: Tensor, weights: Tensor | None) -> Tensor:
        """Return the loss of a batch; `weights` has the best score at each place."""
        before, after = (self.channels(tensor) for tensor in (expected, actual))
        squares = (after - before).square()
        groups = []
        if self.scores.any():
            groups.append(squares[:, self.scores].sum((1, 2)).mean() / self.score_power)
        if not self.scores.all():
            others = squares[:, ~self.scores]
            if weights is not None:
                others = others * weights[:, None]
            groups.append((others.sum(2).mean(0) / self.powers[~self.scores]).mean())
        return torch.stack(groups).mean()

    def channels(self, tensor: Tensor) -> Tensor:
        """Return an output as [image, channel, place]."""
        return tensor.movedim(self.axis, 1).flatten(2)

    def best_scores(self, tensor: Tensor) -> Tensor:
        """Return the best score at each place of each image."""
        return self.channels(tensor)[:, self.scores].amax(1)


@dataclass(frozen=True)
class OutputLoss:
    """The loss of all real outputs of a network; `weighing` has the output whose scores count."""

    losses: Mapping[str, RowLoss | DenseLoss]
    weighing: Mapping[str, str]

    def __call__(self, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> Tensor:
        """Return the mean over the outputs for a batch."""
        parts = []
        for name, loss in self.losses.items():
            scores = self.weighing.get(name, "")
            other = self.losses.get(scores)
            weights = other.best_scores(expected[scores]) if isinstance(other, DenseLoss) else None
            parts.append(loss(expected[name], actual[name], weights))
        return torch.stack(parts).mean()


def make_tensor_loss(expected: Mapping[str, Tensor]) -> OutputLoss:
    """Return the loss of tensors inside a network: their error relative to their power."""
    powers = {name: float(row.square().sum()) / len(row) or 1.0 for name, row in expected.items()}
    return OutputLoss({name: RowLoss(power, False) for name, power in powers.items()}, {})


def make_loss(expected: Mapping[str, Tensor]) -> OutputLoss:
    """Return the loss of a network with these FP32 outputs on all images."""
    arrays = {name: row.cpu().numpy() for name, row in expected.items() if row.is_floating_point()}
    device = next(iter(expected.values())).device
    dense = find_dense_outputs(arrays)
    losses: dict[str, RowLoss | DenseLoss] = {}
    weighing = {}
    for name, array in arrays.items():
        if name not in dense:
            power = float(np.square(array.reshape(len(array), -1)).sum(1).mean()) or 1.0
            losses[name] = RowLoss(power, array.ndim == 2 and array.shape[1] > 1)
            continue
        images, scores = np.stack(dense[name].images), dense[name].scores
        squares = np.square(images, dtype=np.float64)
        others = squares
        if (source := find_scores(dense, name)) is not None:
            weighing[name] = source
            others = squares * np.stack(dense[source].best_scores)[:, None]
        powers = others.sum(2).mean(0)
        powers = np.maximum(powers, MIN_POWER_SHARE * powers[~scores].max(initial=0.0)) + 1e-12
        losses[name] = DenseLoss(
            channel_axis(array.shape),
            torch.from_numpy(scores).to(device),
            float(squares[:, scores].sum((1, 2)).mean()) or 1.0,
            torch.from_numpy(powers.astype(np.float32)).to(device),
        )
    return OutputLoss(losses, weighing)
