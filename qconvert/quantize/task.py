"""One layer to be learned: what it reads, what it should answer, and what follows it."""

from dataclasses import dataclass

import numpy as np

from qconvert.quantize.activation import Activation
from qconvert.scales import Floats


@dataclass(frozen=True, eq=False)
class Task:
    """A layer as a product: arrays of [group, row, input], [group, output, input] and so on.

    `wanted` is what should come out before the activation. Without `biases` nothing can be added
    to what comes out.
    """

    rows: Floats
    wanted: Floats
    weights: Floats
    steps: Floats
    biases: Floats | None
    activation: Activation
    largest: int

    @property
    def nearest(self) -> Floats:
        """The nearest integers, as floats."""
        near: Floats = np.rint(self.weights / self.steps[..., np.newaxis])
        return np.clip(near, -self.largest, self.largest)

    def error(self, integers: Floats, biases: Floats | None) -> float:
        """Return the squared error of what comes out after the activation, as a share of that."""
        error = power = 0.0
        for group, rows in enumerate(self.rows):
            found = (integers[group] * self.steps[group][:, np.newaxis]) @ rows.T
            found += 0.0 if biases is None else biases[group][:, np.newaxis]
            wanted = self.activation.answers(self.wanted[group])
            off = self.activation.answers(found) - wanted
            error += float(np.square(off).sum(dtype=np.float64))
            power += float(np.square(wanted).sum(dtype=np.float64))
        return error / (power or 1.0)
