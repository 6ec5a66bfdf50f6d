"""A generated series like those of markets: regimes, and clusters of volatility.

It is computed by correctly rounded operations from `gpuzoo.randomness` alone, so that
every processor makes the same bits.
"""

import datetime
import math

import numpy as np

from gpuzoo import randomness
from gpuzoo.data.columns import Column, Columns

NAME = "market"
TARGET = "close"
ROWS = 10_000
# Regime -> how much of the last return comes again, part of the variance of the noise
# that is always there, and usual volume.
_REGIMES = ((0.8, 0.6, 1.0), (-0.8, 0.9, 2.0))
_STAYS = 0.985
"""Probability that a regime goes on for another hour."""
_SHOCK, _LASTS = 0.14, 0.82
"""Of the variance of the noise, GARCH(1, 1): from the last noise, and from itself."""
_SIZE = 0.002
"""Deviation of the noise of a return, if its variance is 1."""
_PULL = 0.002
"""Part of the distance to 100 by which a price comes back in an hour."""


def make() -> dict:
    """Return name, source, columns and default target of the series `market`.

    10,000 hours of a price, `close`, with the `volume` of trades. In one of two hidden
    regimes, of 67 hours on average, a part of each return comes again in the next hour
    (a trend); in the other it is taken back (a reversal): the best linear rule over
    both knows neither. Large returns come in clusters, and with volume.
    """
    u = randomness.uniform((8, ROWS), 0, NAME)
    bell = 2 * (u[0] + u[1] + u[2] - 1.5)  # of deviation 1
    price, last, noise, variance, regime = 100.0, 0.0, 0.0, 1.0, 0
    close, volume = np.empty(ROWS), np.empty(ROWS)
    for hour in range(ROWS):
        if u[3, hour] > _STAYS:
            regime = 1 - regime
        again, always, trades = _REGIMES[regime]
        variance = _LASTS * variance + _SHOCK * noise * noise
        variance += (1 - _SHOCK - _LASTS) * always
        noise = math.sqrt(variance) * bell[hour]
        last = again * last + _SIZE * noise
        price += price * last - _PULL * (price - 100)
        close[hour] = price
        volume[hour] = 1_000 * trades * (1 + abs(noise)) * (0.6 + 0.8 * u[4, hour])
    first = datetime.datetime(2024, 1, 1)
    hours = [first + datetime.timedelta(hours=hour) for hour in range(ROWS)]
    columns = [
        Column("time", texts=[f"{one:%Y-%m-%d %H:%M}" for one in hours]),
        Column("volume", values=np.floor(volume + 0.5)),
        Column(TARGET, values=np.floor(10_000 * close + 0.5) / 10_000),
    ]
    return {
        "name": NAME, "source": "computed by gpuzoo",
        "table": Columns(f"data {NAME!r}", {one.name: one for one in columns}),
    }  # fmt: skip
