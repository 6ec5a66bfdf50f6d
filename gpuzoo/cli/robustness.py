"""`gpuzoo robustness`: a trained classifier on disturbed images."""

import contextlib
import dataclasses
from typing import Literal

from gpuzoo.cli.parsing import Common, Flag, Output, Word, chosen
from gpuzoo.cli.tables import add_row, show, table
from gpuzoo.runtime.options import Precision


@dataclasses.dataclass(frozen=True)
class Robustness:
    """Test a trained image classifier: corrupted images, adversarial examples,
    calibration, out-of-distribution detection. The same seed gives the same table.
    """

    run: Word
    """The run folder."""
    only: tuple[Literal["corruptions", "attacks", "calibration"], ...] = (
        "corruptions", "attacks", "calibration",
    )  # fmt: skip
    """Parts to measure."""
    examples: int | None = None
    """Number of test images, chosen by the seed; default: all, at most 2000, fewer of
    large images (down to 200)."""
    seed: int = 0
    """Seed of the images, the corruptions and the random starts."""
    epsilons: tuple[float, ...] = ()
    """L-infinity bounds of the attacks, for pixels in [0, 1]; default: 0.1 0.2 0.3 for
    grayscale images, 1/255 to 8/255 for color images."""
    pgd_steps: int = 20
    """Steps of projected gradient descent."""
    data_dir: str | None = None
    """Prepared TFDS folder of the run's data; default: that of the run."""
    ood: str | None = None
    """Another dataset, as for gpuzoo train --data, for out-of-distribution
    detection."""
    ood_data_dir: str | None = None
    """Prepared TFDS folder of that dataset."""
    out: str | None = None
    """New folder for robustness.json, robustness.html and the images."""
    device: Literal["run", "auto", "cpu", "gpu"] = "run"
    """Device; run: as requested in the training."""
    precision: Literal["run"] | Precision = "run"
    """Keras dtype policy; run: that of the training."""
    allow_drift: Flag = False
    """Measure although the code of the model has changed."""
    trust_code: Flag = False
    """Execute the run's own code, if its model is defined in a user's file."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.deploy.robustness import robustness

        with _bar(self.output.quiet) as progress:
            found = robustness(
                self.run, only=self.only, examples=self.examples, seed=self.seed,
                epsilons=self.epsilons, pgd_steps=self.pgd_steps,
                data_dir=self.data_dir, ood=self.ood, ood_data_dir=self.ood_data_dir,
                out=self.out, allow_drift=self.allow_drift, trust_code=self.trust_code,
                note=self.output.note, progress=progress,
                **chosen(device=self.device, precision=self.precision),
            )  # fmt: skip
        if not self.output.quiet:
            _print(found)
            if self.out:
                self.output.note(f"report: {self.out}/robustness.html")
        self.output.last_line(found)
        return 0


@contextlib.contextmanager
def _bar(quiet: bool):
    """Yield a function that moves a progress bar, shown in a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(40)
    shown = not quiet and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("loading the run", total=None)

        def progress(what: str, done: int, of: int) -> None:
            counted = f" {done}/{of}" if of else ""
            bar.update(
                task, description=what + counted, completed=done, total=of or None
            )

        yield progress


def _print(found: dict) -> None:
    clean = found["clean"]
    show(
        f"{found['run']}: {found['model']} on {found['data']}, {found['examples']} of "
        f"{found['test_examples']} test images: accuracy {clean['accuracy']:.2%}"
    )
    if part := found.get("corruptions"):
        heads = ("1", "2", "3", "4", "5", "mean")
        made = table("corruption", *heads, right=heads)
        for kind, row in part["accuracy"].items():
            cells = [f"{value:.1%}" for value in (*row, sum(row) / len(row))]
            add_row(made, kind, *cells)
        show("", "Accuracy by severity, after ImageNet-C:", made,
             f"mean corruption accuracy {part['mean_accuracy']:.2%}: the mean of all "
             "kinds and severities")  # fmt: skip
    if part := found.get("attacks"):
        heads = [f"{epsilon:.4g}" for epsilon in part["epsilons"]]
        made = table("attack", *heads, right=heads)
        for name, text in (("fgsm", "FGSM"), ("pgd", f"PGD-{part['pgd_steps']}")):
            add_row(made, text, *(f"{value:.1%}" for value in part[name]))
        show(
            "", "Accuracy under attack, by the largest change of a pixel (of 0 to 1):",
            made, "FGSM: one step along the sign of the gradient of the loss; PGD-N: N "
            "smaller ones from a random start",
        )  # fmt: skip
    if part := found.get("calibration"):
        heads = ("calibration error", "log loss")
        made = table("calibration", *heads, right=heads)
        for name, text in (
            ("before", "as trained"),
            ("after", f"temperature {part['temperature']:.3f}"),
        ):
            one = part[name]
            add_row(made, text, f"{one['ece']:.4f}", f"{one['log_loss']:.4f}")
        show(
            "", f"{part['bins']} bins; temperature of {part['fitted_on']}:", made,
            "calibration error (ECE): mean distance of confidence and accuracy, 0 is "
            "best; log loss: mean of -log(probability of the true class); the logits "
            "are divided by the temperature",
        )  # fmt: skip
    if part := found.get("ood"):
        heads = ("AUROC", "others passed at 95 %")
        made = table(f"other data: {part['data']}", *heads, right=heads)
        for name in ("confidence", "energy"):
            one = part[name]
            passed = f"{one['false_positives_at_95']:.1%}"
            add_row(made, name, f"{one['auroc']:.4f}", passed)
        show(
            "", made, "AUROC: how often an image of the run's data scores above one of "
            "the other data (0.5: by chance, 1: always); others passed at 95 %: other "
            "images above the score that 95 % of the run's images reach; confidence: "
            "largest probability, energy: log of the summed exponentials of the logits",
        )  # fmt: skip
