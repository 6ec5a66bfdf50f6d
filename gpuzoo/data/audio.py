"""Audio files, and folders of them."""

import dataclasses
import io
import math
import pathlib
import struct

import numpy as np

from gpuzoo.data import flac
from gpuzoo.data.folders import (
    SOUND_SUFFIXES,
    all_bad,
    content_of,
    find_files,
    reason,
)
from gpuzoo.errors import GpuzooError
from gpuzoo.files import read_regular, too_large

RATE = 16_000  # samples per second
# Accepted sample rates and numbers of channels; headers with others are damaged.
LOWEST, HIGHEST, CHANNELS = 100, 384_000, 64
# Programs that do not know the length of a recording write 0, or this or more.
_ENDLESS = 0x7FFF_0000
# Chunks that may follow an empty data chunk.
_CHUNKS = (b"LIST", b"fact", b"id3 ", b"ID3 ", b"bext", b"cue ", b"smpl", b"JUNK")
LONGEST = 30.0  # maximum length of an example in seconds
_MOST_BYTES = 1 << 30  # of a file
_LOUDEST = 2  # of floats; full scale is 1, and what is above is cut
_MOST_VALUES = 1 << 28  # in all channels: a small FLAC file can hold hours of silence


@dataclasses.dataclass(frozen=True)
class Sound:
    """A decoded sound."""

    samples: np.ndarray
    """(samples,), int16, one channel at RATE."""
    seconds: float
    """Length in the file."""
    rate: int
    """Samples per second in the file."""
    channels: int
    """Channels in the file."""


def read_folder(
    what: str, folder: pathlib.Path, classes: list[str], seconds: float
) -> dict:
    """Read all audio files in the sub-folder of each class: WAV, FLAC, OGG, MP3, ...

    Returns:
        `audio` (examples, samples), int16, one channel at RATE, and `label`. Channels
        are averaged and other rates resampled. All are padded with silence to the
        longest, or padded or cut to `seconds`.

    Raises:
        GpuzooError: a file that cannot be read or is too long, or no files.
    """
    sounds, labels, bad = [], [], []
    for label, file in find_files(what, folder, classes):
        if file.suffix.lower() not in SOUND_SUFFIXES and content_of(file) != "sound":
            continue
        name = file.relative_to(folder)
        try:
            sounds.append(read_sound(file, seconds).samples)
        except Exception as error:  # the libraries raise many types
            bad.append((name, reason(error, file)))
            continue
        labels.append(label)
    if len(bad) == 1:
        raise GpuzooError(f"{what}: {bad[0][0]}: {bad[0][1]}")
    if bad:
        raise all_bad(what, bad, len(sounds), "sounds", "")
    if not sounds:
        raise GpuzooError(
            f"{what}: no audio files found ({', '.join(sorted(SOUND_SUFFIXES))})"
        )
    length = round(seconds * RATE) or max(map(len, sounds))
    audio = np.zeros((len(sounds), length), np.int16)
    for row, sound in zip(audio, sounds, strict=True):
        row[: len(sound)] = sound[:length]
    return {"audio": audio, "label": np.array(labels)}


def source(folder: pathlib.Path) -> str:
    """Describe a folder of audio files for the user."""
    suffixes = {path.suffix.lower() for path in folder.rglob("*")} & SOUND_SUFFIXES
    return "folder of WAV files" if suffixes == {".wav"} else "folder of sound files"


def read_sound(file: pathlib.Path | bytes, seconds: float) -> Sound:
    """Decode a sound.

    Args:
        file: the path of a regular file, or its content.
        seconds: to read at most; 0: all.

    Raises:
        Exception: it cannot be read; `folders.reason` returns the reason.
    """
    if isinstance(file, bytes):
        content, wav = file, file[8:12] == b"WAVE"
    else:
        content = read_regular(file, _MOST_BYTES)
        wav = file.suffix.lower() in (".wav", ".wave")
    if len(content) > _MOST_BYTES:
        raise ValueError(too_large(len(content), _MOST_BYTES))

    def unreadable(why) -> ValueError:
        kind = "WAV file" if wav else "sound file"
        return ValueError(f"not a readable {kind} ({why}); remove or replace it")

    with _opened(content, unreadable) as opened:
        rate, frames, channels = opened.samplerate, opened.frames, opened.channels
        _check_header(rate, channels, unreadable)
        if not seconds and not 0 < frames <= LONGEST * rate:
            raise ValueError(f"{frames / rate:g} seconds; {_LONG}")
        most = math.ceil(seconds * rate) if seconds else frames
        expected = min(most, frames)
        if expected * channels > _MOST_VALUES:
            raise ValueError(
                f"{channels} channels of {frames:,} samples, and at most "
                f"{_MOST_VALUES:,} values are read"
            )
        try:
            sound = _floats(opened, most)
            if opened.format == "FLAC":
                flac.check(content, most >= frames)
        except (RuntimeError, ValueError) as error:
            raise unreadable(error) from None
        # Lossy formats do not store the exact number of samples.
        if len(sound) < expected and opened.format in ("WAV", "FLAC", "AIFF", "WAVEX"):
            raise unreadable(f"it is cut short: {len(sound):,} of {expected:,} samples")
    if not len(sound):
        raise ValueError(f"0 seconds; {_LONG}")
    if rate != RATE:
        from scipy.signal import resample_poly

        common = math.gcd(rate, RATE)
        sound = resample_poly(sound, RATE // common, rate // common)
    return Sound(whole(sound), frames / rate, rate, channels)


_LONG = (
    f"they must be more than none and at most {LONGEST:g}; --audio-seconds 1 cuts all "
    "to one"
)


def _opened(content: bytes, unreadable):
    """Open a sound with libsndfile."""
    import soundfile

    try:
        return soundfile.SoundFile(io.BytesIO(_mended(content)))
    except (RuntimeError, ValueError, TypeError) as error:
        text = str(error).rpartition(": ")[2].rstrip(".") if content else "it is empty"
        text = text.replace("SF_INFO struct incomplete", "its header is damaged")
        raise unreadable(text) from None


def _check_header(rate: int, channels: int, unreadable) -> None:
    if not LOWEST <= rate <= HIGHEST:
        raise unreadable(
            f"its header says {rate:,} samples per second, not {LOWEST} to {HIGHEST:,}"
        )
    if channels > CHANNELS:
        raise unreadable(f"its header says {channels} channels, not up to {CHANNELS}")


def _floats(opened, most: int) -> np.ndarray:
    """Read at most so many samples as floats in [-1, 1], channels averaged; in parts,
    as a damaged header may announce more than exist."""
    single = opened.subtype == "FLOAT"
    parts, count = [], 0
    while count < most:
        part = opened.read(
            min(most - count, 1 << 18), "float32" if single else "float64"
        )
        if not len(part):
            break
        parts.append(part)
        count += len(part)
    sound = np.concatenate(parts) if parts else np.zeros(0)
    if not np.isfinite(sound).all():
        raise ValueError("it holds values that are not finite")
    if (loudest := np.abs(sound).max(initial=0)) > _LOUDEST:
        raise ValueError(f"samples up to {loudest:g}; expected -1..1, rescale them")
    return sound if sound.ndim == 1 else sound.mean(axis=1)


def _mended(content: bytes) -> bytes:
    """Correct the data length of a WAV file whose header does not hold it, as programs
    write to a pipe.

    A data length that is too large is also corrected if that of the whole file is
    right; if both are too large, the file is cut short.

    Raises:
        ValueError: the file is cut short, or its samples have an unusual width.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return content
    place, whole = 12, int.from_bytes(content[4:8], "little")
    while place + 8 <= len(content) and content[place : place + 4] != b"data":
        if content[place : place + 4] == b"fmt ":
            _check_width(content[place + 8 : place + 24])
        place += 8 + (size := int.from_bytes(content[place + 4 : place + 8], "little"))
        place += size % 2
    if place + 8 > len(content):
        return content
    stated = int.from_bytes(content[place + 4 : place + 8], "little")
    there = len(content) - place - 8
    if stated == 0 and there:
        unknown = content[place + 8 : place + 12] not in _CHUNKS
    else:
        unknown = stated > there and (
            stated >= _ENDLESS or whole in (0, len(content) - 8) or whole >= _ENDLESS
        )
    if unknown:
        size = min(there, 0xFFFFFFFF).to_bytes(4, "little")
        total = (len(content) - 8).to_bytes(4, "little")
        rest = content[place + 8 :]
        return content[:4] + total + content[8 : place + 4] + size + rest
    if stated > there:
        raise ValueError(f"it is cut short: {there:,} of {stated:,} bytes of audio")
    return content


def _check_width(header: bytes) -> None:
    """Refuse samples of 24 bits in 32 and the like, of which libsndfile would read
    three bytes after the other."""
    if len(header) < 16:
        return
    kind, channels, _, _, frame, bits = struct.unpack("<HHIIHH", header)
    if kind in (1, 3) and channels and frame != channels * -(-bits // 8):
        raise ValueError(
            f"its header says {bits} bits per sample and {frame} bytes for {channels} "
            "channels, which do not fit; save it with 16 bits"
        )


def whole(sound: np.ndarray) -> np.ndarray:
    """Convert floats in [-1, 1] to int16; others are clipped."""
    return np.round(32767 * np.clip(sound, -1, 1)).astype(np.int16)


def clean(what: str, sounds: np.ndarray) -> np.ndarray:
    """Return sounds as int16.

    Raises:
        GpuzooError: neither int16 nor finite floats in [-1, 1].
    """
    if sounds.dtype == np.int16:
        return np.ascontiguousarray(sounds)
    if sounds.dtype.kind != "f":
        raise GpuzooError(f"{what}: must be int16 or floats, not {sounds.dtype}")
    if not np.isfinite(sounds).all():
        raise GpuzooError(f"{what}: every value must be finite")
    if (loudest := np.abs(sounds).max(initial=0)) > 1:
        raise GpuzooError(
            f"{what}: samples up to {loudest:g}; rescale floats to [-1, 1]"
        )
    return whole(sounds)


def check_lengths(what: str, splits: dict) -> None:
    """Check that the examples of all splits have the same length."""
    lengths = {split: arrays["audio"].shape[1] for split, arrays in splits.items()}
    for split, length in lengths.items():
        if length != lengths["train"]:
            raise GpuzooError(
                f"{what}: the longest sound has {lengths['train'] / RATE:g} seconds in "
                f"train and {length / RATE:g} in {split}; set one length, e.g. "
                "--audio-seconds 1"
            )
