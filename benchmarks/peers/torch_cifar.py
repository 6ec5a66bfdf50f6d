"""Peer: speednet and its training in PyTorch, to a test accuracy.

    python benchmarks/peers/torch_cifar.py cifar10.npz --seed 0 --epochs 4 \
        --filters 32 64 64 --activation relu

Network, optimizer, schedule, loss and augmentation are those of gpuzoo's recipe
`cifar10` (models/speednet.py, recipes/train_cifar10.py), written for speed on small
data: the dataset is one tensor on the device, batches are rows of a random permutation,
channels last. On a GPU also mixed precision (--precision), cuDNN autotuning, a fused
optimizer, and with --compile `torch.compile`. Only the seconds of training are counted;
on a GPU some warm-up steps on noise are done before, and the initial weights restored.
The last line on stdout is one JSON object.
"""

import argparse
import copy
import json
import time

import numpy as np
import torch
from torch import nn

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
WARM_UP = 5  # steps


def norm(width: int) -> nn.Module:
    """Batch normalization without scale, averaging over the last few batches."""
    layer = nn.BatchNorm2d(width, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


class Logits(nn.Module):
    """Global max-pooling, a dense layer, and a fixed scale."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.dense = nn.Linear(width, classes, bias=False)

    def forward(self, x):
        return 0.111 * self.dense(x.amax((2, 3)))


def build(channels: int, filters: list[int], activation: str) -> nn.Sequential:
    active = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]
    before = 8 * channels
    layers = [nn.Conv2d(channels, before, 2).requires_grad_(False), active()]
    for width in filters:
        layers += [
            nn.Conv2d(before, width, 3, padding=1, bias=False), nn.MaxPool2d(2),
            norm(width), active(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width), active(),
        ]  # fmt: skip
        before = width
    model = nn.Sequential(*layers, Logits(before, 10))
    for layer in model.modules():  # initialized as in Keras
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return model


@torch.no_grad()
def whiten(layer: nn.Conv2d, images) -> None:
    """Make its outputs uncorrelated and of equal variance over patches of images."""
    patches = nn.functional.unfold(images.float(), 2).transpose(1, 2).double()
    patches = patches.flatten(0, 1)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    half = (vectors / torch.sqrt(values + 5e-4)).flip(1).T
    kernel = torch.cat([half, -half])
    layer.weight.copy_(kernel.reshape(layer.weight.shape))
    layer.bias.copy_(-kernel @ mean)


def changed(images):
    """Translate each by up to two pixels along both axes, and flip half of them."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (2, 2, 2, 2)).permute(0, 2, 3, 1)
    down, right = torch.randint(5, (2, count, 1), device=images.device)
    rows = down + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).repeat(count, 1)
    mirrored = torch.rand(count, 1, device=images.device) < 0.5
    columns = right + torch.where(mirrored, columns.flip(1), columns)
    each = torch.arange(count, device=images.device)[:, None, None]
    # (count, height, width, channels), seen as channels last.
    return padded[each, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


class Training:
    """The training step, with a new optimizer, schedule and loss scale."""

    def __init__(self, model: nn.Module, steps: int, cuda: bool, args):
        self.model, self.precision = model, PRECISIONS.get(args.precision)
        self.weights = [w for w in model.parameters() if w.requires_grad]
        self.optimizer = torch.optim.SGD(
            self.weights, args.rate, momentum=0.85, nesterov=True, fused=cuda or None
        )
        self.rates = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, args.rate, steps, pct_start=0.2, cycle_momentum=False
        )
        self.device = "cuda" if cuda else "cpu"
        self.scaler = torch.amp.GradScaler(
            self.device, enabled=args.precision == "float16"
        )
        self.loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)

    def step(self, images, labels) -> None:
        images = changed(images)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            self.device, self.precision, enabled=self.precision is not None
        ):
            loss = self.loss_of(self.model(images), labels)
        self.scaler.scale(loss).backward()
        with torch.no_grad():  # decoupled, as Keras decays weights
            decay = 1 - 0.0005 * self.rates.get_last_lr()[0]
            torch._foreach_mul_(self.weights, decay)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.rates.step()


def train(model, images, labels, args) -> float:
    """Train, and return the seconds it took."""
    steps, cuda = args.epochs * (len(images) // args.batch), images.is_cuda
    model.train()
    if cuda:
        warm_up(model, images, labels, args)
    training = Training(model, steps, cuda, args)
    wait(images)
    start = time.perf_counter()
    for _ in range(args.epochs):
        order = torch.randperm(len(images), device=images.device)
        for rows in order[: len(order) // args.batch * args.batch].split(args.batch):
            training.step(images[rows], labels[rows])
    wait(images)
    return time.perf_counter() - start


def warm_up(model, images, labels, args) -> None:
    """Compile by steps on noise, and restore the model."""
    before = copy.deepcopy(model.state_dict())
    training = Training(model, WARM_UP, True, args)
    for _ in range(WARM_UP):
        training.step(torch.rand_like(images[: args.batch]), labels[: args.batch])
    model.load_state_dict(before)


def wait(images) -> None:
    if images.is_cuda:
        torch.cuda.synchronize()


@torch.no_grad()
def evaluate(model, images, labels) -> float:
    """Return the test accuracy, computed in float32."""
    model.eval()
    told = torch.cat([model(part).argmax(1) for part in images.split(1000)])
    return (told == labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--filters", type=int, nargs="+", default=[64, 256, 256])
    parser.add_argument("--activation", choices=("relu", "gelu"), default="gelu")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", *PRECISIONS),
                        default="float32")  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # TensorFloat-32, as gpuzoo
    tensors = {}
    with np.load(args.data, allow_pickle=False) as file:
        for split in ("train", "test"):
            images = torch.from_numpy(file[f"x_{split}"]).to(args.device)
            images = images.permute(0, 3, 1, 2).float() / 255
            images = images.contiguous(memory_format=torch.channels_last)
            labels = torch.from_numpy(file[f"y_{split}"].astype("int64"))
            tensors[split] = images, labels.to(args.device)
    images, labels = tensors["train"]
    model = build(images.shape[1], args.filters, args.activation)
    model = model.to(args.device, memory_format=torch.channels_last)
    whiten(model[0], images[:5000])
    whole = torch.compile(model) if args.compile else model
    seconds = train(whole, images, labels, args)
    accuracy = evaluate(model, *tensors["test"])
    print(json.dumps({
        "test_accuracy": accuracy, "train_seconds": round(seconds, 3),
        "torch": torch.__version__, "precision": args.precision,
        "compiled": args.compile, "batch": args.batch,
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
