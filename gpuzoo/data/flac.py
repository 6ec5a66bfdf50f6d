"""Checksums of FLAC files that libsndfile does not compare."""

import hashlib
import io

import numpy as np

_MD5 = slice(26, 42)  # in a file that begins with its STREAMINFO block
# Code in the header of a frame -> samples per second; others refer to STREAMINFO.
_RATES = {
    1: 88_200, 2: 176_400, 3: 192_000, 4: 8_000, 5: 16_000, 6: 22_050, 7: 24_000,
    8: 32_000, 9: 44_100, 10: 48_000, 11: 96_000,
}  # fmt: skip


def check(content: bytes, whole: bool) -> None:
    """Raise ValueError if the header of a FLAC file contradicts its audio.

    Args:
        whole: all of it is read: compare its MD5 digest.
    """
    import soundfile

    if content[:4] != b"fLaC" or content[4] & 0x7F or len(content) < _MD5.stop:
        return
    first = content[_first_frame(content) :][:3]
    with soundfile.SoundFile(io.BytesIO(content)) as opened:
        if len(first) == 3:
            rate = _RATES.get(first[2] & 0x0F, opened.samplerate)
            if rate != opened.samplerate:
                raise ValueError(
                    f"its header says {opened.samplerate:,} samples per second, and "
                    f"its audio {rate:,}"
                )
        if not whole or not any(content[_MD5]):
            return
        bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}.get(opened.subtype)
        if bits:
            samples = opened.read(dtype="int32") >> (32 - bits)
            raw = np.ascontiguousarray(samples.reshape(-1), "<i4").view(np.uint8)
            raw = raw.reshape(-1, 4)[:, : bits // 8]
            found = hashlib.md5(raw.tobytes(), usedforsecurity=False).digest()
            if found != content[_MD5]:
                raise ValueError("its audio does not have the digest of its header")


def _first_frame(content: bytes) -> int:
    """Return where the metadata blocks end."""
    place, last = 4, False
    while not last and place + 4 <= len(content):
        last = bool(content[place] & 0x80)
        place += 4 + int.from_bytes(content[place + 1 : place + 4])
    return place
