"""Peer: gpuzoo's networks and their training in PyTorch.

Written as usual for speed on small data: the whole dataset is one tensor, batches are
rows of a random permutation, channels last, a fused Adam, `torch.compile` on request.
See turns.py for the protocol.
"""

import functools

import torch
import torch_scenes
import turns
from torch.nn import functional as F
from torch_networks import (
    ConvLstm,
    Detector,
    Rows,
    Vae,
    cnn,
    discriminator,
    generator,
)


def entropy(model, images, labels):
    """Cross-entropy with smoothed labels."""
    return F.cross_entropy(model(images), labels, label_smoothing=0.1)


def evidence(model, images, labels):
    return model(images)


def detection(model, images, labels):
    with torch.no_grad():
        canvases, present, boxes, labels = torch_scenes.scenes(images, labels)
    return torch_scenes.missed(model(canvases), present, boxes, labels)


def next_frame(model, images, labels):
    with torch.no_grad():
        film = torch_scenes.films(images)
    logits, goal = model(film[:-1]), film[-1]
    missed = F.binary_cross_entropy_with_logits(logits, goal, reduction="sum")
    return missed / len(images)


def minimiser(compiled: bool, model, loss_of, rate: float, betas=(0.9, 0.999)):
    """Return a training step of one model with one loss."""
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), rate, betas, fused=True)

    def loss(images, labels):
        return loss_of(model, images, labels)

    loss = torch.compile(loss) if compiled else loss

    def step(images, labels) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(images, labels).backward()
        optimizer.step()

    return step


def adversaries(compiled: bool):
    """Train both networks in turn; the discriminator with a gradient penalty, which
    torch.compile cannot differentiate twice: only the generator's part is compiled."""
    draw = generator().to(memory_format=torch.channels_last)
    judge = discriminator().to(memory_format=torch.channels_last)
    both = [
        torch.optim.Adam(model.parameters(), 0.003, (0.5, 0.99), fused=True)
        for model in (judge, draw)
    ]
    drawn = torch.compile(draw) if compiled else draw

    def step(images, labels) -> None:
        count = len(images)
        with torch.no_grad():
            fake = drawn(2 * torch.rand(count, 64) - 1)
        real = images.requires_grad_(True)
        told = judge(real)
        (slope,) = torch.autograd.grad(told.sum(), real, create_graph=True)
        penalty = 0.025 * slope.square().sum(dim=(1, 2, 3)).mean()
        loss = F.softplus(-told).mean() + F.softplus(judge(fake)).mean() + penalty
        both[0].zero_grad(set_to_none=True)
        loss.backward()
        both[0].step()
        both[1].zero_grad(set_to_none=True)
        judge.requires_grad_(False)  # its own gradient is not needed here
        F.softplus(-judge(drawn(2 * torch.rand(count, 64) - 1))).mean().backward()
        judge.requires_grad_(True)
        both[1].step()

    return step


def prepare(asked: dict, arrays):
    torch.manual_seed(0)
    torch.set_num_threads(asked["threads"])
    images = torch.from_numpy(arrays[0]).permute(0, 3, 1, 2)
    labels = torch.from_numpy(arrays[1])
    compiled, batch = asked["compiled"], asked["batch"]
    mixed = {"mixed_bfloat16": torch.bfloat16, "mixed_float16": torch.float16}
    lower = mixed.get(asked["precision"])
    one = functools.partial(minimiser, compiled)
    step = {
        "cnn": lambda: one(cnn(), entropy, 0.01, (0.7, 0.9)),
        "lstm": lambda: one(Rows(), entropy, 0.004, (0.9, 0.99)),
        "vae": lambda: one(Vae(), evidence, 0.003),
        "gan": lambda: adversaries(compiled),
        "detector": lambda: one(Detector(), detection, 0.003, (0.9, 0.99)),
        "conv_lstm": lambda: one(ConvLstm(), next_frame, 0.003),
    }[asked["work"]]()
    rows = iter(())

    def steps(count: int) -> None:
        nonlocal rows
        for _ in range(count):
            taken = next(rows, None)
            if taken is None:
                order = torch.randperm(len(images))
                rows = iter(order[: len(order) // batch * batch].split(batch))
                taken = next(rows)
            with torch.autocast("cpu", lower, enabled=lower is not None):
                step(images[taken], labels[taken])

    return steps


if __name__ == "__main__":
    turns.take_turns(prepare)
