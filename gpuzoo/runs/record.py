"""The record of a run, run.json: read, validate, seal; folder.py writes it."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.resources
import itertools
import json
import pathlib
import secrets

from gpuzoo.catalogue.architecture import Architecture
from gpuzoo.catalogue.model_info import ARCHITECTURE
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.errors import GpuzooError, nearest
from gpuzoo.files import LARGEST_JSON, expand, parse_json, read_inside
from gpuzoo.home import unredact, without_home
from gpuzoo.runtime.environment import without_values
from gpuzoo.runtime.options import Options

SCHEMA_VERSION = 2
FIT = "fit.json"
"""The record of an ordinary Keras fit (fit.py)."""
RESTORE = "restore it from a copy, or train again with another --out"


def private(value):
    """Remove the home folder and values of environment variables from the texts of a
    record or a part of it."""
    if isinstance(value, dict):
        return {key: private(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [private(one) for one in value]
    if isinstance(value, str):
        return without_home(without_values(value))
    return value


def seal(record: dict) -> str:
    """Return the sha256 of all other fields of a record, which detects edits."""
    rest = {key: value for key, value in record.items() if key != "seal"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def run_id(record: dict, findings: list[str], random: str = "") -> str:
    """Return an id of a run: 16 random hexadecimal digits, then 16 of a digest of what
    the run was started with and nothing else shows.

    Args:
        record: in the form that run.json holds.
        findings: on the compile() of a model object.
        random: of an id to be checked; "": a new id.
    """
    random = random or secrets.token_hex(8)
    compiled = record.get("compiled") or {}
    started = [
        random, record["recipe"]["name"], findings,
        *(record[name] for name in ("started", "command", "options", "fast_dev_run")),
        *(compiled.get(name) for name in ("optimizer", "loss")),
        *(record[name] for name in ("init", "parent") if name in record),
    ]  # fmt: skip
    text = json.dumps(started, sort_keys=True)
    return random + hashlib.sha256(text.encode()).hexdigest()[: len(random)]


def architecture_of(record: dict, path: pathlib.Path, read) -> Architecture | None:
    """Return the architecture of a model object's run, None if the model has a name.

    Args:
        read: name of a file in the run folder `path` -> content.

    Raises:
        GpuzooError: the file of the architecture is missing or damaged.
    """
    if record["recipe"]["model"] != ARCHITECTURE:
        return None
    file = path / ARCHITECTURE
    try:
        text = read(ARCHITECTURE)
    except OSError as error:
        raise GpuzooError(
            f"{file} cannot be read: {error.strerror or error}; without it the model "
            f"of the run cannot be built: {RESTORE}"
        ) from None
    if hashlib.sha256(text).hexdigest() != record.get("architecture_sha256"):
        raise GpuzooError(f"{file} has been changed since the run began; {RESTORE}")
    return Architecture(text.decode())


def read_run(path: str | pathlib.Path, *, sealed: bool = True) -> dict:
    """Return the validated record of a run folder; `sealed`: refuse an edited one."""
    path = expand(path)
    return checked(
        path, lambda name: read_inside(path, name, LARGEST_JSON), sealed=sealed
    )


def checked(path: pathlib.Path, read, *, sealed: bool = True) -> dict:
    """Return the validated record of a folder; `read`: name of a file -> content."""
    file = path / "run.json"
    try:
        record = parse_json(read("run.json").decode())
        _check_version(record, file)
        check_record(record)
        found = seal(record)
    except (FileNotFoundError, NotADirectoryError):
        raise no_run(path) from None
    except OSError as error:
        raise GpuzooError(f"{file} cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise GpuzooError(
            f"{file} is damaged: it is nested too deeply; {RESTORE}"
        ) from None
    except GpuzooError:
        raise
    except ValueError as error:
        raise GpuzooError(f"{file} is damaged: {error}; {RESTORE}") from None
    if sealed and record["seal"] != found:
        raise GpuzooError(f"{file} has been changed since gpuzoo wrote it; {RESTORE}")
    return record


def no_run(path: pathlib.Path, what: str = "not a run folder") -> GpuzooError:
    """Return the error about a path without a run, which names the runs near it."""
    if (path / FIT).is_file():
        return GpuzooError(
            f"{path} is {what}: it holds the trail of an ordinary Keras fit, whose "
            "data and code gpuzoo does not have, so it cannot be re-run or loaded; "
            "gpuzoo diff compares it with another trail"
        )
    if path.is_file():
        why, place = "it is a file", path.parent
        if (place / "run.json").is_file():
            return GpuzooError(f"{path} is {what}: {why}; name {place}")
    elif path.is_dir():
        why, place = "it has no run.json", path
    else:
        why, place = "there is no such folder", path
        while not place.is_dir():
            place = place.parent
    runs = _runs_in(place) or _runs_in(path.parent)
    near = nearest(str(path), runs) if runs else "name the folder of a training (--out)"
    return GpuzooError(f"{path} is {what}: {why}; {near}")


def _runs_in(place: pathlib.Path) -> list[str]:
    """Return the run folders in a folder and one level deeper, of the first thousands
    of entries: a home folder has many."""
    found: list[str] = []
    for pattern in ("*/run.json", "*/*/run.json"):
        with contextlib.suppress(OSError):
            files = itertools.islice(place.glob(pattern), 1000)
            found += [str(file.parent) for file in files]
    return sorted(found)


def _check_version(record, file: pathlib.Path) -> None:
    """Raise GpuzooError for a record that another version of gpuzoo has written."""
    version = record.get("schema") if isinstance(record, dict) else None
    if type(version) is int and version != SCHEMA_VERSION:
        raise GpuzooError(
            f"{file} has record format {version}, and this version of gpuzoo reads "
            f"format {SCHEMA_VERSION}; use the version that wrote it"
        )


def recipe_of(record: dict) -> Recipe:
    """Return the recipe of a run with the data that were used, fallback or not."""
    recipe = _made(Recipe, record, "recipe")
    if recipe.fallback_data and record["data"]:
        if record["data"]["name"] == recipe.fallback_data:
            return dataclasses.replace(
                recipe, data=recipe.fallback_data, fallback_data=""
            )
        return dataclasses.replace(recipe, fallback_data="")
    return recipe


def options_of(record: dict) -> Options:
    """Return the options of a run."""
    return _made(Options, record, "options")


def _made(kind: type, record: dict, part: str):
    try:
        return kind(**change_texts(unredact, record[part]))
    except TypeError as error:  # a missing or an unknown field
        raise GpuzooError(f"run.json is not valid: {part}: {error}") from None


def check_record(record: dict) -> None:
    """Raise GpuzooError if a record does not match the schema."""
    import jsonschema

    problem = jsonschema.exceptions.best_match(_validator().iter_errors(record))
    if problem:
        where = "/".join(map(str, problem.absolute_path)) or "the record"
        raise GpuzooError(f"run.json is not valid: {where}: {problem.message}")


@functools.cache
def _validator():
    import jsonschema

    text = (
        importlib.resources.files(__package__).joinpath("run.schema.json").read_text()
    )
    return jsonschema.Draft202012Validator(json.loads(text))


def change_texts(change, part: dict) -> dict:
    """Apply `change` to all strings of a part of a record, those in lists included."""

    def changed(value):
        if isinstance(value, list):
            return [changed(one) for one in value]
        return change(value) if isinstance(value, str) else value

    return {name: changed(value) for name, value in part.items()}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
