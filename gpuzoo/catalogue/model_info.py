"""Information on models, read from their source without importing it."""

import ast
import dataclasses
import pathlib
from collections.abc import Iterable

from gpuzoo.errors import GpuzooError

TASKS = tuple(
    sorted(
        path.stem
        for path in (pathlib.Path(__file__).parent.parent / "tasks").glob("*.py")
        if path.stem != "base" and b"\nclass Task(" in path.read_bytes()
    )
)
"""Names of the tasks: files in gpuzoo/tasks/ with a class Task. They are parsed, as
importing them would import Keras."""

ARCHITECTURE = "architecture.json"
"""In the run folder of a model object: its layers; and `model` in its recipe."""


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What is known about a model without building it."""

    name: str
    task: str
    reference: str
    """The paper or page that the architecture comes from."""
    parameters: int | None
    """Number of weights with the default options; checked against the built model."""
    summary: str
    """First line of the docstring."""
    doc: str
    options: dict[str, str]
    """Option name -> its annotation and default, as written."""
    module: str


def read_models(path: pathlib.Path, module: str) -> Iterable[ModelInfo]:
    """Yield the registered functions of a source file, without importing it."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if not (isinstance(call, ast.Call) and _called_name(call) == "register"):
                continue
            try:
                declared = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
            except ValueError:
                raise GpuzooError(
                    f"{path}: register() of {node.name} needs literal arguments; it is "
                    f"parsed, not executed: {ast.unparse(call)}"
                ) from None
            if missing := {"task", "reference"} - declared.keys():
                raise GpuzooError(
                    f"{path}: register() of {node.name} needs {sorted(missing)[0]}="
                )
            doc = ast.get_docstring(node) or ""
            arguments = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            options = {arg.arg: _declared(arg, value) for arg, value in arguments}
            yield ModelInfo(
                node.name, declared["task"], declared["reference"],
                declared.get("parameters"), doc.partition("\n")[0], doc, options,
                module,
            )  # fmt: skip


def _called_name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _declared(argument: ast.arg, default: ast.expr | None) -> str:
    """Return annotation and default of an argument as written: `int = 3`."""
    kind = ast.unparse(argument.annotation) if argument.annotation else "any"
    return f"{kind} = {ast.unparse(default)}" if default else kind
