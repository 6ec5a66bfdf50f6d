"""Counter-based randomness: every number is a function of an address.

Every random number of a run is a function of (seed, purpose, epoch, step): the address
is hashed to the key of a Philox generator. There is no shared stream, so evaluating,
logging or resuming does not change later numbers, and a run resumed at step 700 gets
the numbers of step 700.

Only `random_raw` of NumPy's Philox is used. Its stream is guaranteed to stay the same
in every NumPy release, whereas the streams of `Generator` methods are not
(NumPy enhancement proposal 19); the few distributions needed are derived from it here.
"""

import hashlib

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


def integer(seed: int, purpose: str, *address) -> int:
    """Return a random integer in [0, 2**31)."""
    return int(raw(1, seed, purpose, *address)[0] >> np.uint64(33))
