"""What the networks of the demo learn from: the error of boxes and classes, and of pixels."""

import torch
from torch import nn
from torch.nn import functional

POINTS_PER_BOX = 10
REACH = 8.0  # points may predict a box whose border is this many pixels away from its middle
BOX_WEIGHT = 2.0


def detection_loss(network: nn.Module, image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the loss of a detector; rows of `truth` are boxes with a class, -1 for none."""
    boxes, logits = network.heads(image)
    boxes, logits = boxes.transpose(1, 2), logits.transpose(1, 2)
    points = network.points[0].T
    with torch.no_grad():
        chosen, owner, quality = assign(boxes, logits.sigmoid(), points, truth)
        classes = truth[..., 4].long().clamp(min=0).gather(1, owner)
        targets = functional.one_hot(classes, logits.shape[2]) * quality[..., None]
        total = quality.sum().clamp(min=1.0)
    classified = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # Easy background counts less: the error is weighed by its size, as in quality focal loss.
    weights = (targets - logits.sigmoid()).abs().detach() ** 1.5
    matched = truth[..., :4].gather(1, owner[..., None].expand(-1, -1, 4))[chosen]
    overlap = generalized_iou(boxes[chosen], matched)
    located = ((1 - overlap) * quality[chosen]).sum()
    return ((classified * weights).sum() + BOX_WEIGHT * located) / total


def assign(
    boxes: torch.Tensor, scores: torch.Tensor, points: torch.Tensor, truth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return which points predict a box, which box, and the score that they ought to have.

    Task-aligned assignment (TOOD, Feng et al. 2021): the points that predict a box and its class
    best are those that ought to predict it.
    """
    true, exists = truth[..., :4], truth[..., 4] >= 0
    labels = truth[..., 4].long().clamp(min=0)
    middle, half = (true[..., :2] + true[..., 2:]) / 2, (true[..., 2:] - true[..., :2]) / 2
    away = (points[None, None] - middle[:, :, None]).abs()  # [image, box, point, axis]
    inside = (away < half.clamp(min=REACH)[:, :, None]).all(3) & exists[:, :, None]
    overlap = iou(boxes[:, None], true[:, :, None])
    confidence = scores.transpose(1, 2).gather(1, labels[..., None].expand(-1, -1, scores.shape[1]))
    alignment = (confidence.sqrt() * overlap**4 + 1e-9) * inside
    best = alignment.topk(POINTS_PER_BOX, dim=2)
    member = torch.zeros_like(inside).scatter(2, best.indices, best.values > 0)
    rank = torch.where(member, overlap + 1e-6, 0)  # a point of two boxes predicts the nearer one
    top, owner = rank.max(1)
    chosen = top > 0
    alignment = torch.where(member, alignment, 0)
    share = alignment / alignment.amax(2, keepdim=True).clamp(min=1e-9)
    quality = share * torch.where(member, overlap, 0).amax(2, keepdim=True)
    quality = torch.where(chosen, quality.gather(1, owner[:, None])[:, 0], 0)
    return chosen, owner, quality


def iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the intersection over union of boxes."""
    return _overlap(one, other)[0]


def generalized_iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the generalized intersection over union (Rezatofighi et al. 2019)."""
    overlap, union = _overlap(one, other)
    low, high = torch.minimum(one, other)[..., :2], torch.maximum(one, other)[..., 2:]
    hull = (high - low).clamp(min=0).prod(-1)
    return overlap - (hull - union) / hull.clamp(min=1e-6)


def _overlap(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (one, other)]
    union = areas[0] + areas[1] - shared
    return shared / union.clamp(min=1e-6), union


def segmentation_loss(network: nn.Module, image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return cross entropy and the Dice loss of a segmenter, by class over the batch."""
    shares = functional.log_softmax(network(image)["logits"], 1)
    entropy = functional.nll_loss(shares, truth)
    shares = shares.exp()
    classes, right = truth.flatten(), shares.gather(1, truth[:, None]).flatten()
    shared = torch.zeros(shares.shape[1]).index_add(0, classes, right)
    total = shares.sum((0, 2, 3)) + torch.bincount(classes, minlength=len(shared))
    dice = (2 * shared + 1) / (total + 1)
    return entropy + (1 - dice).mean()
