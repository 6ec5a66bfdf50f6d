"""The peer: the networks of gpuzoo's catalogue and their training in PyTorch.

Written as its users write it for speed on small data: the whole dataset is one tensor,
batches are rows of a random permutation, channels last, one Adam, `torch.compile` where
that is asked for. See turns.py for how it is told what to do.
"""

import torch
import turns
from torch import nn
from torch.nn import functional as F


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(800, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


class Rows(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(28, 128, batch_first=True)
        self.logits = nn.Linear(128, 10)

    def forward(self, images):
        return self.logits(self.lstm(images[:, 0])[0][:, -1])


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(1568, 256), nn.ReLU(),
        )  # fmt: skip
        self.mean, self.log_variance = nn.Linear(256, 20), nn.Linear(256, 20)
        self.decoder = nn.Sequential(
            nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 1568), nn.ReLU(),
            nn.Unflatten(1, (32, 7, 7)),
            nn.ConvTranspose2d(32, 16, 3, 2, 1, output_padding=1), nn.ReLU(),
            nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, images):
        x = self.encoder(images)
        mean, log_variance = self.mean(x), self.log_variance(x)
        code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        logits = self.decoder(code)
        missed = F.binary_cross_entropy_with_logits(logits, images, reduction="sum")
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        return (missed + kl) / len(images)


class ChannelNorm(nn.Module):
    """Layer normalisation of the channels of each pixel."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-3)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Crop(nn.Module):
    def forward(self, x):
        return x[:, :, :7, :7]


def generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 4 * 4 * 128, bias=False), nn.Unflatten(1, (128, 4, 4)),
        ChannelNorm(128), nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), Crop(),
        ChannelNorm(64), nn.ReLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False),
        ChannelNorm(32), nn.ReLU(), nn.Conv2d(32, 4, 3, padding=1), nn.PixelShuffle(2),
        nn.Sigmoid(),
    )  # fmt: skip


def discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(64, 128, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(128 * 4 * 4, 1),
    )  # fmt: skip


def classifier(model, rate: float, betas: tuple, compiled: bool):
    """A step of cross-entropy with smoothed labels."""
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), rate, betas)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    forward = torch.compile(model) if compiled else model

    def step(images, labels) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(forward(images), labels).backward()
        optimizer.step()

    return step


def encoder(compiled: bool):
    model = Vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    forward = torch.compile(model) if compiled else model

    def step(images, labels) -> None:
        optimizer.zero_grad(set_to_none=True)
        forward(images).backward()
        optimizer.step()

    return step


def adversaries(compiled: bool):
    """Both networks in turn; the discriminator with the penalty on its slope, which
    torch.compile cannot differentiate twice: only the generator's part is compiled."""
    draw = generator().to(memory_format=torch.channels_last)
    judge = discriminator().to(memory_format=torch.channels_last)
    both = [
        torch.optim.Adam(model.parameters(), 0.003, (0.5, 0.99))
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
        F.softplus(-judge(drawn(2 * torch.rand(count, 64) - 1))).mean().backward()
        both[1].step()

    return step


def prepare(asked: dict, arrays):
    torch.manual_seed(0)
    torch.set_num_threads(asked["threads"])
    images = torch.from_numpy(arrays[0]).permute(0, 3, 1, 2)
    labels = torch.from_numpy(arrays[1])
    compiled, batch = asked["compiled"], asked["batch"]
    step = {
        "cnn": lambda: classifier(cnn(), 0.01, (0.7, 0.9), compiled),
        "lstm": lambda: classifier(Rows(), 0.004, (0.9, 0.99), compiled),
        "vae": lambda: encoder(compiled),
        "gan": lambda: adversaries(compiled),
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
            step(images[taken], labels[taken])

    return steps


if __name__ == "__main__":
    turns.take_turns(prepare)
