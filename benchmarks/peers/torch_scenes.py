"""Detection images and videos in PyTorch, for torch_steps.py.

The computations inside of a step of gpuzoo/tasks/scenes.py and
gpuzoo/tasks/video_prediction.py, as matrix products along each side, and the loss of
gpuzoo/tasks/detect.py.
"""

import torch
from torch.nn import functional as F

PLACES = 4  # on a canvas, one around the center of each quarter
CANVAS = 64  # pixels a side
STRIDE, SIZE = 4, 16.0  # pixels of a cell; pixels in one unit of heights and widths
FRAMES, FILM, SPEED = 9, 44, 4.0


def between(places, side: int):
    """(..., length) positions between the pixels of a side -> (..., length, side), the
    interpolation weights of the pixels."""
    apart = places[..., None] - torch.arange(side, dtype=torch.float32)
    return (1 - apart.abs()).clamp(min=0)


def scenes(images, labels):
    """Place images (batch, 1, 28, 28) on canvases (batch, 1, 64, 64); also return for
    each place whether it is occupied, its box and its label."""
    count, side = len(images), images.shape[-1]
    draws = torch.rand(count, PLACES, 4)
    sources = torch.stack([images[:, 0].roll(-p, 0) for p in range(PLACES)], 1)
    scale = 0.6 + 0.5 * draws[..., 1, None]
    free = CANVAS - side * scale
    quarter = CANVAS / 2
    corner = torch.tensor([[p // 2, p % 2] for p in range(PLACES)]) * quarter - 4
    first = corner + draws[..., 2:] * (quarter + 8 - side * scale)
    first = torch.minimum(first.clamp(min=0), free)  # (batch, PLACES, 2)
    places = torch.arange(CANVAS) + 0.5 - first[..., None]
    rows, columns = between(places / scale[..., None] - 0.5, side).unbind(2)
    light = sources > 0.2
    edges = [extent(light.any(3 - axis)) for axis in (0, 1)]
    low, high = (torch.stack(edge, -1) for edge in zip(*edges, strict=True))
    boxes = torch.cat([first + scale * low, first + scale * high], -1)
    there = draws[..., 0] < 0.75
    there[:, 0] = True
    present = (there & light.flatten(2).any(2)).float()
    alone = rows @ sources @ columns.mT * present[..., None, None]
    labels = torch.stack([labels.roll(-p, 0) for p in range(PLACES)], 1)
    return alone.amax(1, keepdim=True).clamp(0, 1), present, boxes, labels


def extent(mask):
    """Return the first and the last edge of what is true in (..., side)."""
    edges = torch.arange(mask.shape[-1], dtype=torch.float32)
    low = torch.where(mask, edges, float(mask.shape[-1])).amin(-1)
    return low, torch.where(mask, edges + 1, 0.0).amax(-1)


def missed(cells, present, boxes, labels):
    """Return the focal loss of the centers and the error of the boxes, per object."""
    goal, middles = middles_of(cells.shape[-1], present, boxes, labels)
    logits, told = cells[:, :10], cells[:, 10:]
    p = logits.sigmoid()
    middle = (1 - p).square() * F.softplus(-logits)
    other = (1 - goal) ** 4 * p.square() * F.softplus(logits)
    loss = torch.where(goal == 1, middle, other).sum()
    corner = middles.floor()
    cell = (corner[..., 0] * cells.shape[-1] + corner[..., 1]).long()
    at = told.flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)).mT
    sizes = (boxes[..., 2:] - boxes[..., :2]) / SIZE
    error = (at - torch.cat([sizes, middles - corner], -1)).abs()
    return (loss + (error * present[..., None]).sum()) / present.sum().clamp(min=1)


@torch.no_grad()
def middles_of(side: int, present, boxes, labels):
    """Return Gaussians around the centers, (batch, classes, side, side), and these."""
    middles = (boxes[..., :2] + boxes[..., 2:]) / (2 * STRIDE)
    apart = torch.arange(side) - middles.floor()[..., None]
    down, right = apart.square().unbind(2)
    near = torch.exp(-(down[..., :, None] + right[..., None, :]) / (2 * 0.7**2))
    near = near * present[..., None, None]
    classes = F.one_hot(labels, 10).float()[..., None, None]
    return (near[:, :, None] * classes).amax(1), middles


def films(images):
    """Return videos (FRAMES, batch, 44, 44): each image and the one from the other end
    of the batch move in straight lines and bounce off the borders."""
    count, side = len(images), images.shape[-1]
    draws, free = torch.rand(2, count, 4), float(FILM - side)
    time = torch.arange(FRAMES, dtype=torch.float32)[:, None, None, None]
    travelled = draws[..., :2] * free + (2 * draws[..., 2:] - 1) * SPEED * time
    # To the border and back: a triangle of twice the free way.
    first = free - ((travelled % (2 * free)) - free).abs()
    # (FRAMES, 2, batch, 2 axes, 44)
    places = torch.arange(FILM) - first[..., None]
    rows, columns = between(places, side).unbind(3)
    both = torch.stack([images[:, 0], images[:, 0].flip(0)])
    one, other = (rows @ both @ columns.mT).unbind(1)
    return torch.maximum(one, other).clamp(0, 1)
