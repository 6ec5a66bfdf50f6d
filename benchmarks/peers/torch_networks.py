"""The networks of gpuzoo's catalogue in PyTorch, for torch_steps.py."""

import torch
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
    """Layer normalization over the channels of each pixel."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-3)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Crop(nn.Module):
    def forward(self, x):
        return x[:, :, :7, :7]


class Centre(nn.Module):
    def forward(self, x):
        return 2 * x - 1


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
        Centre(), nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(64, 128, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(128 * 4 * 4, 1),
    )  # fmt: skip


class Detector(nn.Module):
    """Cells (batch, 14, 16, 16) of images: the logits of ten classes, then boxes."""

    def __init__(self):
        super().__init__()
        blocks, before = [], 1
        for width, stride in ((16, 2), (32, 2), *[(48, 1)] * 5):
            blocks += [
                nn.Conv2d(before, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width, eps=1e-3, momentum=0.1), nn.ReLU(),
            ]  # fmt: skip
            before = width
        cells = nn.Conv2d(before, 10 + 4, 1)
        nn.init.zeros_(cells.bias)
        nn.init.constant_(cells.bias[:10], -2.2)
        self.layers = nn.Sequential(*blocks, cells)

    def forward(self, canvases):
        return self.layers(canvases)


class ConvLstm(nn.Module):
    """The logits of the next frame, for frames (time, batch, height, width)."""

    def __init__(self):
        super().__init__()
        self.patches, self.pixels = nn.PixelUnshuffle(4), nn.PixelShuffle(4)
        self.seen = nn.Conv2d(16, 4 * 32, 3, padding=1)
        self.past = nn.Conv2d(32, 4 * 32, 3, padding=1, bias=False)
        self.logits = nn.Conv2d(32 + 16, 16, 3, padding=1)

    def forward(self, frames):
        time, count = frames.shape[:2]
        patches = self.patches(frames.flatten(0, 1)[:, None])
        seen = self.seen(patches).unflatten(0, (time, count))  # of all frames at once
        hidden = cell = None
        for gates in seen.unbind(0):
            if hidden is not None:  # before the first frame it is zero
                gates = gates + self.past(hidden)
            come, stay, new, show = gates.chunk(4, 1)
            new = come.sigmoid() * new.tanh()
            cell = new if cell is None else stay.sigmoid() * cell + new
            hidden = show.sigmoid() * cell.tanh()
        last = patches[-count:]
        return self.pixels(self.logits(torch.cat([hidden, last], 1)))[:, 0]
