"""Peer: the well-known simple MNIST convnet in PyTorch, to a test accuracy.

    python benchmarks/peers/torch_mnist.py mnist.npz --seed 0 --until 0.99

Network, optimizer, batch size and loss are those of stock_keras_mnist.py, written
for speed on small data: the dataset is one tensor, batches are rows of a random
permutation, channels last, no DataLoader, Adam in one kernel. Only the seconds of
training are counted. The last line on stdout is one JSON object.
"""

import argparse
import json
import time

import numpy as np
import torch
from torch import nn


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(1600, 10),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--until", type=float, default=0.99)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tensors = {}
    with np.load(args.data, allow_pickle=False) as file:
        for split in ("train", "test"):
            images = file[f"x_{split}"].reshape(-1, 1, 28, 28)
            tensors[split] = (
                torch.from_numpy(images.astype("float32") / 255),
                torch.from_numpy(file[f"y_{split}"].astype("int64")),
            )

    images, labels = tensors["train"]
    model = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    loss_of = nn.CrossEntropyLoss()
    seconds, trail = 0.0, []
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        model.train()
        for rows in torch.randperm(len(images)).split(128):
            optimizer.zero_grad(set_to_none=True)
            loss_of(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        epoch_seconds = time.perf_counter() - start
        seconds += epoch_seconds
        accuracy = evaluate(model, *tensors["test"])
        trail.append(
            {
                "epoch": epoch,
                "seconds": round(epoch_seconds, 3),
                "train_seconds": round(seconds, 3),
                "test_accuracy": round(accuracy, 4),
            }
        )
        print(trail[-1], flush=True)
        if accuracy >= args.until:
            break
    reached, version = accuracy >= args.until, torch.__version__
    row = {"reached": reached, "torch": version, **trail[-1], "trail": trail}
    print(json.dumps(row))


@torch.no_grad()
def evaluate(model: nn.Module, images, labels) -> float:
    model.eval()
    told = torch.cat([model(part).argmax(dim=1) for part in images.split(1000)])
    return (told == labels).double().mean().item()


if __name__ == "__main__":
    main()
