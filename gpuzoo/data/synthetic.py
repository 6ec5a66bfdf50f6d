"""Datasets without files: scikit-learn's digits, generated audio and time series."""

import importlib.util
import pathlib

import numpy as np

from gpuzoo import randomness
from gpuzoo.data.audio import RATE, whole
from gpuzoo.data.dataset import Dataset
from gpuzoo.data.series import make_series
from gpuzoo.data.validate import (
    hold_out,
    label_examples,
    make_dataset,
)


def digits() -> Dataset:
    """Load 1,797 handwritten digits, 8x8 scans enlarged to 28x28, from scikit-learn
    (E. Alpaydin and C. Kaynak, UCI, 1998)."""
    from PIL import Image

    rows = _digits_table()
    scans, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)
    images = np.zeros((len(scans), 28, 28), np.uint8)
    for image, scan in zip(images, scans, strict=True):
        small = Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8))
        # A margin of four pixels, as in MNIST.
        image[4:24, 4:24] = np.asarray(small.resize((20, 20), Image.Resampling.BICUBIC))
    splits = hold_out("digits", {"image": images, "label": labels})
    return make_dataset(
        "digits", "1,797 scans of handwritten digits from scikit-learn", splits
    )


def _digits_table() -> np.ndarray:
    """Return rows of 64 pixels and a label; read without importing scikit-learn, which
    takes a second, if its file is at the known path."""
    package = pathlib.Path(importlib.util.find_spec("sklearn").origin).parent
    file = package / "datasets" / "data" / "digits.csv.gz"
    if file.exists():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


# Classes of the generated tones.
TONES = ("sine", "square", "sawtooth", "two tones", "rising", "falling", "trembling",
         "noise")  # fmt: skip


SECONDS = 0.25


COUNTS = {"train": 4_000, "test": 1_000}


def tones() -> Dataset:
    """Generate 5,000 sounds of 0.25 s in eight classes, with random pitch (150 to
    1,200 Hz), level (range of 20 dB), phase and noise; the pitch is independent of the
    class."""
    splits = {}
    for split, count in COUNTS.items():
        audio = np.empty((count, round(RATE * SECONDS)), np.int16)
        labels = np.arange(count) % len(TONES)
        for label, kind in enumerate(TONES):
            ours = labels == label
            shape = (np.count_nonzero(ours), audio.shape[1])
            draws = randomness.uniform((6, shape[0], 1), 0, "tones", split, kind)
            hiss = 1.0 if kind == "noise" else 0.1 * draws[4]
            noise = randomness.normal(shape, 0, "noise of tones", split, kind)
            waves = _waves(kind, *draws[:4]) + hiss * noise
            level = 10 ** -draws[5] / np.abs(waves).max(axis=1, keepdims=True)
            audio[ours] = whole(waves * level)
        splits[split] = {"audio": audio, "label": labels}
    return label_examples("tones", "computed by gpuzoo", splits, TONES)


def _waves(kind: str, pitch, phase, third, fourth) -> np.ndarray:
    """Return sounds of one class without noise, (examples, samples), from parameters in
    [0, 1), (examples, 1)."""
    time = np.arange(round(RATE * SECONDS)) / RATE
    pitch = 150 * 8**pitch
    turns = pitch * time + phase
    if kind == "square":
        return np.sign(np.sin(2 * np.pi * turns))
    if kind == "sawtooth":
        return 2 * (turns % 1) - 1
    if kind == "two tones":
        other = pitch * (1.2 + 0.6 * third)
        return np.sin(2 * np.pi * turns) + np.sin(2 * np.pi * (other * time + fourth))
    if kind in ("rising", "falling"):
        ways = (0.8 + 0.8 * third) * (1 if kind == "rising" else -0.5)
        turns = turns + pitch * ways * time**2 / (2 * SECONDS)
    if kind == "trembling":
        turns = turns + (0.5 + third) * np.sin(2 * np.pi * (14 + 8 * fourth) * time)
    return np.sin(2 * np.pi * turns) * (kind != "noise")


def mackey_glass() -> Dataset:
    """Return windows of `mackey_glass_values`."""
    return make_series("mackey_glass", "computed by gpuzoo", mackey_glass_values())


def mackey_glass_values() -> np.ndarray:
    """Generate 10,000 values of the Mackey-Glass delay equation (Science 197 (1977)
    287), chaotic at a delay of 17, by the fourth-order Runge-Kutta method with step 0.1
    and an interpolated delayed value; one value per unit of time after the first
    1,000."""
    steps, delay, count = 10, 170, 11_000
    x = [1.2] * (delay + count * steps + 1)

    def slope(now: float, then: float) -> float:
        square = then * then
        fourth = square * square
        return 0.2 * then / (1 + fourth * fourth * square) - 0.1 * now

    step = 0.1
    for i in range(delay, len(x) - 1):
        then, after = x[i - delay], x[i - delay + 1]
        between = (then + after) / 2
        a = slope(x[i], then)
        b = slope(x[i] + step / 2 * a, between)
        c = slope(x[i] + step / 2 * b, between)
        d = slope(x[i] + step * c, after)
        x[i + 1] = x[i] + step / 6 * (a + 2 * b + 2 * c + d)
    return np.array(x[delay::steps][1_000:11_000])
