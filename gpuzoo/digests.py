"""Short digests of arrays, to compare runs by."""

import hashlib

import numpy as np


def digest(array: np.ndarray) -> str:
    """A short digest of type, shape and bytes: 16 hexadecimal digits."""
    head = f"{array.dtype} {array.shape}\n".encode()
    body = np.ascontiguousarray(array).view(np.uint8).reshape(-1) if array.size else b""
    return hashlib.sha256(head + bytes(body)).hexdigest()[:16]


def digest_all(values: dict[str, np.ndarray]) -> str:
    """One short digest of many named arrays."""
    lines = "".join(f"{name} {digest(values[name])}\n" for name in sorted(values))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
