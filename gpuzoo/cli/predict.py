"""`gpuzoo predict`: a trained run on the user's files, or images that it generates."""

import contextlib
import dataclasses
import io
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import tyro

from gpuzoo.cli.parsing import Common, Flag, Output, Word, chosen, printable
from gpuzoo.errors import ExitCode, GpuzooError

_ROWS = 1_000  # of a table that is printed at once
_LISTED = 100  # unreadable files in the JSON line
_NO_FOLDERS = (".npy", ".npz", ".csv", ".json", ".jsonl")
# What models without plots say of --out FOLDER.
_WRITES = {
    "classes": "a classifier writes rows; expected FILE.jsonl",
    "number": "a model of a table writes rows; expected FILE.jsonl",
    "vectors": "a model of identities writes vectors; expected FILE.npz or FILE.jsonl",
}


@dataclasses.dataclass(frozen=True)
class Predict:
    """Predict files with a trained run, or generate images: gpuzoo predict RUN FILE ...

    Images and audio are read as in the training, and resized and converted to the input
    of the model. A forecaster continues the last values of a .csv file. Models of
    tables predict each row of a .csv or .parquet file. Detectors, segmentation,
    forecasters, autoencoders and video models write plots with --out FOLDER. Of models
    of identities it shows how similar the files are; --out FILE.npz writes the vectors.

    Exit codes: 0 done, 1 some files cannot be read (the others are predicted), 2 none
    can be read.
    """

    run: Word
    """The run folder."""
    files: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders, or - for standard input: images, audio, .csv, .parquet, .npy
    (examples) or .npz (x_test, x or its only array)."""
    top: int = 3
    """Classes per example, the most probable first."""
    score: float = 0.3
    """Detections below this score are left out."""
    invert: Flag = False
    """Invert images, e.g. a photo of a dark digit on white paper."""
    out: str | None = None
    """FILE.jsonl: rows as JSON lines; a new folder: plots, forecasts as .csv; of models
    of identities FILE.npz: vectors; with --samples a .png sheet or a .npy array."""
    json_lines: Flag = False
    """Print rows as JSON lines, not as a table."""
    samples: int = 0
    """Number of images to generate (generative models only)."""
    seed: int | None = None
    """Seed of the images; default: the seed of the run."""
    label: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Class of the images; default: all classes in turn."""
    device: Literal["run", "auto", "cpu", "gpu"] = "run"
    """Device; run: the option of the run."""
    allow_drift: Flag = False
    """Predict although the code of the model has changed."""
    trust_code: Flag = False
    """Execute the run's own code, if its model is defined in a user's file."""
    output: Common = Output()

    def __call__(self) -> int:
        self._check()
        trained = self._load()
        if self.samples:
            return self._generate(trained)
        return _Session(self, trained).predict()

    def _check(self) -> None:
        """Refuse options that contradict each other, before anything is loaded."""
        from gpuzoo.deploy.predict import MOST_ON_SHEET

        if self.files and self.samples:
            raise GpuzooError("files are for predictions, --samples for a generator")
        if not self.files and not self.samples:
            raise GpuzooError(
                f"no files: gpuzoo predict {self.run} FILE ..., or for a generator: "
                f"gpuzoo predict {self.run} --samples 64 --out sheet.png"
            )
        if self.samples and not (self.out or "").endswith((".png", ".npy")):
            raise GpuzooError(
                "--samples needs --out NAME.png (a sheet) or NAME.npy"
                + f", not {self.out}" * bool(self.out)
            )
        if self.samples > MOST_ON_SHEET and self.out.endswith(".png"):
            raise GpuzooError(
                f"--samples {self.samples}: a sheet holds up to {MOST_ON_SHEET}; use "
                "--out NAME.npy"
            )
        if self.samples:
            self.refuse("files", "top", "score", "invert", "json_lines")
        elif (self.seed, self.label) != (None, None):
            raise GpuzooError("--seed and --class are for --samples")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise GpuzooError(f"--seed must be in 0..{2**63 - 1}: {self.seed}")
        if self.top < 1:
            raise GpuzooError(f"--top must be at least 1: {self.top}")
        if not 0 <= self.score <= 1:
            raise GpuzooError(f"--score must be in 0..1: {self.score:g}")
        if self.out is not None:
            self._check_out()

    def _check_out(self) -> None:
        from gpuzoo.data.folders import IMAGE_SUFFIXES
        from gpuzoo.deploy.predict import check_new

        is_file = bool(self.samples) or self.out.endswith((".jsonl", ".npz"))
        suffix = pathlib.PurePath(self.out).suffix.lower()
        if not is_file and suffix in (*IMAGE_SUFFIXES, *_NO_FOLDERS):
            raise GpuzooError(
                f"--out {self.out}: for files, expected FILE.jsonl, or a new folder "
                f"without the suffix {suffix}"
            )
        if self.json_lines and is_file:
            raise GpuzooError(
                f"--json-lines prints the rows that --out {self.out} writes; leave one "
                "of the two out"
            )
        check_new(self.out, folder=not is_file)

    def refuse(self, kind: str, *names: str) -> None:
        """Raise if an option has another value than its default, but is only for files
        of a kind."""
        for name in names:
            if getattr(self, name) != getattr(Predict, name):
                option = name.replace("_", "-")
                raise GpuzooError(f"--{option} is for {kind}; leave it out")

    def _load(self):
        from gpuzoo.deploy.trained import load

        return load(
            self.run, allow_drift=self.allow_drift, trust_code=self.trust_code,
            note=self.output.note, **chosen(device=self.device),
        )  # fmt: skip

    def _generate(self, trained) -> int:
        import numpy as np

        from gpuzoo.deploy.predict import check_new, sheet
        from gpuzoo.files import new_file

        images = trained.sample(self.samples, seed=self.seed, label=self.label)
        if self.out.endswith(".png"):
            content = sheet(images)
        else:
            array = io.BytesIO()
            np.lib.format.write_array(array, images)
            content = array.getvalue()
        with new_file(check_new(self.out)) as file:
            file.write(content)
        self.output.note(f"{self.out}: {len(images)} generated images")
        seed = trained.recipe.seed if self.seed is None else self.seed
        self.output.last_line({
            "run": self.run, "task": trained.recipe.task, "samples": len(images),
            "shape": list(images.shape[1:]), "seed": seed, "class": self.label,
            "out": self.out,
        })  # fmt: skip
        return ExitCode.DONE


class _Session:
    """One call: reads files batch by batch and shows the rows."""

    def __init__(self, command: Predict, trained):
        from gpuzoo.deploy import inputs, predict

        self.command, self.trained = command, trained
        self.note = command.output.note
        self.kind = predict.kind_of(trained)
        self.out, self.pictures = command.out or "", None
        if not trained.takes:
            raise GpuzooError(
                f"{command.run} generates images and takes no files; use --samples N "
                "--out NAME.png"
            )
        for name, fits, kind in (
            ("top", self.kind == "classes", "classifiers"),
            ("score", self.kind == "boxes", "detectors"),
            ("invert", trained.takes == "image", "models that take images"),
        ):
            if not fits:
                command.refuse(kind, name)
        self.vectors: Any = None
        if self.kind == "vectors":
            from gpuzoo.cli.vectors import Vectors

            self.vectors = Vectors(trained.record)
        if self.out.endswith(".npz") and not self.vectors:
            raise GpuzooError(
                f"--out {self.out}: only models of identities write a .npz file; "
                "expected FILE.jsonl, or a new folder"
            )
        if self.out and not self.out.endswith((".jsonl", ".npz")):
            if writes := _WRITES.get(self.kind):
                raise GpuzooError(f"--out {self.out}: {writes}")
            self.pictures = predict.Output(self.out, trained)
        if self.kind == "frames" and not self.pictures:
            raise GpuzooError(
                "a video model writes the next frames as pictures; add --out FOLDER"
            )
        self.sources = inputs.find(command.files, trained.takes, self.note)
        self.changes = inputs.Changes(self.note)
        self.failed: list[dict] = []
        self.unreadable = self.examples = self.files = 0
        self.hinted = False

    def predict(self) -> int:
        from gpuzoo.deploy.predict import check_new
        from gpuzoo.files import new_file

        try:
            if self.out.endswith(".jsonl"):
                with new_file(check_new(self.out)) as file:
                    for row in self._rows():
                        file.write(json.dumps(row).encode() + b"\n")
            elif self.out.endswith(".npz"):
                with new_file(check_new(self.out)) as file:
                    self._keep(self._rows())
                    file.write(self.vectors.npz())
            elif self.command.json_lines:
                for row in self._rows():
                    print(json.dumps(row))
            elif self.vectors:
                self._keep(self._rows())
                if not self.command.output.quiet:
                    self.vectors.show(self.note)
            else:
                self._print_tables()
        finally:
            if self.pictures:
                self.pictures.close()
        self.changes.report()
        if self.out:
            s = "s" * (self.examples != 1)
            self.note(f"{self.out}: {self.examples} example{s}")
        self.command.output.last_line({
            "run": self.command.run, "task": self.trained.recipe.task,
            "files": len(self.sources), "examples": self.examples,
            "unreadable": self.unreadable, "failed": self.failed,
            "changes": dict(self.changes.counts), "out": self.command.out,
            **(self.vectors.similarity() if self.vectors else {}),
        })  # fmt: skip
        return ExitCode.FAILED if self.unreadable else ExitCode.DONE

    def _keep(self, rows: Iterator[dict]) -> None:
        """Keep the vectors of rows."""
        self.vectors.add((_name(row), row) for row in rows)

    def _rows(self) -> Iterator[dict]:
        """Yield the row of each example."""
        from gpuzoo.deploy import inputs, predict

        with self._bar() as advance:
            batches = inputs.batches(
                self.sources, self.trained, self._fail, advance, self.command.invert
            )
            for batch in batches:
                for example in batch:
                    self.changes.add(example)
                    self._hint(example)
                found = predict.predict(
                    self.trained, batch, top=self.command.top, score=self.command.score
                )
                for example, (row, arrays) in zip(batch, found, strict=True):
                    if self.pictures:
                        row["out"] = self.pictures.add(example, row, arrays)
                    self.examples += 1
                    yield row
        if not self.examples:
            file, reason = self.failed[0].values()
            if len(self.sources) > 1:
                raise GpuzooError(f"none of {len(self.sources)} files can be read")
            raise GpuzooError(f"{file}: cannot be read: {reason}")

    def _fail(self, source, reason: str) -> None:

        self.unreadable += 1
        if len(self.failed) < _LISTED:
            self.failed.append({"file": source.name, "reason": reason})
        if len(self.sources) > 1:  # a single one is the error of the command
            line = printable(f"{source.name}: cannot be read: {reason}")
            print(line, file=sys.stderr, flush=True)

    def _hint(self, example) -> None:
        from gpuzoo.deploy.inputs import looks_inverted

        if not self.hinted and looks_inverted(example, self.trained):
            self.hinted = True
            data = self.trained.record["data"]["name"]
            inverted, remedy = "", "--invert exchanges dark and light"
            if self.command.invert:
                inverted, remedy = " when inverted", "leave --invert out"
            self.note(
                f"{example.file}: light at its border{inverted}, and the images of "
                f"{data} are light on dark: {remedy}"
            )

    @contextlib.contextmanager
    def _bar(self):
        """Show a progress bar on a terminal; yield what is called after each file."""
        from gpuzoo.report.progress import files_bar

        quiet = self.command.output.quiet or self.command.json_lines
        with files_bar(len(self.sources), quiet) as advance:
            yield lambda source: advance()

    @property
    def _predicted(self) -> str:
        """The name of the number that is predicted, as the head of a table."""
        prepared = self.trained.dataset.table
        return prepared.target.name if prepared else ""

    def _print_tables(self) -> None:
        quiet, part = self.command.output.quiet, []
        for row in self._rows():
            if not quiet:
                part.append(row)
            if len(part) == _ROWS:
                _print_table(self.kind, part, self._predicted)
                part = []
        if part:
            _print_table(self.kind, part, self._predicted)


def _print_table(kind: str, rows: list[dict], predicted: str) -> None:
    """Print rows; `predicted`: the name of the number that they predict."""
    from rich.console import Console

    from gpuzoo.cli.tables import add_row, show, table, width
    from gpuzoo.deploy import predict

    several = max(len(row.get("predictions", ())) for row in rows)
    heads = {
        "classes": ["most probable", "2nd", "3rd", "4th", "5th"][:several],
        "boxes": ["class", "score", *(f"{side}\n(pixels)" for side in predict.SIDES)],
        "values": [
            "step\nahead",
            *(f"{n}\n(unit of the file)" for n in _told(rows[0])),
        ],
        "images": ["mean squared error\n(pixels 0 to 1)"],
        "number": [predicted],
        "masks": ["class", "pixels\n(of the file)", "part"],
        "frames": ["picture of the last and the next frame"],
    }[kind]
    right = [] if kind in ("classes", "frames") else heads
    made, natural = table("file", *heads, right=right), Console(width=100_000)
    if several <= len(heads):
        for row in rows:
            for number, cells in enumerate(_CELLS[kind](row)):
                add_row(made, _name(row) * (number == 0), *cells)
        if natural.measure(made).maximum <= width():
            show(made)
            return
    for row in rows:  # one below the other: a file's name is never broken
        print(printable(_name(row)))
        if kind == "classes":
            for each in row["predictions"]:
                line = f"  {each['probability']:6.1%}  {each['class']}"
                print(printable(line))
            continue
        made = table(*heads, right=right)
        for cells in _CELLS[kind](row):
            add_row(made, *cells)
        show(made)


def _told(row: dict) -> dict[str, list]:
    """Return the forecasts of a row by target."""
    told = row.get("forecast", {})
    return told if isinstance(told, dict) else {"forecast": told}


def _name(row: dict) -> str:
    return row["file"] + (f" [{row['index']}]" if "index" in row else "")


_CELLS = {
    "classes": lambda row: [
        [f"{each['class']}  {each['probability']:.1%}" for each in row["predictions"]]
    ],
    "boxes": lambda row: [
        [box["class"], f"{box['score']:.1%}"]
        + [f"{box[side]:.1f}" for side in ("top", "left", "bottom", "right")]
        for box in row["boxes"]
    ] or [["nothing found"]],
    "values": lambda row: [
        [step, *(f"{value:.6g}" for value in values)]
        for step, values in enumerate(
            zip(*_told(row).values(), strict=True), start=1
        )
    ],
    "masks": lambda row: [
        [one["class"], f"{one['pixels']:,}", f"{one['fraction']:.1%}"]
        for one in row["areas"]
    ],
    "number": lambda row: [[f"{row['value']:.6g}"]],
    "images": lambda row: [[f"{row['error']:.5f}"]],
    "frames": lambda row: [[" ".join(row["out"])]],
}  # fmt: skip
