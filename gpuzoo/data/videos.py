"""Decode video files by PyAV, which is FFmpeg's libraries."""

import io
from collections.abc import Callable

import numpy as np

from gpuzoo.errors import GpuzooError

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
MOST_PIXELS = 1 << 25
"""Of a frame: 8K. A damaged header may say more than fits into memory."""
_MOST_FRAMES = 1_000_000


def format_of(head: bytes) -> str:
    """Return FFmpeg's name of the format of a video by its first 16 bytes, or "".

    Of the files that begin as MP4 only those whose brand is one of videos: sounds and
    images do, too."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        known = brand[:3] in (b"iso", b"mp4", b"M4V", b"3gp", b"3g2", b"qt ")
        return "mp4" if known or brand in (b"avc1", b"dash", b"MSNV", b"mmp4") else ""
    first = (b"moov", b"mdat", b"wide", b"free", b"skip")  # of old QuickTime files
    if head[:1] == b"\0" and head[4:8] in first:
        return "mp4"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    return "avi" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else ""


def decode(
    content: bytes, places: Callable[[int], list[int]]
) -> tuple[int, list[np.ndarray]]:
    """Return how many frames a video has, and some of them, (height, width, 3), uint8,
    upright.

    It is decoded twice, as no header says reliably how many frames there are.

    Args:
        content: of the file.
        places: a number of frames -> which of them.

    Raises:
        GpuzooError: PyAV is missing.
        ValueError: the file is damaged, or has fewer than two frames.
    """
    count = sum(1 for _ in _frames(content))
    if count < 2:
        raise ValueError(f"it has {count} frame, and a film at least 2")
    wanted = places(count)
    found, last = {}, max(wanted)
    for place, frame in enumerate(_frames(content)):
        if place in wanted:
            # Counterclockwise, as NumPy turns.
            pixels = frame.to_ndarray(format="rgb24")
            found[place] = np.rot90(pixels, round(frame.rotation / 90) % 4)
        if place == last:
            break
    return count, [found[place] for place in wanted]


def _frames(content: bytes):
    """Yield the frames of the first video stream of a file."""
    av = _library()
    try:
        with av.open(
            io.BytesIO(content),
            format=format_of(content[:16]),
            metadata_errors="replace",
        ) as opened:
            if not opened.streams.video:
                raise ValueError("it has no video stream")
            stream = opened.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("its codec is not known to FFmpeg")
            check_size(stream.width, stream.height)
            stream.codec_context.options = {
                "max_pixels": str(MOST_PIXELS),
                "err_detect": "explode",  # what is damaged is refused, not mended
            }
            packets = seen = 0
            for packet in opened.demux(stream):
                packets += bool(packet.size)
                if packet.is_corrupt:
                    raise ValueError(f"packet {packets} is damaged")
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise ValueError(f"frame {seen} is damaged")
                    seen += 1
                    if seen > _MOST_FRAMES:
                        raise ValueError(f"more than {_MOST_FRAMES:,} frames")
                    yield frame
            if packets < stream.frames:
                raise ValueError(f"cut short: {packets} of {stream.frames} frames")
    except av.FFmpegError as error:
        text = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"not a readable video ({text})") from None


def check_size(width: int, height: int) -> None:
    """Raise ValueError if frames are too large."""
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"its frames have {width * height:,} pixels, and at most {MOST_PIXELS:,} "
            "are read"
        )


def _library():
    try:
        import av
    except ImportError:
        raise GpuzooError(
            "PyAV is not installed, and video files need it: pip install "
            "'gpuzoo[video]', or convert them to .gif"
        ) from None
    # Errors are raised; FFmpeg would write warnings of its own to standard error.
    av.logging.set_level(None)
    return av
