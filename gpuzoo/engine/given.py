"""What a training starts with, besides its recipe: weights, layers, optimizer.

Imported before a backend is chosen: no Keras here.
"""

import dataclasses
import hashlib

from gpuzoo.catalogue.architecture import Architecture
from gpuzoo.catalogue.model_info import ARCHITECTURE

FILE = "initial_weights.safetensors"
"""The initial weights of a model object, or of the run to start from, in the run
folder, for resume and verify."""
AS_GIVEN = "as given"


@dataclasses.dataclass(frozen=True)
class Given:
    """What a model object, or the run to start from, adds to a recipe."""

    architecture: Architecture | None = None
    """Its layers; None: the recipe names the model."""
    content: bytes | None = None
    """The file of the initial weights; None: they are drawn from the seed."""
    fresh: bool = True
    """Drawn from the seed, except layers that keep their weights."""
    optimizer: dict | None = None
    """The compiled optimizer, as Keras serializes it."""
    loss: dict | None = None
    """The loss, likewise."""
    findings: tuple[str, ...] = ()
    init: dict | None = None
    """The run that the weights are from: `run` (its name), `id`, `weights_sha256`."""
    most: int | None = None
    """Bytes that the weights of the model may have, checked as it is built."""

    def with_findings(self, findings) -> "Given":
        """Return a copy with additional findings."""
        return dataclasses.replace(self, findings=(*self.findings, *findings))

    def as_record(self) -> dict:
        """Return the fields of run.json."""
        content, described = self.content, self.architecture
        digest = described and hashlib.sha256(described.text.encode()).hexdigest()
        return {
            **({"architecture_sha256": digest} if described else {}),
            "weights": "drawn for the seed" if self.fresh else AS_GIVEN,
            "initial_weights_sha256": content and hashlib.sha256(content).hexdigest(),
            **({"init": self.init} if self.init else {}),
            "compiled": {"optimizer": self.optimizer, "loss": self.loss},
            "findings": list(self.findings),
        }

    def files(self) -> dict[str, bytes]:
        """Return the files for the run folder, name -> content."""
        files = {} if self.content is None else {FILE: self.content}
        if self.architecture:
            files[ARCHITECTURE] = self.architecture.text.encode()
        return files
