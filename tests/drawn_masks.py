"""Small images with masks that tests train on and damage: a bright square on dark."""

import io
import struct
import zlib

import numpy as np
import PIL.Image


def examples(count=24, height=20, width=16, classes=3, seed=0):
    """Images (count, height, width, 3) with a square of the colour of its class, and
    their masks."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (count, height, width, 3), np.uint8)
    mask = np.zeros((count, height, width), np.uint8)
    for index in range(count):
        top, left = rng.integers(1, height - 9), rng.integers(1, width - 9)
        label = 1 + index % (classes - 1)
        place = (index, slice(top, top + 8), slice(left, left + 8))
        mask[place] = label
        image[(*place, label % 3)] += 150
    return image, mask


def png(pixels, mode=None, palette=None, **how) -> bytes:
    pixels = np.asarray(pixels)
    pixels = pixels.astype(np.uint8) if pixels.dtype == np.int64 else pixels
    image = PIL.Image.fromarray(pixels, mode)
    if palette is not None:
        image.putpalette(list(palette))
    content = io.BytesIO()
    image.save(content, "png", **how)
    return content.getvalue()


def few_bits(values: np.ndarray, depth: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    height, width = values.shape
    bits = np.unpackbits(values[..., None].astype(np.uint8), axis=-1)[..., 8 - depth :]
    rows = np.packbits(bits.reshape(height, -1), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def folder(path, image, mask, draw=png, suffix=".png"):
    """Write images/ and masks/ into a folder; `draw`: a mask -> its file."""
    for name in ("images", "masks"):
        (path / name).mkdir(parents=True)
    for index, (pixels, labels) in enumerate(zip(image, mask, strict=True)):
        (path / "images" / f"{index:03d}{suffix}").write_bytes(png(pixels))
        (path / "masks" / f"{index:03d}.png").write_bytes(draw(labels))
    return path
