"""`gpuzoo train`, and the commands that take the folder of a run."""

import contextlib
import dataclasses

import tyro

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.cli.many import Sweep
from gpuzoo.cli.parsing import Common, Flag, Output, Word, without_1
from gpuzoo.errors import Diverged, ExitCode, GpuzooError
from gpuzoo.report import trackers
from gpuzoo.runtime.options import Options


@contextlib.contextmanager
def _summary_of_diverged(output: Output):
    """Print the last line of a training that diverges in the block, too."""
    try:
        yield
    except Diverged as error:
        output.last_line({
            "state": "diverged", "error": str(error), "diagnosis": error.diagnosis,
            "run_dir": error.run_dir,
        })  # fmt: skip
        raise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train a recipe: gpuzoo train RECIPE [--epochs 3 ...]."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    runtime: tyro.conf.OmitArgPrefixes[Options] = Options()
    init: str | None = None
    """Run folder to take the initial weights from (fine-tuning). The model is that of
    the run, unless --model names another one with the same weights."""
    out: str | None = None
    """Run folder; default: the next free runs/<recipe>-<data>-<number>."""
    seeds: int = 1
    """Number of seeds to train with, from --seed on; reports mean, standard deviation
    and confidence interval. --out is then the folder of the runs."""
    track: tuple[trackers.Name, ...] = ()
    """Trackers to log to. Nothing leaves this machine, unless their own settings say
    so."""
    fast_dev_run: Flag = False
    """Run two training steps and a full evaluation, to test that everything works."""
    output: Common = Output()

    def __call__(self) -> int:
        if self.seeds != 1:
            if self.fast_dev_run:
                raise GpuzooError(
                    "--fast-dev-run tests one training: leave --seeds out"
                )
            return Sweep(
                recipe=self.recipe, seeds=self.seeds, runtime=self.runtime,
                init=self.init, out=self.out, track=self.track, output=self.output,
            )()  # fmt: skip
        from gpuzoo.training.train import train

        with _summary_of_diverged(self.output):
            summary = train(
                self.recipe, init=self.init, options=self.runtime, out=self.out,
                fast_dev_run=self.fast_dev_run, track=self.track,
                quiet=self.output.quiet,
            )  # fmt: skip
        return _ended(summary, self.output)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """Train in several processes of this machine: gpuzoo launch --processes 2 train
    mnist --backend jax --elastic --out RUN, or ... resume RUN.

    If a process dies, all are restarted from the last checkpoint. On several machines
    use a scheduler, and gpuzoo train with --distributed.
    """

    processes: int = 2
    """Number of processes, each with --devices."""
    restarts: int = 3
    """Maximum number of restarts."""
    fewer: Flag = False
    """Restart with half as many processes."""
    words: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The training, from train or resume on."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.training.launch import launch

        words = [*self.words, *["--quiet"] * self.output.quiet]
        return launch(
            words, self.processes, restarts=self.restarts, fewer=self.fewer,
            note=self.output.note,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Resume:
    """Continue a run that was interrupted or killed: gpuzoo resume RUN.

    The finished run has the same weights, bit for bit, as one that never stopped. With
    --epochs N a finished run is trained for N more epochs, as a new run.
    """

    run: Word
    """The run folder."""
    epochs: int | None = None
    """Train a finished run for this many more epochs, as a new run."""
    out: str | None = None
    """With --epochs: the new run folder; default: the next free
    runs/<recipe>-<data>-<number>."""
    allow_drift: Flag = False
    """Continue although the environment has changed; the change is recorded."""
    devices: int | None = None
    """Number of devices; default: as many as before. The results of an elastic run do
    not depend on it."""
    distributed: Flag = False
    """Continue in several processes, as gpuzoo train --distributed."""
    track: tuple[trackers.Name, ...] | None = None
    """Trackers to log to, instead of those of the run; without a name: none."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.training.resume import resume

        with _summary_of_diverged(self.output):
            summary = resume(
                self.run, epochs=self.epochs, out=self.out,
                allow_drift=self.allow_drift, devices=self.devices,
                distributed=self.distributed, track=self.track,
                quiet=self.output.quiet,
            )  # fmt: skip
        return _ended(summary, self.output)


@dataclasses.dataclass(frozen=True)
class Retraining:
    """How the run is trained again."""

    data: str | None = None
    """Where the data of the run are on this machine, if they have moved: a file, folder
    or name, as for gpuzoo train. Their fingerprint must be that of the run."""
    data_dir: str | None = None
    """Prepared TFDS folder with the data of the run."""
    devices: int | None = None
    """Number of devices; default: as many as the run."""
    allow_drift: Flag = False
    """Compare although the environment differs."""
    trust_code: Flag = False
    """Execute the run's own code, if its model is defined in a user's file."""


@dataclasses.dataclass(frozen=True)
class Verify:
    """Re-run a training from its record and compare the weights bit for bit.

    Exit codes: 0 identical, 1 differs or is not signed, 2 cannot compare, or the bits
    differ on another processor, where only the metrics are compared.
    """

    run: Word
    """The run folder."""
    signed_by: str | None = None
    """First check the signature of the run with this public key, as gpuzoo
    check-signature does."""
    quick: Flag = False
    """Compare only the steps up to the first digest of the weights."""
    steps: int = 0
    """Compare only the first N steps; 0: all, and the final weights."""
    retraining: tyro.conf.OmitArgPrefixes[Retraining] = Retraining()
    output: Common = Output()

    def __call__(self) -> int:
        if self.signed_by is not None:
            from gpuzoo.deploy.signing import check_signature

            check_signature(self.run, self.signed_by)
            self.output.note(f"{self.run}: signed by the owner of {self.signed_by}")
        return self._verify()

    @without_1
    def _verify(self) -> int:
        from gpuzoo.repro.verify import verify
        from gpuzoo.runs.record import read_run, recipe_of

        steps, note = self.steps, self.output.note
        if self.quick:
            steps = recipe_of(read_run(self.run, sealed=False)).digest_every
        found = verify(self.run, steps=steps, note=note, **vars(self.retraining))
        how = f"{found['verdict']}{_on_another(found['processor'])}"
        note(f"{found['run_dir']}: {how}, {found['steps']} steps compared")
        for line in [*_first_difference(found), *_figures_of_both(found)]:
            note(line)
        for number, cause in enumerate(found["causes"], start=1):
            note(f"likely cause {number}: {cause}")
        self.output.last_line(found)
        return found["exit_code"]


@dataclasses.dataclass(frozen=True)
class Audit:
    """Retrain random segments of a run and compare the bits: gpuzoo audit RUN. The run
    must have been trained with --keep-checkpoints.

    Exit codes: 0 identical, 1 differs, 2 cannot compare, or the bits differ on another
    processor.
    """

    run: Word
    """The run folder."""
    segments: int = 3
    """Number of segments to draw; at most all."""
    seed: int | None = None
    """Seed of the drawing; default: a random one, which is printed."""
    retraining: tyro.conf.OmitArgPrefixes[Retraining] = Retraining()
    output: Common = Output()

    @without_1
    def __call__(self) -> int:
        from gpuzoo.repro.audit import audit

        note = self.output.note
        found = audit(
            self.run, segments=self.segments, seed=self.seed, note=note,
            **vars(self.retraining),
        )  # fmt: skip
        for line in (*found["faults"], *found["environment"]):
            note(line)
        for name in found["changed_files"]:
            note(f"{name} was changed after the run ended")
        total, drawn = found["segments"], len(found["drawn"])
        passed = found["exit_code"] == ExitCode.DONE
        for forged, chance in found["would_pass"].items() if passed else ():
            note(
                f"a run of {total} segments of which {forged} "
                f"{'is' if forged == '1' else 'are'} forged passes with probability "
                f"{chance:.3g} if {drawn} are drawn"
            )
        how = f"{found['verdict']}{_on_another(found['processor'])}"
        note(f"{found['run_dir']}: {how}, {found['steps']} steps compared")
        self.output.last_line(found)
        return found["exit_code"]


@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.html of a run again: result, curves, plots, the last verify, the
    whole record. It is one self-contained file.
    """

    run: Word
    """The run folder."""
    out: str | None = None
    """Write this new file instead, for example if the run folder is read-only."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.home import redact, without_home
        from gpuzoo.report import page

        goal = page.report(self.run, self.out, self.output.note)
        self.output.note(f"report: {without_home(str(goal))}")
        self.output.last_line({"report": redact(str(goal))})
        return ExitCode.DONE


@dataclasses.dataclass(frozen=True)
class Diff:
    """Show where two runs diverge: settings, environment, data, the first step.

    Exit codes: 0 identical, 1 differs or one is shorter, 2 not a run folder.
    """

    run_a: Word
    """A run folder, or a folder of gpuzoo.callbacks.Trail."""
    run_b: Word
    """Another one."""
    replay: Flag = False
    """Re-run both around the first difference and name the layer it starts in."""
    trust_code: Flag = False
    """Let --replay execute the runs' own code (models defined in a user's file)."""
    output: Common = Output()

    @without_1
    def __call__(self) -> int:
        from gpuzoo.repro.diff import diff

        found = diff(
            self.run_a, self.run_b, replay=self.replay, trust_code=self.trust_code,
            note=self.output.note,
        )  # fmt: skip
        if not self.output.quiet:
            self._print(found)
        self.output.last_line(found)
        return found["exit_code"]

    def _print(self, found: dict) -> None:
        from gpuzoo.cli.tables import add_row, show, table

        made = table("", self.run_a, self.run_b)
        for group in ("settings", "environment", "data"):
            for row in found[group]:
                add_row(made, *row)
        pairs = zip((self.run_a, self.run_b), found["changed_files"], strict=True)
        changed = [
            f"{run}/{name} was changed after the run ended"
            for run, names in pairs
            for name in names
        ]
        lines = [*changed, *_first_difference(found), *found["rows"][:5]]
        lines += _replayed(found)
        show(made, *lines, f"{found['verdict']}, {found['compared']} steps compared")


def _ended(summary: dict, output: Output) -> ExitCode:
    """Print the last line of a training; of a process that follows, nothing."""
    if not summary.get("rank"):
        output.last_line(summary)
    return _code_of(summary)


def _code_of(summary: dict) -> ExitCode:
    stopped = summary["state"] == "stopped"
    return ExitCode.INTERRUPTED if stopped else ExitCode.DONE


def _on_another(processor: dict | None) -> str:
    """Describe on which processor a run was verified, if it is from another one."""
    if processor is None:
        return ""
    here, recorded = processor["here"], processor["recorded"]
    return f", on another processor ({here}, recorded on {recorded})"


def _figures_of_both(found: dict) -> list[str]:
    """Return the figures of a run and its re-run whose bits need not be the same."""
    if found["exit_code"] != ExitCode.MISUSE:
        return []
    return [
        f"figures only: {row['name']} {row['recorded']:.6g} in the run, "
        f"{row['here']:.6g} here"
        for row in found["compared"]
    ]


def _first_difference(found: dict) -> list[str]:
    lines = []
    if first := found["first_difference"]:
        names = ", ".join(first["variables"]) or "no weight at the next digest"
        where = f"{first['what']} of step {first['step']}"
        if first["step"] == 0:  # of an ordinary fit
            where = f"{first['what']} before the first step"
        lines.append(f"first difference: {where}; {names}")
    for name, ulp in found["weights"].items():
        size = "has another shape or dtype" if ulp is None else f"differs by {ulp} ulp"
        lines.append(f"final weights: {name} {size}")
    return lines


def _replayed(found: dict) -> list[str]:
    again = found["replay"]
    if not again:
        return []
    lines = [
        f"replay of {path}: the losses differ from the recorded ones"
        + f" ({'; '.join(drift)})" * bool(drift)
        for path, same, drift in zip(
            "AB", again["replayed"], again["drift"], strict=True
        )
        if not same
    ]
    if again["step"] is None:
        return [*lines, "replay: both runs are identical on this machine"]
    line = f"replay: first difference in {again['where']} of step {again['step']}"
    if again["values"]:
        line += (
            f", in {again['differing']:,} of {again['values']:,} values by at most "
            f"{again['largest']:.3g}"
        )
    return [*lines, line]
