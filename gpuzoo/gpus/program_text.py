"""Read an optimized program of XLA for a GPU: its kernels, bytes, what may not repeat.

XLA prints one instruction per line: `%name = shape opcode(operands), attributes`.
"""

import collections
import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator

# Instructions that start no kernel.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
    "optimization-barrier", "partition-id", "replica-id",
}  # fmt: skip
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_METADATA = re.compile(
    r',? ?(metadata|frontend_attributes)=\{(?:[^{}"]|"(?:[^"\\]|\\.)*"|\{[^{}]*\})*\}'
)
_NO_LAYER = re.compile(r"jit\(|(while|body|cond|closed_call|checkpoint|branch_\d+)$")
_PREDECESSORS = re.compile(r"(?<=control-predecessors=\{)[^}]+")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def called(self, attribute: str) -> str:
        """Return the computation that an attribute (calls, body, ...) names, or ""."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """The library function of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def layer(self) -> str:
        """The scopes of the layer, "" if unknown:
        jit(f)/while/body/transpose(jvp(cnn))/conv_1/dot -> cnn/conv_1."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        parts = found[1].split("/")[:-1] if found else []
        parts = [re.sub(r"^(transpose\(|jvp\(|vmap\()+|\)+$", "", p) for p in parts]
        parts = [part for part in parts if not _NO_LAYER.match(part)]
        return "/".join(part for part in parts if part)


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: name of a computation -> its instructions, the root last."""

    computations: dict[str, list[Instruction]]
    entry: str


def parse(text: str) -> Module:
    """Parse the text of a program.

    Raises:
        ValueError: it has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            current.append(_instruction(line.strip()))
    if not entry:
        raise ValueError("the text has no ENTRY computation: not a program of XLA")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].strip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(
        name.strip("%"), shape, rest[:opening], operands, rest[closing + 1 :]
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text) - 1


def size(shape: str) -> int:
    """Return the bytes of a shape, all parts of a tuple: f32[2,3]{1,0} -> 24."""
    total = 0
    for dtype, sides in _SHAPE.findall(shape):
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype) or (int(digits[0]) if digits else 0)
        total += math.prod(map(int, filter(None, sides.split(",")))) * bits // 8
    return total


def steps_loop(module: Module) -> str:
    """Return the computation of one step: the body of the loop over steps."""
    loops = [one for one in module.computations[module.entry] if one.opcode == "while"]
    return loops[-1].called("body") if loops else module.entry


def kernels(module: Module, computation: str) -> Iterator[tuple[Instruction, int]]:
    """Yield every kernel that a computation starts, and how often.

    A loop without a known number of rounds is counted once, of a condition the branch
    with the most kernels.
    """
    for one in module.computations[computation]:
        if one.opcode == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.attributes)
            parts = ["body"] if trips else ["body", "condition"]
            for part in parts:
                for inner, times in kernels(module, one.called(part)):
                    yield inner, times * int(trips[1] if trips else 1)
        elif one.opcode == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
            two = [one.called(f"{which}_computation") for which in ("true", "false")]
            names = re.findall(r"%([\w.\-]+)", listed[1]) if listed else two
            yield from max((list(kernels(module, name)) for name in names), key=len)
        elif one.opcode in ("call", "async-start"):
            name = one.called("to_apply") or one.called("calls")
            yield from kernels(module, name)
        elif one.opcode not in _FREE and not one.opcode.endswith(("-done", "-update")):
            yield one, 1


def count(module: Module, computation: str) -> dict[str, int]:
    """Return the kernels of a computation by kind: fusions, library calls, others."""
    found: collections.Counter[str] = collections.Counter()
    for one, times in kernels(module, computation):
        kind = one.target or one.opcode
        if one.opcode == "fusion":
            triton = "__triton" in one.attributes
            kind = re.search(r"kind=k(\w+)", one.attributes)[1].lower()
            kind = f"fusion ({'triton' if triton else kind})"
        found[kind] += times
    return dict(found.most_common())


def traffic(module: Module, computation: str, cache: int) -> tuple[int, int]:
    """Return the bytes that the kernels read and write, and how many of them cannot
    come from a cache of so many bytes that keeps what the kernel before has left."""
    total = beyond = 0
    for one, times in kernels(module, computation):
        here = _traffic_of(module, one)
        total += times * here
        beyond += times * max(0, here - cache)
    return total, beyond


def _traffic_of(module: Module, one: Instruction) -> int:
    """Return the bytes of one kernel: of a slice or a gather what it takes, of an
    update in place what it replaces."""
    inner = module.computations.get(one.called("calls"))
    if one.opcode != "fusion" or not inner:
        shapes = _shapes_around(module, one)
        return size(one.shape) + sum(size(shapes.get(n, "")) for n in one.operands)
    moved, updates = 0, [i for i in inner if i.opcode == "dynamic-update-slice"]
    shapes, whole = {i.name: i.shape for i in inner}, size(one.shape)
    in_place = {i.operands[0] for i in updates}
    for i in updates:
        whole += size(shapes[i.operands[1]]) - size(i.shape)
    for parameter in (i for i in inner if i.opcode == "parameter"):
        users = [i for i in inner if parameter.name in i.operands]
        if parameter.name in in_place:
            continue
        if users and all(i.opcode in ("gather", "dynamic-slice", "slice") and
                         i.operands[0] == parameter.name for i in users):  # fmt: skip
            moved += min(size(parameter.shape), sum(size(i.shape) for i in users))
        else:
            moved += size(parameter.shape)
    return moved + max(0, whole)


def _shapes_around(module: Module, one: Instruction) -> dict[str, str]:
    for instructions in module.computations.values():
        if any(other is one for other in instructions):
            return {other.name: other.shape for other in instructions}
    return {}


def constants(module: Module) -> int:
    """Return the bytes of the program's large constants: the examples in memory."""
    return sum(
        size(one.shape)
        for instructions in module.computations.values()
        for one in instructions
        if one.opcode == "constant" and size(one.shape) > 1024
    )


def digest(text: str) -> str:
    """Return the sha256 of a program without names, metadata and source lines.

    The values of large constants, which XLA does not print, are not part of it, nor is
    the order in which XLA writes an instruction's control predecessors, a set.
    """
    lines, names = [], {}
    inside = False
    for line in text.splitlines():
        if head := _HEAD.match(line):
            inside, line = True, f"{head[1] or ''}%{head[2]}"
        if inside:
            lines.append(_METADATA.sub("", line))
        inside = inside and not line.startswith("}")
    number = lambda found: names.setdefault(found[0], f"%{len(names)}")  # noqa: E731
    plain = re.sub(r"%[\w.\-]+", number, "\n".join(lines))
    plain = _PREDECESSORS.sub(_sorted, plain)
    return hashlib.sha256(plain.encode()).hexdigest()


def _sorted(found: re.Match) -> str:
    return ", ".join(sorted(found[0].split(", ")))
