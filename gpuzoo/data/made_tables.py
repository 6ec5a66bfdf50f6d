"""Generated tables, with interactions between columns, categories and missing values.

They are computed by correctly rounded operations from `gpuzoo.randomness` alone, so
that every processor makes the same bits.
"""

import datetime

import numpy as np

from gpuzoo import randomness
from gpuzoo.data.columns import Column, Columns

TABLES = ("flats", "lettings")
ROWS = 10_000
_TARGETS = {"flats": "rent", "lettings": "let"}
# District -> rent per square metre, and how much of it is lost per kilometre.
_DISTRICTS = {
    "Altstadt": (21.0, 1.6), "Brook": (11.5, 0.2), "Canal": (17.0, 0.9),
    "Docks": (13.0, -0.7), "Eastgate": (10.0, 0.1), "Field": (9.0, 0.0),
    "Garden": (15.5, 0.3), "Hill": (18.5, 0.5), "Île": (23.0, 2.0),
    "Junction": (8.0, -0.3), "Kilnworks": (12.0, 0.6), "Lindenhof": (14.0, 0.4),
}  # fmt: skip
_CONDITIONS = {"to renovate": 0.78, "fair": 0.92, "good": 1.0, "as new": 1.15}
_HEATING = ("gas", "district", "heat pump", "electric")
_COSTS = np.array([0.9, 0.6, 0.4, 1.9])  # of heating, per square metre
_NOISE = 0.06


def make(name: str) -> dict:
    """Return name, source, columns and the default target of a generated table.

    `flats`: 10,000 flats and their monthly `rent`, which depends on products of the
    columns, with 6 % of noise. `lettings`: the rent that is asked, and whether the flat
    was `let` within a week, within a month, or later.
    """
    table, fair = _flats(name)
    draws = randomness.uniform((4, ROWS), 0, name, "noise")
    bell = draws[0] + draws[1] + draws[2] - 1.5  # of deviation 0.5
    if name == "flats":
        rent = fair * (1 + 2 * _NOISE * bell)
        table["rent"] = np.floor(rent + 0.5)
    else:
        asked = fair * (0.6 + 0.8 * draws[3])
        table["asked"] = np.floor(asked + 0.5)
        # A flat is let soon if it is cheap for what it is; large ones take longer.
        slow = asked / fair + 0.002 * (table["size"] - 60) + 0.03 * bell
        slow += 0.2 * ((table["floor"] > 3) & ~table["lift"])
        table["let"] = np.select(
            [slow < 0.9, slow < 1.15], ["within a week", "within a month"], "later"
        )
    columns = [
        _column(one, values, name) for one, values in {"id": _ids(), **table}.items()
    ]
    return {
        "name": name, "source": "computed by gpuzoo", "target": _TARGETS[name],
        "table": Columns(f"data {name!r}", {one.name: one for one in columns}),
    }  # fmt: skip


def _flats(name: str) -> tuple[dict, np.ndarray]:
    """Return the columns that describe flats, and their fair rents."""
    u = randomness.uniform((11, ROWS), 0, name, "columns")
    size = np.floor(18 + 60 * u[0] + 70 * u[0] * u[0] * u[0] + 0.5)
    rooms = np.clip(np.floor(size / (18 + 14 * u[1])), 1, 7)
    floor = np.floor(u[2] * 7)
    year = np.floor(1890 + 133 * (1 - (1 - u[3]) * u[3]) * u[3])
    distance = np.floor(120 * u[4] * u[4]) / 10 + 0.2
    district = np.floor(u[5] * len(_DISTRICTS)).astype(int)
    condition = np.floor(u[6] * len(_CONDITIONS)).astype(int)
    heating = np.floor(u[7] * len(_HEATING)).astype(int)
    balcony, lift = u[8] < 0.45, u[9] < 0.5
    listed = np.floor(u[10] * 730)
    per_metre, per_kilometre = np.array(list(_DISTRICTS.values())).T
    price = per_metre[district] - per_kilometre[district] * distance
    # Houses from before 1920 are sought after if they are renovated; those of the
    # sixties are not.
    age = np.where(year < 1920, np.where(condition >= 2, 1.12, 0.95), 1.0)
    age = np.where((year >= 1955) & (year < 1980), 0.88, age)
    stairs = np.where(lift, 0.012 * floor, -0.03 * floor * (floor > 2))
    small = 1 + 6 / size  # a kitchen and a bath for few square metres
    fair = size * price * np.array(list(_CONDITIONS.values()))[condition] * age
    fair = fair * (1 + stairs) * small - size * _COSTS[heating]
    fair += np.where(balcony, 20 + 4 * price, 0.0) + 25 * (rooms - size / 25)
    fair += 0.1 * listed  # rents rise
    fair = np.maximum(fair, 150)
    day = datetime.date(2022, 1, 1)
    table = {
        "size": size, "rooms": rooms, "floor": floor, "year": year,
        "distance": distance, "district": np.array(list(_DISTRICTS))[district],
        "condition": np.array(list(_CONDITIONS))[condition],
        "heating": np.array(_HEATING)[heating], "balcony": balcony, "lift": lift,
        "listed": np.array([str(day + datetime.timedelta(int(n))) for n in listed]),
        "country": np.full(ROWS, "Nowhere"),
    }  # fmt: skip
    return table, fair


def _ids() -> np.ndarray:
    return np.arange(1.0, ROWS + 1)


_MISSING = {"year": 0.08, "distance": 0.05, "condition": 0.1, "heating": 0.03}


def _column(column: str, values: np.ndarray, name: str) -> Column:
    """Return a column, with some of its values missing."""
    gone = np.zeros(ROWS, bool)
    if part := _MISSING.get(column):
        gone = randomness.uniform((ROWS,), 0, name, "missing", column) < part
    if values.dtype == np.float64:
        return Column(column, values=np.where(gone, np.nan, values))
    if values.dtype == bool:
        values = np.where(values, "yes", "no")
    texts = np.where(gone, "", values).tolist()
    return Column(column, texts=texts)
