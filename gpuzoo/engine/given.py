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
STATE = "initial_state.safetensors"
"""The other variables that a run starts with that goes on with a finished one."""
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
    parent: dict | None = None
    """The finished run that this one goes on with: `run` (its name), `id`,
    `weights_sha256`, `state_sha256`, and the `epoch` and `step` after which."""
    state: bytes | None = None
    """Of such a run: the file of the variables that are no weights."""
    most: int | None = None
    """Bytes that the weights of the model may have, checked as it is built."""

    def with_findings(self, findings) -> "Given":
        """Return a copy with additional findings."""
        return dataclasses.replace(self, findings=(*self.findings, *findings))

    @property
    def step(self) -> int:
        """The number of steps done before."""
        return self.parent["step"] if self.parent else 0

    def as_record(self) -> dict:
        """Return the fields of run.json."""
        content, described = self.content, self.architecture
        digest = described and _digest(described.text.encode())
        return {
            **({"architecture_sha256": digest} if described else {}),
            "weights": "drawn for the seed" if self.fresh else AS_GIVEN,
            "initial_weights_sha256": content and _digest(content),
            **({"init": self.init} if self.init else {}),
            **({"parent": self.parent} if self.parent else {}),
            **({"initial_state_sha256": _digest(self.state)} if self.state else {}),
            "compiled": {"optimizer": self.optimizer, "loss": self.loss},
            "findings": list(self.findings),
        }

    def files(self) -> dict[str, bytes]:
        """Return the files for the run folder, name -> content."""
        contents = {FILE: self.content, STATE: self.state}
        files = {name: one for name, one in contents.items() if one is not None}
        if self.architecture:
            files[ARCHITECTURE] = self.architecture.text.encode()
        return files


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
