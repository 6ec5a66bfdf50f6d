"""Worker process of `gpuzoo export`: load a run and convert it, or predict with it."""

import contextlib
import pathlib
import tempfile

import numpy as np

from gpuzoo import randomness, workers
from gpuzoo.deploy import trained as trained_runs
from gpuzoo.deploy.runtimes import FORMATS
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime import bootstrap

_OPTIONS = {
    "tensorflow": {"backend": "tensorflow", "xla": "off"},
    "jax": {"backend": "jax", "xla": "auto"},
}


def work(request: dict):
    """Yield what was done.

    Args:
        request: `run`, a folder; `backend` to convert with, or "" to predict as the run
            did; `formats`, to make in the folder `staging`; `arrays`, a folder for
            those of the test set; `predictions`, the name of their file; `generate`,
            `int8`, `examples` for its calibration; `allow_drift`, `trust_code`.
    """
    notes: list[str] = []
    options = _OPTIONS.get(request["backend"], {})
    if options:
        options = {**options, "device": "cpu", "precision": "float32"}
    trained = trained_runs.load(
        request["run"], allow_drift=request["allow_drift"],
        trust_code=request["trust_code"], note=notes.append, **options,
    )  # fmt: skip
    from gpuzoo.deploy.formats import function
    from gpuzoo.training import build

    data = trained.record["data"]
    dataset = build.load_data_of(trained.recipe, notes.append, data["fingerprint"])
    if dataset.fingerprint != data["fingerprint"]:
        raise GpuzooError(
            f"data {data['name']} have changed since the run; the export is compared "
            "on its test set: restore them"
        )
    generate = request["generate"] or not trained.takes
    inputs, targets = function.test_arrays(trained, dataset, generate)
    exported = function.describe(trained, inputs, generate)
    folder = pathlib.Path(request["arrays"])
    if name := request["predictions"]:
        if exported.prepared:  # by NumPy, not inside the function that is exported
            rows = {"table": dataset.test["table"]}
            predicted = trained._in_batches(exported.prepared, rows, None)
        else:
            predicted = trained._in_batches(exported.call, inputs, None)
        np.savez(folder / f"{name}.npz", **predicted)
    if request["backend"] == "":
        yield {"notes": notes}
        return
    if name:
        np.savez(folder / "inputs.npz", **inputs)
        np.savez(folder / "targets.npz", **targets)
    made = _Maker(trained, exported, pathlib.Path(request["staging"]))
    if request["int8"]:
        made.examples = _calibration(trained, dataset, request["examples"])
    failures = {}
    for name in request["formats"]:
        try:
            getattr(made, name)()
        except Exception as error:  # of a library or of the user's model, too
            failures[name] = workers.one_line(error)
    yield {
        "notes": notes, "failures": failures, "batch": trained.batch,
        "inputs": exported.inputs, "outputs": exported.outputs,
        "formats": made.facts,
    }  # fmt: skip


def _calibration(trained, dataset, count: int) -> dict:
    """Return training examples, chosen by the seed of the run."""
    from gpuzoo.deploy.formats import function

    train = dataset.train
    count = min(count, dataset.count("train"), dataset.count("test"))
    seed = trained.recipe.seed
    rows = randomness.permutation(dataset.count("train"), seed, "calibration")[:count]
    chosen = {name: array[rows] for name, array in train.items()}
    inputs = function.examples(trained, chosen)
    return {name: inputs[name] for name in (trained.takes,)}


class _Maker:
    """Makes each format of an exported function, in a folder."""

    def __init__(self, trained, exported, folder: pathlib.Path):
        self.trained, self.exported, self.folder = trained, exported, folder
        self.examples: dict | None = None
        self.facts: dict[str, dict] = {}
        self._traced: dict[bool, object] = {}
        from gpuzoo.deploy.formats import function

        self.loops = function.has_loops(trained)

    def saved_model(self) -> None:
        from gpuzoo.deploy.formats import tensorflow

        tensorflow.save(self._trace(False), self._path("saved_model"))
        self.facts["saved_model"] = {"signature": tensorflow.SIGNATURE}

    def onnx(self) -> None:
        from gpuzoo.deploy.formats import onnx

        path, opset = self._path("onnx"), onnx.OPSET
        path.write_bytes(self._onnx(False))
        if self.examples is not None:
            path.write_bytes(onnx.quantized(path, self.examples))
        self.facts["onnx"] = {"opset": opset}

    def openvino(self) -> None:
        from gpuzoo.deploy.formats import openvino

        with _scratch() as folder:
            (folder / "model.onnx").write_bytes(self._onnx(True))
            openvino.convert(folder / "model.onnx", self._path("openvino"))
        self.facts["openvino"] = {}

    def litert(self) -> None:
        from gpuzoo.deploy.formats import tensorflow

        examples = self.examples
        if examples is not None and self.loops:
            examples = {}  # LiteRT does not run unrolled layers in int8 throughout
        with _scratch() as folder:
            tensorflow.save(self._trace(True), folder / "saved_model")
            content = tensorflow.to_litert(folder / "saved_model", examples)
        self._path("litert").write_bytes(content)
        self.facts["litert"] = {"signature": tensorflow.SIGNATURE}

    def stablehlo(self) -> None:
        from gpuzoo.deploy.formats import jax

        self._path("stablehlo").write_bytes(jax.to_stablehlo(self.exported))
        self.facts["stablehlo"] = {"platforms": list(jax.PLATFORMS)}

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / FORMATS[name][0]

    def _trace(self, unroll: bool):
        from gpuzoo.deploy.formats import tensorflow

        unroll = unroll and self.loops
        if unroll not in self._traced:
            self._traced[unroll] = tensorflow.trace(
                self.trained, self.exported, unroll=unroll
            )
        return self._traced[unroll]

    def _onnx(self, unroll: bool) -> bytes:
        from gpuzoo.deploy.formats import tensorflow

        return tensorflow.to_onnx(self._trace(unroll).serve).SerializeToString()


@contextlib.contextmanager
def _scratch():
    with tempfile.TemporaryDirectory() as name:
        yield pathlib.Path(name)


if __name__ == "__main__":
    bootstrap.ours = True  # no user's code has a say in what is imported
    workers.serve(work)
