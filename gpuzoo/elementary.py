"""Elementary functions in float64: NumPy's, or, at level portable, from sums, products
and quotients alone, which every processor rounds alike.

NumPy's own follow the processor in the last bit: with AVX-512 they are other code than
without, and some are the C library's.
"""

import math

import numpy as np

from gpuzoo.errors import GpuzooError

_exact = False
# ln 2 in two parts, as in fdlibm: an integer below 2**20 times the first is exact.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10


def use_exact(exact: bool) -> None:
    """Choose between the two forms, for the whole process."""
    global _exact
    _exact = exact


def is_exact() -> bool:
    """Whether the forms from sums, products and quotients are in use."""
    return _exact


def log1p(x: np.ndarray) -> np.ndarray:
    """Return log(1 + x); in the exact form for x such that 1 + x > 0 is not rounded."""
    return _log(1 + x) if _exact else np.log1p(x)


def cos_turns(turns: np.ndarray) -> np.ndarray:
    """Return the cosine of an angle in turns."""
    return _sine(turns, 1) if _exact else np.cos(2 * np.pi * turns)


def sin_turns(turns: np.ndarray) -> np.ndarray:
    """Return the sine of an angle in turns."""
    return _sine(turns, 0) if _exact else np.sin(2 * np.pi * turns)


def orthonormal(tall: np.ndarray) -> np.ndarray:
    """Return Q of the QR decomposition of a matrix with a positive diagonal of R."""
    if _exact:
        return _gram_schmidt(tall)
    q, r = np.linalg.qr(tall)
    return q * np.sign(np.diag(r))


def principal_axes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean of rows, and the eigenvalues, ascending, and the eigenvectors,
    in columns, of their covariance."""
    if not _exact:
        values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False))
        return rows.mean(axis=0), values, vectors
    columns = rows.T
    mean = np.array([_sum(column) for column in columns]) / len(rows)
    covariance = np.empty((len(mean), len(mean)))
    centred = np.ascontiguousarray(columns - mean[:, None])
    for i in range(len(mean)):
        for j in range(i + 1):
            total = _sum(centred[i] * centred[j])
            covariance[i, j] = covariance[j, i] = total / (len(rows) - 1)
    return mean, *_jacobi(covariance)


def product(row: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return row @ matrix."""
    return _sum((row[:, None] * matrix).T) if _exact else row @ matrix


def _log(x: np.ndarray) -> np.ndarray:
    part, power = np.frexp(x)  # exact
    small = part < math.sqrt(0.5)
    part, power = np.where(small, 2 * part, part), power - small
    s = (part - 1) / (part + 1)
    series = 2 * s * _polynomial(s * s, [1 / (2 * n + 1) for n in range(13)])
    return power * _LN2_HIGH + (power * _LN2_LOW + series)


def _sine(turns: np.ndarray, quarters: int) -> np.ndarray:
    """Return the sine of `turns` and some quarters of a turn."""
    quarter = np.rint(4 * turns)
    x = 2 * np.pi * (turns - quarter / 4)  # in [-pi/4, pi/4]; the difference is exact
    signs = [(-1) ** n for n in range(10)]
    odd = [sign / math.factorial(2 * n + 1) for n, sign in enumerate(signs)]
    even = [sign / math.factorial(2 * n) for n, sign in enumerate(signs)]
    sine, cosine = x * _polynomial(x * x, odd), _polynomial(x * x, even)
    place = (quarter.astype(np.int64) + quarters) % 4
    return np.choose(place, [sine, cosine, -sine, -cosine])


def _polynomial(x: np.ndarray, coefficients: list[float]) -> np.ndarray:
    found = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        found = found * x + coefficient
    return found


def _gram_schmidt(tall: np.ndarray) -> np.ndarray:
    """Modified Gram-Schmidt, done twice ("twice is enough": Giraud et al. 2005)."""
    rows = tall.T.copy()
    for _ in range(2):
        for number in range(len(rows)):
            norm = np.sqrt(_sum(rows[number] ** 2))
            if not norm > 0:
                raise GpuzooError(
                    f"orthogonal weights need columns that are independent, and column "
                    f"{number} is {norm:g} long; use another initializer"
                )
            row = rows[number] = rows[number] / norm
            rest = rows[number + 1 :]
            rest -= _sum(rest * row)[:, None] * row
    return rows.T


def _jacobi(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors by cyclic Jacobi rotations (Golub and
    Van Loan, Matrix Computations, 8.5)."""
    a, vectors = symmetric.copy(), np.eye(len(symmetric))
    for _ in range(30):
        for p in range(len(a)):
            for q in range(p + 1, len(a)):
                if abs(a[p, q]) <= 1e-18 * abs(a[p, p] + a[q, q]):
                    continue
                tau = (a[q, q] - a[p, p]) / (2 * a[p, q])
                t = math.copysign(1, tau) / (abs(tau) + math.sqrt(1 + tau * tau))
                c = 1 / math.sqrt(1 + t * t)
                for m in (a.T, a, vectors.T):  # columns, then rows
                    m[p], m[q] = c * m[p] - t * c * m[q], t * c * m[p] + c * m[q]
    order = np.argsort(np.diag(a), kind="stable")
    return np.diag(a)[order], vectors[:, order]


def _sum(values: np.ndarray) -> np.ndarray:
    """Add along the last axis by halves: an order that no library chooses."""
    while (count := values.shape[-1]) > 1:
        half = count // 2
        rest = values[..., 2 * half :]
        values = values[..., :half] + values[..., half : 2 * half]
        if rest.shape[-1]:
            values = np.concatenate([values, rest], axis=-1)
    return values[..., 0]
