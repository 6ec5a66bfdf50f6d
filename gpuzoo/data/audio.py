"""Sounds: folders of WAV files, and tones that are computed."""

import math
import pathlib
import warnings

import numpy as np

from gpuzoo import randomness
from gpuzoo.data.dataset import Dataset, label_examples
from gpuzoo.data.folders import find_files
from gpuzoo.errors import GpuzooError

RATE = 16_000  # samples per second
LONGEST = 30.0  # seconds that an example may have
# Of the computed tones.
TONES = ("sine", "square", "sawtooth", "two tones", "rising", "falling", "trembling",
         "noise")  # fmt: skip
SECONDS = 0.25
COUNTS = {"train": 4_000, "test": 1_000}


def tones() -> Dataset:
    """5,000 sounds of a quarter of a second in eight classes, at random pitches from
    150 to 1,200 Hz, levels over 20 dB, phases and amounts of noise; the pitch tells
    nothing of the class."""
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
            audio[ours] = _whole(waves * level)
        splits[split] = {"audio": audio, "label": labels}
    return label_examples("tones", "computed by gpuzoo", splits, TONES)


def _waves(kind: str, pitch, phase, third, fourth) -> np.ndarray:
    """Sounds of one kind without noise, (examples, samples), of numbers in [0, 1),
    (examples, 1)."""
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


def read_folder(
    what: str, folder: pathlib.Path, classes: list[str], seconds: float
) -> dict:
    """Every .wav file below the sub-folder of each class.

    Returns:
        `audio` (examples, samples), int16, one channel at RATE, and `label`. Channels
        are averaged and other rates resampled. All have the length of the longest,
        silence after the shorter ones, or `seconds`: longer ones are cut then.

    Raises:
        GpuzooError: a file that cannot be read or is too long, or none.
    """
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    sounds, labels = [], []
    for label, file in find_files(what, folder, classes):
        if file.suffix.lower() != ".wav":
            continue
        where = f"{what}: {file.relative_to(folder)}"
        try:
            with warnings.catch_warnings():
                # Of chunks that hold no sound; but not of a sound cut short.
                warnings.simplefilter("ignore", wavfile.WavFileWarning)
                warnings.filterwarnings("error", message="Reached EOF")
                rate, sound = wavfile.read(file)
            sound = _floats(sound)
        except Exception as error:  # SciPy raises half a dozen different ones
            raise GpuzooError(
                f"{where}: not a readable WAV file ({error}); remove or replace it"
            ) from None
        if seconds:
            sound = sound[: math.ceil(seconds * rate)]
        if not 0 < len(sound) <= LONGEST * rate:
            raise GpuzooError(
                f"{where}: {len(sound) / rate:g} seconds; they must be more than "
                f"none and at most {LONGEST:g}; --audio-seconds 1 cuts all to one"
            )
        if rate != RATE:
            common = math.gcd(rate, RATE)
            sound = resample_poly(sound, RATE // common, rate // common)
        sounds.append(_whole(sound))
        labels.append(label)
    if not sounds:
        raise GpuzooError(f"{what}: no .wav file in it")
    length = round(seconds * RATE) or max(map(len, sounds))
    audio = np.zeros((len(sounds), length), np.int16)
    for row, sound in zip(audio, sounds, strict=True):
        row[: len(sound)] = sound[:length]
    return {"audio": audio, "label": np.array(labels)}


def _floats(sound: np.ndarray) -> np.ndarray:
    """What a WAV file holds -> (samples,), 1.0 being its loudest."""
    if sound.dtype == np.uint8:
        sound = (sound.astype(np.float64) - 128) / 128
    elif sound.dtype.kind == "i":
        sound = sound / -float(np.iinfo(sound.dtype).min)
    if not np.isfinite(sound).all():
        raise ValueError("it holds values that are not finite")
    if (loudest := np.abs(sound).max(initial=0)) > 8:  # louder than is meant at times
        raise ValueError(f"its samples go up to {loudest:g}; divide them, 1 is loudest")
    return sound if sound.ndim == 1 else sound.mean(axis=1)


def _whole(sound: np.ndarray) -> np.ndarray:
    """Numbers in [-1, 1] -> int16; what is louder is cut."""
    return np.round(32767 * np.clip(sound, -1, 1)).astype(np.int16)


def check_lengths(what: str, splits: dict) -> None:
    """Training and test sounds, read apart, must be equally long."""
    lengths = {split: arrays["audio"].shape[1] for split, arrays in splits.items()}
    if lengths["train"] != lengths["test"]:
        told = {split: length / RATE for split, length in lengths.items()}
        raise GpuzooError(
            f"{what}: the longest sound has {told['train']:g} seconds in train and "
            f"{told['test']:g} in test; give one length, e.g. --audio-seconds 1"
        )
