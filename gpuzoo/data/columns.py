"""Read the columns of a table: from CSV and Parquet files, data frames and dicts."""

import dataclasses
import datetime
import io
import json
import numbers as abstract
import pathlib
import unicodedata

import numpy as np

from gpuzoo.data import numbers
from gpuzoo.data.lines import quoted, read_named
from gpuzoo.errors import GpuzooError

SUFFIXES = (".csv", ".parquet")
_NAMES = "table_names"
"""The array of a .npz file of columns that holds their names."""


@dataclasses.dataclass
class Column:
    """A column: numbers, or texts."""

    name: str
    values: np.ndarray | None = None
    """Numbers, float64, NaN where one is missing; None: `texts`."""
    texts: list[str] | None = None
    """As they are written, "" where one is missing."""
    typed: bool = False
    """Whether the source says that texts are no numbers, as a data frame does."""
    exact: dict[int, float] = dataclasses.field(default_factory=dict)
    """Row -> number, of the cells among texts that the source has as numbers."""

    def __len__(self) -> int:
        return len(self.texts if self.values is None else self.values)


@dataclasses.dataclass
class Columns:
    """The columns of a source, all of one length, by name."""

    what: str
    """The source, in messages."""
    columns: dict[str, Column]
    lines: list[int] | None = None
    """The line of each row, if it is a file of lines."""
    mark: str = ""
    """What separates columns."""
    findings: list[str] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def at(self, row: int) -> str:
        """Return where a row is, for messages."""
        return f"line {self.lines[row]}" if self.lines else f"row {row}"

    def error(self, row: int, name: str, why: str) -> GpuzooError:
        return GpuzooError(f"{self.what}: {self.at(row)}, column {name!r}: {why}")


def from_file(path: pathlib.Path, content: bytes | None = None) -> Columns:
    """Read a .csv or .parquet file, or a .npz file that `as_arrays` made.

    Args:
        content: of the file, if it has been read.

    Raises:
        GpuzooError: it cannot be read, or two columns have one name.
    """
    if path.suffix.lower() == ".npz":
        return _from_npz(path)
    if content is not None and content[:4] == b"PAR1":
        return _from_parquet(path, io.BytesIO(content))
    if path.suffix.lower() == ".parquet":
        return _from_parquet(path, path)
    table = read_named(path, content)
    columns = [
        Column(name, texts=list(map(_composed, table.column(place))))
        for place, name in enumerate(_named(table.head))
    ]
    return Columns(
        table.what, _by_name(table.what, columns), table.lines, table.mark,
        table.findings,
    )  # fmt: skip


def from_memory(what: str, data) -> Columns:
    """Return the columns of a data frame of pandas, of what has `to_pandas` (polars,
    Arrow), or of a dict of columns; a dict of single values is one row.

    Raises:
        GpuzooError: columns of different lengths, of one name, or of objects that are
            neither numbers, texts nor dates.
    """
    if not isinstance(data, dict) and hasattr(data, "to_pandas"):
        data = data.to_pandas()
    if getattr(getattr(data, "index", None), "names", [None]) != [None]:
        data = data.reset_index()  # an index with a name is a column
    if isinstance(data, dict):
        indexes = [one.index for one in data.values() if hasattr(one, "iloc")]
        if not all(index.equals(indexes[0]) for index in indexes):
            raise GpuzooError(
                f"{what}: the columns are series of pandas with different indexes; "
                "make a data frame of them, or give them with .to_numpy()"
            )
        given = {k: [v] if _is_single(v) else v for k, v in data.items()}
        columns = [_column(what, clean_name(str(k)), v) for k, v in given.items()]
    else:
        names = [clean_name(str(name)) for name in data.columns]
        columns = [
            _column(what, name, data.iloc[:, place]) for place, name in enumerate(names)
        ]
    lengths = {len(column): column.name for column in columns}
    if len(lengths) > 1:
        (one, first), (other, second), *_ = lengths.items()
        raise GpuzooError(
            f"{what}: column {first!r} has {one} values and {second!r} {other}; all "
            "must have the same number"
        )
    return Columns(what, _by_name(what, columns))


def is_table(data) -> bool:
    """Whether an object of Python is a table with named columns."""
    frame = hasattr(data, "iloc") or hasattr(data, "to_pandas")
    return isinstance(data, dict) or (frame and hasattr(data, "columns"))


def as_arrays(table: Columns) -> dict[str, np.ndarray]:
    """Return columns as arrays for a .npz file, in which nothing is pickled: numbers as
    float64, texts as the bytes of a JSON list."""
    found = {_NAMES: _as_bytes(list(table.columns))}
    for place, column in enumerate(table.columns.values()):
        texts = column.values is None
        found[f"column_{place}"] = _as_bytes(column.texts) if texts else column.values
        if column.exact:
            found[f"exact_{place}"] = np.array([*column.exact.items()], np.float64)
    return found


# --- sources ------------------------------------------------------------------------


def _from_npz(path: pathlib.Path) -> Columns:
    what = "data from Python"
    try:
        with np.load(path, allow_pickle=False) as file:
            if _NAMES not in file.files:
                raise GpuzooError(
                    f"data {path.name!r} are arrays without names, and target is for a "
                    "table: a .csv or .parquet file, or a data frame from Python"
                )
            columns = []
            for place, name in enumerate(json.loads(bytes(file[_NAMES]))):
                array = file[f"column_{place}"]
                if array.dtype == np.float64:
                    columns.append(Column(name, values=array))
                else:
                    texts = json.loads(bytes(array))
                    there = f"exact_{place}" in file.files
                    pairs = file[f"exact_{place}"].tolist() if there else []
                    exact = {int(row): value for row, value in pairs}
                    columns.append(Column(name, texts=texts, typed=True, exact=exact))
    except GpuzooError:
        raise
    except Exception as error:  # of zipfile, NumPy and json
        raise GpuzooError(f"data {path.name!r}: cannot be read: {error}") from None
    return Columns(what, _by_name(what, columns))


def _from_parquet(path: pathlib.Path, source) -> Columns:
    what = f"data {path.name!r}"
    try:
        from pyarrow import parquet
    except ImportError:
        raise GpuzooError(
            f"{what}: .parquet files are read by pyarrow, which is not installed; run: "
            "pip install 'gpuzoo[tables]', or save the table as .csv"
        ) from None
    try:
        table = parquet.ParquetFile(source).read()
    except FileNotFoundError:
        raise GpuzooError(f"{what}: there is no such file; check the path") from None
    except Exception as error:  # of Arrow
        line = " ".join(str(error).split())[:200]
        raise GpuzooError(f"{what}: not a readable Parquet file: {line}") from None
    columns = [
        _column(what, clean_name(name), column.to_pylist())
        for name, column in zip(table.column_names, table.columns, strict=True)
        if not name.startswith("__index_level_")  # of pandas
    ]
    return Columns(what, _by_name(what, columns))


def _column(what: str, name: str, values) -> Column:
    """Return a column of a series of pandas, of an array or of a list."""
    if hasattr(values, "isna"):
        kind = getattr(values.dtype, "kind", "O")
        if kind in "iuf":
            numeric = values.to_numpy(dtype=np.float64, na_value=np.nan)
            _check_exact(what, name, numeric, kind)
            return Column(name, values=_finite(what, name, numeric))
        missing = values.isna().tolist()
        values = [
            None if gone else one
            for one, gone in zip(values.tolist(), missing, strict=True)
        ]
    array = values if isinstance(values, np.ndarray) else None
    if array is not None and (array.ndim != 1 or array.dtype.kind in "iuf"):
        if array.ndim != 1:
            raise GpuzooError(
                f"{what}, column {name!r}: an array of shape {array.shape}; a column "
                "has one value for each row"
            )
        numeric = array.astype(np.float64)
        _check_exact(what, name, numeric, array.dtype.kind)
        return Column(name, values=_finite(what, name, numeric))
    fine = ("datetime64[ns]", "datetime64[ps]", "datetime64[fs]", "datetime64[as]")
    if array is not None and array.dtype in fine:
        array = array.astype("datetime64[us]")  # of these NumPy gives integers
    elif array is not None and array.dtype.kind == "m":
        raise GpuzooError(
            f"{what}, column {name!r}: {array.dtype} are lengths of time; write them "
            "as numbers"
        )
    try:
        cells = list(values if array is None else array.tolist())
    except TypeError:
        raise GpuzooError(
            f"{what}, column {name!r}: {type(values).__name__} is not a list of values"
        ) from None
    there = [one for one in cells if not _is_missing(one)]
    if there and all(map(_is_number, there)):
        numeric = [np.nan if _is_missing(one) else float(one) for one in cells]
        whole = all(isinstance(one, abstract.Integral) for one in there)
        _check_exact(what, name, np.array(numeric), "i" if whole else "f")
        return Column(name, values=_finite(what, name, np.array(numeric, np.float64)))
    texts = [_as_text(what, name, row, one) for row, one in enumerate(cells)]
    exact = {
        row: float(one)
        for row, one in enumerate(cells)
        if not _is_missing(one) and _is_number(one)
    }
    whole = [exact[row] for row in exact if isinstance(cells[row], abstract.Integral)]
    _check_exact(what, name, np.array(whole), "i")
    _finite(what, name, np.array([*exact.values()]))
    return Column(name, texts=texts, typed=True, exact=exact)


def _check_exact(what: str, name: str, values: np.ndarray, kind: str) -> None:
    """Refuse integers of which float64 would make one number of two."""
    large = np.abs(values) >= 2**53
    if kind in "iu" and large.any():
        row = int(np.argmax(large))
        raise GpuzooError(
            f"{what}: row {row}, column {name!r}: {values[row]:.0f} is not below "
            "2**53, up to which integers are exact; write the column as texts, or "
            "leave it out"
        )


def _finite(what: str, name: str, values: np.ndarray) -> np.ndarray:
    wrong = np.isinf(values)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise GpuzooError(
            f"{what}: row {row}, column {name!r}: {values[row]} is not a finite "
            "number; correct it, or leave the value out"
        )
    return values


def _as_text(what: str, name: str, row: int, value) -> str:
    if _is_missing(value):
        return ""
    if isinstance(value, str | bool | np.bool_):
        return _composed(numbers.clean(str(value)))
    if isinstance(value, datetime.datetime | datetime.date | np.datetime64):
        return str(value)
    if isinstance(value, datetime.time):
        return value.isoformat("seconds")
    if _is_number(value):
        return number_text(float(value))
    raise GpuzooError(
        f"{what}: row {row}, column {name!r}: a {type(value).__name__}; expected "
        "numbers, texts or dates; leave the column out, or write its values as texts"
    )


def number_text(value: float) -> str:
    """Return a number as the name of a category or of a class: 3, not 3.0."""
    whole = value == np.floor(value) and abs(value) < 1e15
    return str(int(value)) if whole else repr(float(value))


def _is_missing(value) -> bool:
    if value is None or type(value).__name__ in ("NaTType", "NAType"):  # of pandas
        return True
    return isinstance(value, float | np.floating | np.datetime64) and value != value


def _is_number(value) -> bool:
    return isinstance(value, abstract.Number) and not isinstance(
        value, bool | np.bool_ | complex
    ) or type(value).__name__ == "Decimal"  # fmt: skip


def _is_single(value) -> bool:
    try:
        return value is None or isinstance(value, str) or np.ndim(value) == 0
    except ValueError:  # a list of lists of different lengths
        return False


# --- names --------------------------------------------------------------------------


def _named(head: list[str]) -> list[str]:
    """Return the names of columns: of one without a name its place."""
    return [_composed(name) or f"column {n}" for n, name in enumerate(head, start=1)]


def _composed(text: str) -> str:
    """Return a text in the composed form of Unicode, so that equal ones are equal."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def clean_name(name: str) -> str:
    """Return the name of a column as a file would have it."""
    return _composed(numbers.clean(name))


def _by_name(what: str, columns: list[Column]) -> dict[str, Column]:
    found: dict[str, Column] = {}
    for column in columns:
        if column.name in found:
            raise GpuzooError(
                f"{what}: two columns are named {quoted(column.name)}; rename one"
            )
        found[column.name] = column
    if not found:
        raise GpuzooError(f"{what}: has no columns")
    return found


def _as_bytes(value) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)
