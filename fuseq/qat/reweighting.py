r"""Learnable magnitude reweighting (LMR): distillation pulls as hard as reconstruction.

Late in quantization-aware training both losses fight over the same few steps of the grid, and the
larger gradient wins. QDR (arXiv 2603.09624) reweights the losses by learned numbers that balance
the magnitudes of the two gradients; its abstract, which is what we have read, gives no formula.
The one here is ours. With z the bottleneck of the student, which both losses reach,

    balanced = log(r) + log |dL_rec/dz| - log |dL_dis/dz|              of this batch
    theta    <- theta + rate clip(balanced - theta, -1, 1)
    loss     = L_rec + exp(min(theta, balanced + log 2)) L_dis,        |theta| <= log(largest)

The second line is stochastic gradient descent on the Huber loss of `balanced - theta`. At its
minimum the two gradients, weighted, have the ratio r. Why this form:

* Gradients at a shared value are compared as in GradNorm (Chen et al., ICML 2018, section 3.2, eq.
  1 and 2), whose rate term L(t) / L(0) is left out: late in training it is noise.
* Logarithms make it blind to units: a loss in other units shifts theta and nothing else.
* The clip bounds what one noisy batch can do: theta follows the median of batches, not the mean.
* Reconstruction keeps the weight 1, so the learning rate keeps its meaning, and a distillation
  loss that vanishes cannot turn reconstruction off. GradNorm's weights, whose sum is fixed, do.
* The minimum keeps distillation from pulling more than twice as hard as it should while theta is
  on its way: a student starts next to its teacher, and the gradient of a squared distance grows
  with the distance. Without it plain SGD ends twice as far from the teacher in our test.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fuseq.qat.distribution import is_distributed


class LearnableReweighting(nn.Module):
    """Sum of a reconstruction and a distillation loss whose gradients are kept in balance.

    It trains itself while it is called in training: nothing goes into your optimizer, and weight
    decay does not reach it. All it has learned is in `state_dict`. In eval, or without gradients,
    it only weighs. Where `torch.distributed` runs, norms are those of all ranks together, so that
    every rank weighs alike.

    Attributes:
        theta: logarithm of the weight of distillation, learned, 0-d float32.
        bound: logarithm of the largest weight that the last comparison allows.
        calls: how often it was called in training.
        started: whether a batch has given `theta` its first value.
    """

    theta: Tensor
    bound: Tensor
    calls: Tensor
    started: Tensor

    def __init__(
        self, ratio: float = 1.0, *, rate: float = 0.1, largest: float = 1e4, every: int = 1
    ) -> None:
        """Start without a weight: the first batch gives it.

        Args:
            ratio: wanted `weight |dL_dis/dz| / |dL_rec/dz|`, above 0.
            rate: largest step of `theta`, in (0, 1].
            largest: bound of the weight of distillation and of its inverse, at least 1.
            every: gradients are compared at each so many calls; a comparison costs one more
                backward pass from the loss to the bottleneck.

        Raises:
            ValueError: a number is out of its range.
        """
        super().__init__()
        if not (ratio > 0 and 0 < rate <= 1 and largest >= 1 and every >= 1):
            raise ValueError(f"out of range: {ratio=}, {rate=}, {largest=}, {every=}")
        self.ratio, self.rate, self.largest, self.every = ratio, rate, largest, every
        self.register_buffer("theta", torch.tensor(0.0))
        self.register_buffer("bound", torch.tensor(math.inf))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("started", torch.tensor(False))

    @property
    def weight(self) -> Tensor:
        """Weight of the distillation loss, a 0-d tensor in `[1 / largest, largest]`."""
        limit = math.log(self.largest)
        return torch.minimum(self.theta, self.bound).clamp(-limit, limit).exp()

    def forward(self, reconstruction: Tensor, distillation: Tensor, at: Tensor) -> Tensor:
        """The loss to call `backward` on.

        Args:
            reconstruction: scalar loss of the output.
            distillation: scalar loss of the bottleneck.
            at: value of the bottleneck that both were computed from.

        Raises:
            ValueError: a loss was not computed from `at`.
        """
        if self.training and torch.is_grad_enabled():
            if int(self.calls) % self.every == 0:
                self._learn(reconstruction, distillation, at)
            self.calls += 1
        return reconstruction + self.weight * distillation

    def _learn(self, reconstruction: Tensor, distillation: Tensor, at: Tensor) -> None:
        squares = torch.stack([_squared_norm(loss, at) for loss in (reconstruction, distillation)])
        if is_distributed():
            torch.distributed.all_reduce(squares)
        balanced = math.log(self.ratio) + 0.5 * (squares[0].log() - squares[1].log())
        if not bool(balanced.isfinite()):
            return  # a gradient of zero, NaN or infinity says nothing about the balance
        residual = balanced - self.theta
        self.theta += self.rate * residual.clamp(-1, 1) if bool(self.started) else residual
        self.theta.clamp_(-math.log(self.largest), math.log(self.largest))
        self.bound.copy_(balanced + math.log(2))
        self.started.fill_(True)


def _squared_norm(loss: Tensor, at: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError("a loss was not computed from `at`, so its gradient there is unknown")
    return gradient.float().square().sum()
