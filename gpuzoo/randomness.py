"""Counter-based randomness: every number is a function of an address.

Every random number of a run is a function of (seed, purpose, epoch, step): the address
is hashed to the key of a Philox generator. There is no shared stream, so evaluating,
logging or resuming does not change later numbers, and a run resumed at step 700 gets
the numbers of step 700.

Only `random_raw` of NumPy's Philox is used. Its stream is guaranteed to stay the same
in every NumPy release, whereas the streams of `Generator` methods are not
(NumPy enhancement proposal 19); the few distributions needed are derived from it here.
"""

import functools
import hashlib
import math
from collections.abc import Iterator

import numpy as np

from gpuzoo import elementary


def key(seed: int, purpose: str, *address: int | str) -> int:
    """Return the 128-bit Philox key of an address."""
    text = "\x1f".join([str(seed), purpose, *map(str, address)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def raw(count: int, seed: int, purpose: str, *address: int | str) -> np.ndarray:
    """Return `count` random uint64 at an address."""
    return np.random.Philox(key=key(seed, purpose, *address)).random_raw(count)


def uniform(shape: tuple[int, ...], seed: int, purpose: str, *address) -> np.ndarray:
    """Return float64 in [0, 1), of `shape`."""
    bits = raw(int(np.prod(shape)), seed, purpose, *address)
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(shape)


def normal(shape: tuple[int, ...], seed: int, purpose: str, *address) -> np.ndarray:
    """Return standard normal float64 of `shape` (Box-Muller transform)."""
    count = int(np.prod(shape))
    u = uniform((2, (count + 1) // 2), seed, purpose, *address)
    radius = np.sqrt(-2 * elementary.log1p(-u[0]))
    cosines, sines = elementary.cos_turns(u[1]), elementary.sin_turns(u[1])
    return np.concatenate([radius * cosines, radius * sines])[:count].reshape(shape)


def truncated_normal(shape, seed: int, purpose: str, *address) -> np.ndarray:
    """Return float64 of `shape`, standard normal truncated at two deviations."""
    count, found, attempt = int(np.prod(shape)), np.empty(0), 0
    while found.size < count:
        draws = normal((count + count // 10 + 16,), seed, purpose, *address, attempt)
        found = np.concatenate([found, draws[np.abs(draws) <= 2]])
        attempt += 1
    return found[:count].reshape(shape)


def permutation(count: int, seed: int, purpose: str, *address) -> np.ndarray:
    """Return a random permutation of `range(count)`, int32."""
    bits = raw(count, seed, purpose, *address)
    return np.argsort(bits, kind="stable").astype(np.int32)


# A permutation of more than so many numbers is made in parts of about as many.
_PART = 2**18
_CHUNK = 2**16


def permuted(count: int, start: int, end: int, seed: int, purpose: str, *address):
    """Return `permutation(count, ...)[start:end]`, int32, in memory that does not grow
    with `count`: the part of the numbers drawn that are sorted there is drawn again."""
    place = (count, seed, purpose, *address)
    if count <= 2 * _PART:
        return _whole(*place)[start:end]
    ends = _ends(*place)
    first, last = np.searchsorted(ends, (start, end - 1), side="right")
    parts = [_bucket(bucket, *place) for bucket in range(first, last + 1)]
    before = int(ends[first - 1]) if first else 0
    return np.concatenate(parts)[start - before : end - before]


@functools.lru_cache(maxsize=2)
def _whole(*place) -> np.ndarray:
    return permutation(*place)


def _shift(count: int) -> np.uint64:
    """Return by how many bits the number of the part follows from a number drawn."""
    return np.uint64(64 - math.ceil(math.log2(count / _PART)))


def _chunks(count: int, *address) -> Iterator[np.ndarray]:
    """Yield `raw(count, ...)` in chunks."""
    drawn = np.random.Philox(key=key(*address))
    for start in range(0, count, _CHUNK):
        yield drawn.random_raw(min(_CHUNK, count - start))


@functools.lru_cache(maxsize=2)
def _ends(count: int, *address) -> np.ndarray:
    """Return where in the order each part ends."""
    shift = _shift(count)
    sizes = np.zeros(1 << (64 - int(shift)), np.int64)
    for bits in _chunks(count, *address):
        sizes += np.bincount((bits >> shift).astype(np.int64), minlength=len(sizes))
    return np.cumsum(sizes)


@functools.lru_cache(maxsize=3)
def _bucket(number: int, count: int, *address) -> np.ndarray:
    """Return a part of the order."""
    shift, found, places = _shift(count), [], []
    for turn, bits in enumerate(_chunks(count, *address)):
        here = np.flatnonzero(bits >> shift == number)
        found.append(bits[here])
        places.append((here + turn * _CHUNK).astype(np.int32))
    order = np.argsort(np.concatenate(found), kind="stable")
    return np.concatenate(places)[order]


def uniform_at(places: np.ndarray, count: int, seed: int, purpose: str, *address):
    """Return `uniform((count,), ...)[places]`; of many numbers without the others."""
    if count <= 2 * _PART:
        return _uniform(count, seed, purpose, *address)[places]
    drawn, at = np.random.Philox(key=key(seed, purpose, *address)), 0
    bits = np.empty(places.size, np.uint64)
    flat = places.ravel()
    for row in np.argsort(flat, kind="stable"):
        block, within = divmod(int(flat[row]), 4)  # Philox draws four at once
        drawn.advance(block - at)
        bits[row] = drawn.random_raw(4)[within]
        at = block + 1
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(places.shape)


@functools.lru_cache(maxsize=1)
def _uniform(count: int, *address) -> np.ndarray:
    return uniform((count,), *address)


def integer(seed: int, purpose: str, *address) -> int:
    """Return a random integer in [0, 2**31)."""
    return int(raw(1, seed, purpose, *address)[0] >> np.uint64(33))
