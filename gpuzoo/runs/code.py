"""Digests of the code of a run, and of the files that the user's code has read.

The digest of a module is that of its syntax tree, without comments, docstrings and line
numbers. Recorded are the modules of gpuzoo that the training and its model import, and
every user module (outside the standard library and installed packages) that was
imported until the first step was traced or that one of these names in an import.
"""

import ast
import functools
import hashlib
import importlib.util
import os
import pathlib
import stat
import sys
import types
from typing import Any

from gpuzoo.catalogue import imports, user_code, user_reads
from gpuzoo.catalogue.user_files import file_of
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand
from gpuzoo.home import redact, unredact
from gpuzoo.runs.teacher import model_of_teacher

MISSING = "missing"
TEACHER = "teacher/"
"""Prefix of the modules and inputs of the teacher's model."""
VARIABLE = "$"
"""Prefix of an input that is an environment variable."""
# Modules that only record, report or compare do not change results.
_NO_CODE = (
    "gpuzoo.bench", "gpuzoo.recipes", "gpuzoo.report", "gpuzoo.repro", "gpuzoo.runs",
    "gpuzoo.engine.backends.jax",
)  # fmt: skip


def watched(
    make, model: str, roots=(), note=lambda line: None
) -> tuple[Any, dict, dict]:
    """Call `make()`, which builds a model of that name; return also code and inputs.

    Args:
        roots: modules of gpuzoo to record with all that they import. Those of the
            catalogue that models are built from are always recorded.
        note: called with a line for each dependency of the user's code that cannot be
            recorded.
    """
    file = file_of(model)
    with user_code.watch(file) as seen:
        made = make()
    code, imported = _users_part(seen, file)
    built = {name for name in seen.built if name.startswith("gpuzoo.")}
    code |= _closure_of_gpuzoo({*roots, *built, *imported})
    return made, code, _inputs(seen, file, note)


def traced(
    make, model: str, code: dict, inputs: dict, note=lambda line: None
) -> tuple[Any, dict, dict]:
    """Call `make()`, which traces the step of a model; return also code and inputs with
    what the user's code has imported and read only now."""
    file = file_of(model)
    if file is None:
        return make(), code, inputs
    with user_code.watch(file, goes_on=True) as seen:
        made = make()
    now, _ = _users_part(seen, file)
    found = {**_inputs(seen, file, note), **inputs}
    return made, dict(sorted({**now, **code}.items())), dict(sorted(found.items()))


def models_files(recipe: dict) -> list[str]:
    """Return path.py:function of the user code that a run executes: its model's and its
    teacher's."""
    models = [recipe["model"]]
    if recipe["teacher"] and recipe["distill_alpha"]:
        models.append(model_of_teacher(unredact(recipe["teacher"])))
    return [model for model in models if file_of(model)]


def found_again(record: dict, code: dict, inputs: dict) -> tuple[dict, dict]:
    """Return code and inputs of a run as they are now: what was recorded, and what else
    the user's code, just built, imports or reads; all of it if the run was killed
    before it had recorded any."""
    code, inputs = dict(code), dict(inputs)
    if record["code"] is None:
        return code, inputs
    for name in record["code"]:
        if name not in code:
            code[name] = digest_of_module(name.removeprefix(TEACHER))
    own = {name for name in code if not name.startswith("gpuzoo.")}
    code = {name: code[name] for name in sorted(own | {*record["code"]})}
    for name in record["inputs"]:
        if name not in inputs:
            inputs[name] = digest_of_input(name, record)
    return code, inputs


def changed_of_model(record: dict, code: dict, inputs: dict) -> list[str]:
    """Return the modules and inputs of a run's model that have changed or are missing:
    with the weights they define its outputs, however it was trained.

    Args:
        code, inputs: of the model, built again.
    """
    before = {
        name: digest
        for name, digest in record["code"].items()
        if name.startswith("gpuzoo.models.") or not name.startswith("gpuzoo.")
    } | record["inputs"]
    before = {n: d for n, d in before.items() if not n.startswith(TEACHER)}
    now = {**code, **inputs}
    return sorted(
        name
        for name in before
        # The models of gpuzoo that only the training or its metrics use do not count.
        if (name in now or not name.startswith("gpuzoo."))
        and now.get(name) != before[name]
    )


def unreadable_inputs(record: dict) -> dict[str, str]:
    """Return recorded inputs that cannot be read, and why: a model that reads them
    cannot be built."""
    now = {name: digest_of_input(name, record) for name in record["inputs"]}
    return {name: why for name, why in now.items() if not _is_digest(why)}


def digest_of_input(name: str, record: dict) -> str:
    """Return the sha256 of a recorded input, or why there is none."""
    if (variable := name.removeprefix(TEACHER)).startswith(VARIABLE):
        variable = variable.removeprefix(VARIABLE)
        return _sha256_of(user_reads.value_of_variable(variable))
    model = record["recipe"]["model"]
    if name.startswith(TEACHER):
        model = model_of_teacher(unredact(record["recipe"]["teacher"]))
    path, file = expand(name.removeprefix(TEACHER)), file_of(model)
    folders = [file.resolve().parent, pathlib.Path.cwd()] if file else [pathlib.Path()]
    for folder in folders:
        try:
            return _sha256(folder / path)
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
    return MISSING


def code_sha256(model: str = "") -> str:
    """Return one digest of gpuzoo, its models and recipes, and of the user file that
    defines a model, for the record of a benchmark."""
    digest = hashlib.sha256()
    for package in ("gpuzoo", "gpuzoo.models", "gpuzoo.recipes"):
        (place,) = importlib.util.find_spec(package).submodule_search_locations
        for path in sorted(pathlib.Path(place).rglob("*.py")):
            name = f"{package}/{path.relative_to(place)}"
            digest.update(
                f"{name} {syntax_sha256(path.read_bytes(), ours=True)}\n".encode()
            )
    if model and (file := file_of(model)):
        digest.update(syntax_sha256(imports.source_of(str(file))).encode())
    return digest.hexdigest()


def syntax_sha256(source: bytes, *, ours: bool = False) -> str:
    """Return the digest of the syntax tree of a source, which comments, docstrings and
    line numbers do not change; of its bytes if it cannot be parsed.

    Args:
        ours: the source is gpuzoo's, which computes nothing from docstrings. In a
            user's file those that the file itself reads are kept.
    """
    try:
        tree = ast.parse(source)
        _strip_docstrings(tree, set() if ours else _docstrings_read(tree))
        source = ast.dump(tree).encode("utf-8", "surrogatepass")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return hashlib.sha256(source).hexdigest()


_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _strip_docstrings(tree: ast.AST, read: set[str]) -> None:
    """Remove strings that are statements, as below a field: they do nothing. Docstrings
    stay if they are read: those of the names `read`, or all."""
    for node in ast.walk(tree):
        keeps = isinstance(node, _DOCUMENTED) and {_ALL, _name(node)} & read
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):  # the body of a lambda is not a list
                first = block[:1] if keeps and name == "body" else []
                rest = [one for one in block[len(first) :] if not _is_text(one)]
                setattr(node, name, first + rest)


def _is_text(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


_ALL, _MODULE = "*", ""


def _name(node: ast.AST) -> str:
    return getattr(node, "name", _MODULE)


def _docstrings_read(tree: ast.AST) -> set[str]:
    """Return the classes and functions whose docstrings a source may read, "" for the
    module, "*" for any."""
    nodes = list(ast.walk(tree))
    defined = {_name(node) for node in nodes if isinstance(node, _DOCUMENTED)}
    read = set()
    for node in nodes:
        if isinstance(node, ast.Name) and node.id == "__doc__":
            # In the body of a class it is the docstring of the class.
            read |= {_MODULE, *(_name(n) for n in nodes if isinstance(n, ast.ClassDef))}
        elif isinstance(node, ast.Attribute) and node.attr == "__doc__":
            if isinstance(node.ctx, ast.Load):
                of = node.value.id if isinstance(node.value, ast.Name) else _ALL
                read.add(of if of in defined else _ALL)
        else:
            words = (
                getattr(node, name, None) for name in ("id", "attr", "name", "value")
            )
            words = [word for word in words if isinstance(word, str)]
            if any("getdoc" in word for word in words):
                read.add(_ALL)
            if isinstance(node, ast.Constant) and "__doc__" in words:  # for getattr()
                read.add(_ALL)
    return read


# ---------------------------------------------------------------------- user's modules


def _users_part(seen, file) -> tuple[dict[str, str], set[str]]:
    """Return digests of the user modules that were seen while a model was built and of
    those that they name, imported or not yet; and the gpuzoo modules they import."""
    built = {n: sys.modules[n] for n in seen.built if n in sys.modules}
    built = {n: m for n, m in built.items() if user_code.is_users(n, m)}
    known, ours, tried = {**seen.imported, **built}, set(), set()
    waiting = [*known.values(), *(sys.modules[name] for name in seen.executed)]
    while waiting:
        for name in _named_in(waiting.pop()) - tried:
            tried.add(name)
            if name.startswith("gpuzoo."):
                ours.add(name)
            elif name not in known:
                module = _module_that_runs(name, seen.hidden)
                if module is not None and user_code.is_users(name, module):
                    known[name] = module
                    waiting.append(module)
    digests = {file.name: syntax_sha256(imports.source_of(str(file)))} if file else {}
    for name, module in known.items():
        for place in user_code.places_of(module):
            if not os.path.isdir(place):  # a package without a file of its own
                digests[name] = syntax_sha256(imports.source_of(place))
                if seen.hidden.get(name) is not module:
                    _check_as_imported(name, module, digests[name])
    return digests, ours


def _module_that_runs(name: str, hidden) -> types.ModuleType | None:
    """Return what an import of `name` gives while the run's code runs; None if nothing.

    A hidden module is one that the process imported before, perhaps from another
    folder: the run's code does not see it, so the file on the path counts."""
    module = sys.modules.get(name)
    if module is None or hidden.get(name) is module:
        module = user_code.not_imported(name) or module
    return module


_imported: dict[str, tuple[types.ModuleType, str]] = {}
"""User module -> itself and its digest when it was first seen."""


def _check_as_imported(name: str, module: types.ModuleType, digest: str) -> None:
    """Raise GpuzooError if a module has been edited since it was imported: the file is
    not what runs."""
    if sys.modules.get(name) is not module:
        return  # it will be imported from the disk
    known, before = _imported.setdefault(name, (module, digest))
    if known is not module:
        _imported[name] = (module, digest)
    elif before != digest:
        raise GpuzooError(
            f"module {name} has been edited since this process imported it, and is "
            "not reloaded; restart Python"
        )


def _named_in(module) -> set[str]:
    """Return the modules that a module's import statements and values name."""
    names = set()
    for place in user_code.places_of(module):
        if place.endswith(".py"):
            source = imports.source_of(place)
            names |= imports.named(source, vars(module).get("__package__") or "")
    for value in list(vars(module).values()):
        if isinstance(value, types.ModuleType):
            name = value.__name__
        else:
            kinds = type | types.FunctionType
            name = (value if isinstance(value, kinds) else type(value)).__module__
        # A model's file may hold functions of gpuzoo for other purposes.
        if isinstance(name, str) and not name.startswith("gpuzoo."):
            names.add(name)
    return names


def digest_of_module(name: str) -> str:
    """Return the digest of a module that was recorded and is not imported now."""
    if name.endswith(".py"):
        return MISSING  # the file of a model, which is always executed
    spec = imports.locate(name)
    if spec is None or not spec.has_location:
        return MISSING
    return syntax_sha256(imports.source_of(spec.origin))


# -------------------------------------------------------------------------------- files


def _inputs(seen, file: pathlib.Path | None, note) -> dict[str, str]:
    """Return files and variables that the user's code has read, with digests."""
    if file is None:
        return {}
    for does, path in dict.fromkeys(seen.reads.others):
        what = f"{does} {_name_of_input(path, file)}" if path else does
        note(f"Note: model file {file.name} {what}; that is not recorded.")
    files = {
        _name_of_input(path, file): _digest_of_opened(path, file)
        for path in seen.reads.opened
    }
    variables = seen.reads.variables.items()
    return files | {VARIABLE + name: _sha256_of(value) for name, value in variables}


def _sha256_of(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _name_of_input(path: str, file: pathlib.Path) -> str:
    """Return a path relative to the model's file or the current folder, if inside, and
    without the home folder."""
    for folder in (file.parent.resolve(), pathlib.Path.cwd()):
        for one in (pathlib.Path(path), pathlib.Path(path).resolve()):
            if one.is_relative_to(folder):
                return redact(one.relative_to(folder).as_posix())
    return redact(path)


def _digest_of_opened(path: str, file: pathlib.Path) -> str:
    try:
        return _sha256(pathlib.Path(path))
    except OSError as error:
        raise GpuzooError(
            f"model file {file}: reads {path}, which cannot be read again: "
            f"{error.strerror or error}; let it read a regular file"
        ) from None


def _sha256(path: pathlib.Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"not a regular file: {path.name}")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_digest(text: str) -> bool:
    return len(text) == 64 and " " not in text


# ------------------------------------------------------------------------ gpuzoo's own


def _closure_of_gpuzoo(roots) -> dict[str, str]:
    """Return digests of the given gpuzoo modules and all that they import.

    From their import statements: what else the process has imported must not matter.
    """
    found, waiting = {}, sorted(roots)
    while waiting:
        name = waiting.pop()
        if name in found or (name.startswith(_NO_CODE) and name not in roots):
            continue
        if known := _module_of_gpuzoo(name):
            found[name], imported = known
            waiting += imported
    return found


@functools.cache
def _module_of_gpuzoo(name: str) -> tuple[str, list[str]] | None:
    """Return the digest of a module and its imports of gpuzoo; None if not a module.

    Cached: a process keeps what it has imported.
    """
    parts = name.split(".")[1:]
    top = "gpuzoo.models" if parts[:1] == ["models"] else "gpuzoo"
    (folder,) = importlib.util.find_spec(top).submodule_search_locations
    path = pathlib.Path(folder, *parts[top.count(".") :])
    file = path.with_suffix(".py")
    if not parts or not (file.is_file() or (path / "__init__.py").is_file()):
        return None  # a function or a class of a module
    file, package = (
        (file, name.rpartition(".")[0])
        if file.is_file()
        else (path / "__init__.py", name)
    )
    source = file.read_bytes()
    names = sorted(n for n in imports.named(source, package) if n.startswith("gpuzoo."))
    return syntax_sha256(source, ours=True), names
