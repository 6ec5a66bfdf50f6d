"""Randomness that is addressed, not consumed.

Every random number of a run is a function of (seed, purpose, epoch, step): the address
is hashed to the key of a Philox generator. Nothing is drawn from a shared stream, so
evaluating, logging or resuming never moves what comes later, and a run that starts at
step 700 sees what step 700 would have seen.

Only `random_raw` of NumPy's Philox is used. Its stream is guaranteed to stay the same
in every NumPy release, whereas the streams of `Generator` methods are not
(NumPy enhancement proposal 19); the few distributions needed are made from it here.
"""

import hashlib

import numpy as np


def key(seed: int, purpose: str, *address: int | str) -> int:
    """The 128-bit Philox key of an address."""
    text = "\x1f".join([str(seed), purpose, *map(str, address)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def raw(count: int, seed: int, purpose: str, *address: int | str) -> np.ndarray:
    """`count` random uint64 at an address."""
    return np.random.Philox(key=key(seed, purpose, *address)).random_raw(count)


def uniform(shape: tuple[int, ...], seed: int, purpose: str, *address) -> np.ndarray:
    """float64 in [0, 1), of `shape`."""
    bits = raw(int(np.prod(shape)), seed, purpose, *address)
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(shape)


def normal(shape: tuple[int, ...], seed: int, purpose: str, *address) -> np.ndarray:
    """float64, standard normal, of `shape` (Box and Muller's transform)."""
    count = int(np.prod(shape))
    u = uniform((2, (count + 1) // 2), seed, purpose, *address)
    radius = np.sqrt(-2 * np.log1p(-u[0]))
    pairs = radius * np.cos(2 * np.pi * u[1]), radius * np.sin(2 * np.pi * u[1])
    return np.concatenate(pairs)[:count].reshape(shape)


def truncated_normal(shape, seed: int, purpose: str, *address) -> np.ndarray:
    """float64, standard normal without the values beyond two, of `shape`."""
    count, found, attempt = int(np.prod(shape)), np.empty(0), 0
    while found.size < count:
        draws = normal((count + count // 10 + 16,), seed, purpose, *address, attempt)
        found = np.concatenate([found, draws[np.abs(draws) <= 2]])
        attempt += 1
    return found[:count].reshape(shape)


def permutation(count: int, seed: int, purpose: str, *address) -> np.ndarray:
    """A random order of `range(count)`, int32."""
    bits = raw(count, seed, purpose, *address)
    return np.argsort(bits, kind="stable").astype(np.int32)


def integer(seed: int, purpose: str, *address) -> int:
    """A random integer in [0, 2**31)."""
    return int(raw(1, seed, purpose, *address)[0] >> np.uint64(33))
