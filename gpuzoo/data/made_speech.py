"""Generated words: the ten digits in English, as a formant synthesizer says them.

A source, which buzzes at the pitch of a voice or hisses, goes through resonators at the
formants of each speech sound (Klatt, J. Acoust. Soc. Am. 67 (1980) 971). It is computed
by correctly rounded operations from `gpuzoo.randomness` alone, so that every processor
makes the same bits.
"""

import numpy as np

from gpuzoo import randomness
from gpuzoo.data.audio import RATE, whole
from gpuzoo.data.dataset import Dataset
from gpuzoo.data.validate import label_examples

NAME = "spoken_digits"
SECONDS = 0.7
COUNTS = {"train": 3_000, "test": 1_000}
# Speech sound -> relative length, three formants in Hz (of vowels those of men in
# Peterson and Barney, J. Acoust. Soc. Am. 24 (1952) 175), how loud the voice and the
# hiss are, and where the hiss is in Hz.
SOUNDS = {
    "iy": (1.3, 270, 2290, 3010, 1.0, 0.0, 3000),
    "ih": (0.8, 390, 1990, 2550, 1.0, 0.0, 3000),
    "eh": (1.0, 530, 1840, 2480, 1.0, 0.0, 3000),
    "ah": (0.9, 640, 1190, 2390, 1.0, 0.0, 3000),
    "aa": (1.1, 730, 1090, 2440, 1.0, 0.0, 3000),
    "ao": (1.1, 570, 840, 2410, 1.0, 0.0, 3000),
    "uw": (1.2, 300, 870, 2240, 1.0, 0.0, 3000),
    "w": (0.5, 300, 610, 2200, 0.6, 0.0, 3000),
    "r": (0.6, 310, 1060, 1380, 0.7, 0.0, 3000),
    "n": (0.8, 250, 1700, 2600, 0.4, 0.0, 3000),
    "v": (0.6, 220, 1100, 2080, 0.4, 0.15, 4000),
    "z": (0.8, 240, 1390, 2530, 0.3, 0.5, 5200),
    "s": (1.0, 320, 1390, 2530, 0.0, 1.0, 5400),
    "f": (0.9, 340, 1100, 2080, 0.0, 0.35, 3800),
    "th": (0.9, 320, 1290, 2540, 0.0, 0.25, 4600),
    "t": (0.25, 400, 1600, 2600, 0.0, 0.9, 4800),
    "k": (0.25, 300, 1990, 2850, 0.0, 0.8, 2400),
    "closed": (0.5, 300, 1500, 2500, 0.0, 0.0, 3000),
}  # fmt: skip
WORDS = {
    "zero": "z ih r ao uw", "one": "w ah n", "two": "closed t uw", "three": "th r iy",
    "four": "f ao r", "five": "f aa iy v", "six": "s ih closed k s",
    "seven": "s eh v ah n", "eight": "eh iy closed t", "nine": "n aa iy n",
}  # fmt: skip
_FRAME = 80  # samples with the same resonators: 5 ms
_WIDE = np.array([60.0, 90.0, 150.0, 700.0])  # bandwidths in Hz, the last of the hiss
_LOUD = np.array([1.0, 0.6, 0.35, 1.0])
_CHUNK = 500  # examples at once


def make() -> Dataset:
    """Generate 4,000 words of 0.7 s in ten classes: the digits from zero to nine.

    Each has its own speaker (pitch of 85 to 255 Hz, size of the vocal tract), melody,
    speed, lengths of its sounds, place, level (range of 20 dB) and noise. Words of the
    test split are by other speakers than those of the training split.
    """
    splits = {}
    for split, count in COUNTS.items():
        labels = np.arange(count) % len(WORDS)
        parts = [
            _spoken(labels[first : first + _CHUNK], split, first)
            for first in range(0, count, _CHUNK)
        ]
        splits[split] = {"audio": np.concatenate(parts), "label": labels}
    return label_examples(NAME, "computed by gpuzoo", splits, tuple(WORDS))


def _spoken(labels: np.ndarray, split: str, first: int) -> np.ndarray:
    """Return words, (examples, samples), int16."""
    count, samples = len(labels), round(RATE * SECONDS)
    u = randomness.uniform((8, count), 0, NAME, split, first)
    frames = _frames(labels, u, split, first)
    hiss = (
        2 * randomness.uniform((samples, count), 0, f"{NAME}, hiss", split, first) - 1
    )
    sound = _resonated(_buzz(u, samples), hiss, frames)
    noise = (
        2 * randomness.uniform((samples, count), 0, f"{NAME}, noise", split, first) - 1
    )
    loudest = np.abs(sound).max(axis=0)
    sound = sound / loudest + 0.6 * u[6] * noise
    level = 0.9 / (1 + 9 * u[7]) / np.abs(sound).max(axis=0)
    return whole(np.ascontiguousarray((sound * level).T))


def _frames(labels: np.ndarray, u: np.ndarray, split: str, first: int) -> np.ndarray:
    """Return for each frame the three formants in Hz, how loud voice and hiss are, and
    the place of the hiss, (frames, 6, examples)."""
    count = -(-round(RATE * SECONDS) // _FRAME)
    times = (np.arange(count) + 0.5) * (_FRAME / RATE)
    found = np.zeros((count, 6, len(labels)))
    words = [text.split(" ") for text in WORDS.values()]
    for place, label in enumerate(labels):
        sounds = words[label]
        draws = randomness.uniform(
            (2, len(sounds), 4), 0, f"{NAME}, sounds", split, first + place
        )
        rows = np.array([SOUNDS[sound] for sound in sounds], float)
        lengths = rows[:, 0] * (0.8 + 0.4 * draws[0, :, 0])
        whole_word = 0.32 + 0.26 * u[0, place]
        ends = np.cumsum(lengths) * (whole_word / lengths.sum())
        ends += u[1, place] * (SECONDS - whole_word - 0.06) + 0.03
        starts = np.concatenate(
            [[ends[0] - lengths[0] * whole_word / lengths.sum()], ends[:-1]]
        )
        # A speaker's vocal tract is shorter the higher the voice; each sound varies.
        size = 0.92 + 0.2 * u[2, place] + 0.1 * (u[3, place] - 0.5)
        rows[:, 1:4] *= size * (0.96 + 0.08 * draws[1, :, :3])
        # A sound holds for its middle half, and glides into the next.
        edge = (ends - starts) / 4
        points = np.stack([starts + edge, ends - edge], 1).ravel()
        for number in range(6):
            held = np.repeat(rows[:, 1 + number], 2)
            found[:, number, place] = np.interp(times, points, held)
        apart = 0.015  # s in which a word begins and ends
        gate = np.minimum((times - starts[0]) / apart, (ends[-1] - times) / apart)
        found[:, 3:5, place] *= np.clip(gate, 0, 1)[:, None]
    return found


def _buzz(u: np.ndarray, samples: int) -> np.ndarray:
    """Return the sound of the vocal cords, (samples, examples): a sawtooth whose pitch
    falls or rises."""
    time = np.arange(samples)[:, None] / RATE
    pitch = 85 + 170 * u[2]
    bend = (u[4] - 0.6) * 0.5 * pitch / SECONDS
    turns = pitch * time + bend * time * time / 2 + u[5]
    return 2 * (turns - np.floor(turns)) - 1


def _resonated(buzz: np.ndarray, hiss: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Return the source through four resonators side by side, (samples, examples)."""
    samples, count = buzz.shape
    radius = np.pi * _WIDE / (2 * RATE)
    radius = ((1 - radius) / (1 + radius))[:, None]  # nearly exp(-pi width / rate)
    angle = 2 * np.pi * frames[:, [0, 1, 2, 5]] / RATE
    square = angle * angle
    # The cosine's series: NumPy's cosine is not the same on all processors.
    terms = (1 / 3_628_800, 1 / 40_320, 1 / 720, 1 / 24, 0.5)
    cosine = -terms[0] * np.ones_like(square)
    for term, sign in zip(terms[1:], (1, -1, 1, -1), strict=True):
        cosine = cosine * square + sign * term
    back = 2 * radius * (cosine * square + 1)
    gain = (1 - radius) * _LOUD[:, None]
    last = before = np.zeros((4, count))
    found = np.empty((samples, count))
    given = np.empty((4, count))
    for place in range(samples):
        frame = frames[place // _FRAME]
        given[:3] = buzz[place] * frame[3] + 0.02 * hiss[place] * frame[4]
        given[3] = hiss[place] * frame[4]
        now = gain * given + back[place // _FRAME] * last - radius * radius * before
        last, before = now, last
        found[place] = now[0] - now[1] + now[2] + now[3]
    return found
