"""Operations of an optimized program that XLA or cuDNN does not promise to repeat."""

import collections
import dataclasses
import re

from gpuzoo.gpus.program_text import Instruction, Module

# Functions of NVIDIA's libraries that repeat, on one stream or with the workspaces that
# gpuzoo sets (CUBLAS_WORKSPACE_CONFIG).
_REPEATS = re.compile(
    r"__cublas\$|__cudnn\$conv(Forward|BiasActivation|ForwardGraph)|__cudnn\$norm|"
    r"__cudnn\$fmha\w*Forward|__cub\$|cu(solver|blas|fft)_|__triton|"
    r"xla\.gpu\.triton|Sharding|annotate_device_placement|__cudnn\$fusion"
)
_GRADIENT = re.compile(r"__cudnn\$convBackward")
_ATTENTION = re.compile(r"__cudnn\$fmha\w*Backward")
_LEVEL = "use --level repeatable"


@dataclasses.dataclass(frozen=True)
class Finding:
    """An operation of a compiled step that may not repeat."""

    operation: str
    layer: str
    why: str
    remedy: str
    count: int = 1


def findings(module: Module, deterministic: bool) -> list[Finding]:
    """Return what may not repeat.

    Args:
        module: an optimized program.
        deterministic: whether it was compiled with XLA's flag for deterministic
            operations, and cuDNN's algorithms are chosen accordingly.
    """
    callers = {
        one.called("calls"): one
        for instructions in module.computations.values()
        for one in instructions
    }
    found: collections.Counter[Finding] = collections.Counter()
    for name, instructions in module.computations.items():
        for one in instructions:
            fault = _fault(module, one, deterministic)
            if fault:
                caller = callers.get(name)
                layer = one.layer or (caller.layer if caller else "")
                operation = one.target or one.opcode
                found[Finding(operation, layer or "outside a layer", *fault)] += 1
    return [dataclasses.replace(one, count=n) for one, n in found.items()]


def _fault(module: Module, one: Instruction, deterministic: bool):
    """Return why an instruction may not repeat and the remedy, or None."""
    if one.opcode == "scatter" and not _in_any_order(module, one):
        return (
            "several threads add to one place in an order that varies",
            f"{_LEVEL}, or a product with one_hot in place of adding at indices",
        )
    if one.opcode == "select-and-scatter":
        return "threads add to one place in an order that varies", (
            f"{_LEVEL}, which replaces max-pooling"
        )
    if one.opcode in ("rng", "rng-get-and-update-state"):
        return "it draws from a state that no checkpoint contains", (
            "use keras.random with a keras.random.SeedGenerator"
        )
    if one.opcode != "custom-call" or _REPEATS.match(one.target):
        return None
    if _GRADIENT.match(one.target):
        why = "cuDNN may choose an algorithm that adds in an order that varies"
        return None if deterministic else (why, _LEVEL)
    if _ATTENTION.match(one.target):
        if '"force_deterministic":true' in one.attributes:
            return None
        return "cuDNN's gradient of attention adds in an order that varies", _LEVEL
    return "a library function of which no promise is known", (
        "verify the training on the card: gpuzoo verify"
    )


def _in_any_order(module: Module, one: Instruction) -> bool:
    """Whether the order of a scatter's updates cannot change its result."""
    if "unique_indices=true" in one.attributes:
        return True
    root = module.computations[one.called("to_apply")][-1]
    exact = re.match(r"\(?(s|u|pred)", root.shape) and root.opcode in (
        "add",
        "multiply",
    )
    return bool(exact) or root.opcode in ("minimum", "maximum", "and", "or", "xor")
