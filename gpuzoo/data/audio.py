"""Sounds: folders of sound files, and tones that are computed."""

import io
import math
import pathlib

import numpy as np

from gpuzoo.data.folders import SOUND_SUFFIXES, content_of, find_files
from gpuzoo.errors import GpuzooError

RATE = 16_000  # samples per second
# Of files that are read: samples per second, and channels. Others are damaged.
LOWEST, HIGHEST, CHANNELS = 100, 384_000, 64
# Programs that do not know the length of a sound write 0, or this or more.
_ENDLESS = 0x7FFF_0000
# What may follow after no sound at all.
_CHUNKS = (b"LIST", b"fact", b"id3 ", b"ID3 ", b"bext", b"cue ", b"smpl", b"JUNK")
LONGEST = 30.0  # seconds that an example may have


def read_folder(
    what: str, folder: pathlib.Path, classes: list[str], seconds: float
) -> dict:
    """Every sound file below the sub-folder of each class: WAV, FLAC, OGG, MP3, ...

    Returns:
        `audio` (examples, samples), int16, one channel at RATE, and `label`. Channels
        are averaged and other rates resampled. All have the length of the longest,
        silence after the shorter ones, or `seconds`: longer ones are cut then.

    Raises:
        GpuzooError: a file that cannot be read or is too long, or none.
    """
    sounds, labels, bad = [], [], []
    for label, file in find_files(what, folder, classes):
        if file.suffix.lower() not in SOUND_SUFFIXES and content_of(file) != "sound":
            continue
        name = file.relative_to(folder)
        try:
            sounds.append(_read(file, seconds))
        except Exception as error:  # the libraries raise half a dozen different ones
            text = " ".join(str(error).replace(str(file), file.name).split())[:160]
            bad.append((name, text or type(error).__name__))
            continue
        labels.append(label)
    if bad:
        raise _bad(what, bad, len(sounds))
    if not sounds:
        raise GpuzooError(
            f"{what}: no sound in it ({', '.join(sorted(SOUND_SUFFIXES))})"
        )
    length = round(seconds * RATE) or max(map(len, sounds))
    audio = np.zeros((len(sounds), length), np.int16)
    for row, sound in zip(audio, sounds, strict=True):
        row[: len(sound)] = sound[:length]
    return {"audio": audio, "label": np.array(labels)}


def source(folder: pathlib.Path) -> str:
    """What a folder of sounds is, for a person."""
    suffixes = {path.suffix.lower() for path in folder.rglob("*")} & SOUND_SUFFIXES
    return "folder of WAV files" if suffixes == {".wav"} else "folder of sound files"


def _bad(what: str, bad: list, good: int) -> GpuzooError:
    """One error for all files that cannot be read."""
    if len(bad) == 1:
        ((name, reason),) = bad
        return GpuzooError(f"{what}: {name}: {reason}")
    listed = "; ".join(f"{name} ({reason})" for name, reason in bad[:5])
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return GpuzooError(
        f"{what}: {len(bad)} of {len(bad) + good} sounds are not readable: "
        f"{listed}{more}"
    )


def _read(file: pathlib.Path, seconds: float) -> np.ndarray:
    """(samples,), int16 at RATE, of one file; of its beginning if seconds are named.

    Raises:
        ValueError: why it cannot be read, for a person.
    """
    import soundfile

    kind = "WAV file" if file.suffix.lower() in (".wav", ".wave") else "sound file"
    content = file.read_bytes()
    try:
        opened = soundfile.SoundFile(io.BytesIO(_mended(content)))
    except (RuntimeError, ValueError, TypeError) as error:
        text = str(error).rpartition(": ")[2].rstrip(".") if content else "it is empty"
        text = text.replace("SF_INFO struct incomplete", "its header is damaged")
        raise ValueError(
            f"not a readable {kind} ({text}); remove or replace it"
        ) from None
    with opened:
        rate = opened.samplerate
        if not LOWEST <= rate <= HIGHEST:
            raise ValueError(
                f"not a readable {kind} (its header says {rate:,} samples per second, "
                f"not {LOWEST} to {HIGHEST:,}); remove or replace it"
            )
        if opened.channels > CHANNELS:
            raise ValueError(
                f"not a readable {kind} (its header says {opened.channels} channels, "
                f"not up to {CHANNELS}); remove or replace it"
            )
        long = f"they must be more than none and at most {LONGEST:g}; --audio-seconds"
        most = math.ceil(seconds * rate) if seconds else opened.frames
        if not seconds and not 0 < opened.frames <= LONGEST * rate:
            raise ValueError(
                f"{opened.frames / rate:g} seconds; {long} 1 cuts all to one"
            )
        try:
            sound = _floats(opened, most)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"not a readable {kind} ({error}); remove or replace it"
            ) from None
        told = min(most, opened.frames)
        # Of lossy formats the number of samples is not exact.
        if len(sound) < told and opened.format in ("WAV", "FLAC", "AIFF", "WAVEX"):
            raise ValueError(
                f"not a readable {kind} (it is cut short: {len(sound):,} of {told:,} "
                "samples); remove or replace it"
            )
    if not len(sound):
        raise ValueError(f"0 seconds; {long} 1 cuts all to one")
    if rate != RATE:
        from scipy.signal import resample_poly

        common = math.gcd(rate, RATE)
        sound = resample_poly(sound, RATE // common, rate // common)
    return whole(sound)


def _floats(opened, most: int) -> np.ndarray:
    """At most so many samples, 1.0 being the loudest, channels averaged. Read in parts:
    a damaged header may tell of more than there are."""
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
    if (loudest := np.abs(sound).max(initial=0)) > 8:  # louder than is meant at times
        raise ValueError(f"its samples go up to {loudest:g}; divide them, 1 is loudest")
    return sound if sound.ndim == 1 else sound.mean(axis=1)


def _mended(content: bytes) -> bytes:
    """A WAV file whose header does not know how long it is, as programs write it into a
    pipe, with the length of what is there.

    A length that is too large beside a right one of the whole file is mended too; where
    both are too large the file is cut short, which is refused.

    Raises:
        ValueError: it is.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return content
    place, whole = 12, int.from_bytes(content[4:8], "little")
    while place + 8 <= len(content) and content[place : place + 4] != b"data":
        place += 8 + (size := int.from_bytes(content[place + 4 : place + 8], "little"))
        place += size % 2
    if place + 8 > len(content):
        return content
    told = int.from_bytes(content[place + 4 : place + 8], "little")
    there = len(content) - place - 8
    if told == 0 and there:
        unknown = content[place + 8 : place + 12] not in _CHUNKS
    else:
        unknown = told > there and (
            told >= _ENDLESS or whole in (0, len(content) - 8) or whole >= _ENDLESS
        )
    if unknown:
        size = min(there, 0xFFFFFFFF).to_bytes(4, "little")
        total = (len(content) - 8).to_bytes(4, "little")
        rest = content[place + 8 :]
        return content[:4] + total + content[8 : place + 4] + size + rest
    if told > there:
        raise ValueError(f"it is cut short: {there:,} of {told:,} bytes of sound")
    return content


def whole(sound: np.ndarray) -> np.ndarray:
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
