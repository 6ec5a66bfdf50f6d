"""Cards: public figures of a GPU, one JSON file each in cards/ or of the user."""

import dataclasses
import json
import math
import pathlib

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand

_FOLDER = pathlib.Path(__file__).parent / "cards"
_EXAMPLE = _FOLDER / "h200.json"
_FORMATS = ("float32", "tf32", "float16", "bfloat16")
# What JAX takes of a card's memory by default (XLA_PYTHON_CLIENT_MEM_FRACTION).
MEMORY_FRACTION = 0.75


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """The figures of a GPU that a compiler and a bound need."""

    name: str
    """As the driver names it."""
    compute_capability: str
    """Such as 9.0."""
    cores: int
    """Streaming multiprocessors; the four figures below are those of one."""
    fpus_per_core: int
    threads_per_core: int
    shared_bytes_per_core: int
    shared_bytes_per_block: int
    """The most shared memory of a block that asks for it."""
    clock_ghz: float
    memory_bytes: int
    bandwidth_bytes_per_second: float
    l2_bytes: int
    flops: dict[str, float | None]
    """Format (float32, tf32, float16, bfloat16) -> floating-point operations per second
    of dense products; None: the card does not compute in it."""
    source: str
    """Where the figures were published."""

    @property
    def capability(self) -> tuple[int, int]:
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor)

    @property
    def usable_bytes(self) -> int:
        return int(MEMORY_FRACTION * self.memory_bytes)

    def peak(self, precision: str) -> float:
        """Return the operations per second in a Keras dtype policy; a format that the
        card lacks is computed in float32."""
        name = precision.removeprefix("mixed_")
        if name == "float32":
            name = "tf32"
        return self.flops[name] or self.flops["float32"]

    def target(self, cudnn: str) -> str:
        """Return the card as a text of XLA's GpuTargetConfigProto."""
        (major, minor), dnn = self.capability, [*map(int, cudnn.split(".")[:3])]
        return f"""gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32
          shared_memory_per_block: 49152
          shared_memory_per_core: {self.shared_bytes_per_core}
          shared_memory_per_block_optin: {self.shared_bytes_per_block}
          threads_per_core_limit: {self.threads_per_core} core_count: {self.cores}
          fpus_per_core: {self.fpus_per_core} block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535 block_dim_limit_z: 65535
          memory_bandwidth: {int(self.bandwidth_bytes_per_second)}
          l2_cache_size: {self.l2_bytes} clock_rate_ghz: {self.clock_ghz}
          device_memory_size: {self.memory_bytes}
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
        platform_name: "CUDA" device_description_str: {json.dumps(self.name)}
        dnn_version_info {{ major: {dnn[0]} minor: {dnn[1]} patch: {dnn[2]} }}"""


def names() -> list[str]:
    """Return the names of the cards that come with gpuzoo."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load(name: str) -> Card:
    """Return a card by its name (h200) or the path of a user's file (mine.json).

    Raises:
        GpuzooError: no such card, or a file with a field missing, unknown or wrong.
    """
    path = expand(name) if name.endswith(".json") else _FOLDER / f"{name}.json"
    if not name.endswith(".json") and name not in names():
        raise GpuzooError(
            f"no card named {name!r}; there are {', '.join(names())}; for another one "
            f"give the path of a .json file with the fields of {_EXAMPLE}"
        )
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise GpuzooError(f"card {name}: {error.strerror}; check the path") from None
    except ValueError as error:
        raise GpuzooError(f"card {name} is not JSON: {error}") from None
    return _checked(name, content)


def _checked(name: str, content) -> Card:
    fields = {field.name: field.type for field in dataclasses.fields(Card)}
    if not isinstance(content, dict):
        raise GpuzooError(
            f"card {name} must be an object with the fields of {_EXAMPLE}"
        )
    for what, odd in (("lacks", fields.keys() - content.keys()),
                      ("has unknown", content.keys() - fields.keys())):  # fmt: skip
        if odd:
            raise GpuzooError(
                f"card {name} {what} {', '.join(sorted(odd))}; expected the fields of "
                f"{_EXAMPLE}"
            )
    for field, kind in fields.items():
        if fault := _fault(field, kind, content[field]):
            raise GpuzooError(
                f"card {name}: {field} must be {fault}: {content[field]!r:.60}"
            )
    return Card(**content)


def _fault(field: str, kind, value) -> str:
    """Return what the value of a field must be, "" if it is."""
    if field == "compute_capability":
        parts = value.split(".") if isinstance(value, str) else []
        right = len(parts) == 2 and all(part.isdecimal() for part in parts)
        return "" if right else 'a text such as "9.0"'
    if kind is str:
        return "" if isinstance(value, str) and value.strip() else "a text"
    if field == "flops":
        right = isinstance(value, dict) and set(value) == set(_FORMATS)
        right = right and all(
            _positive(v) or v is None and k != "float32" for k, v in value.items()
        )
        return "" if right else (
            f"an object with {', '.join(_FORMATS)}: operations per second, null for a "
            "format that the card lacks (not float32)"
        )  # fmt: skip
    if field == "memory_bytes" and type(value) is int and 0 < value < 1e6:
        return "in bytes"
    if kind is float:
        return "" if _positive(value) else "a number above 0"
    return "" if _positive(value) and type(value) is int else "an integer above 0"


def _positive(value) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf
