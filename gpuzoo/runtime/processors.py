"""Classes of processors: within one, the same training gives the same bits.

What was measured (docs/explanation/scope.md): the vector instructions decide in every
precision; units for 16-bit numbers only in that precision; and the vendor, because the
approximation of `rsqrt`, which normalisations use, is the vendor's own. Not the name,
the model or the clock.
"""

_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "HygonGenuine": "Hygon"}
# The widest of these that a processor has chooses the kernels.
_VECTORS = ("sve", "asimd", "avx512f", "avx2", "avx", "sse4_2")
# Units for numbers of 16 bits, which only computations in that precision use.
_UNITS = {
    "mixed_bfloat16": ("avx_ne_convert", "avx512_bf16", "amx_bf16", "bf16"),
    "mixed_float16": ("avx_ne_convert", "avx512_fp16", "amx_fp16"),
}
_EVERY_UNIT = {unit for units in _UNITS.values() for unit in units}
# Of a run at level portable, the variables that hold the instruction set back.
_HELD_BACK = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_XLA_HELD_BACK = "--xla_cpu_max_isa="
PORTABLE = "portable"


def class_from(vendor: str, isa: list[str]) -> str:
    """Return the class of a processor in words, the vendor first: Intel avx512f.

    Args:
        vendor: as the processor names it, or its name.
        isa: its instruction sets (`environment.cpu_isa`).
    """
    vector = next((name for name in _VECTORS if name in isa), "no vector instructions")
    units = [name for name in isa if name in _EVERY_UNIT]
    return " ".join([_VENDORS.get(vendor) or _in_name(vendor), vector, *units])


def _in_name(name: str) -> str:
    """Return the vendor in a processor's name: Intel in Intel(R) Xeon(R) Processor."""
    known = (one for one in _VENDORS.values() if name.startswith(one))
    return next(known, name or "unknown vendor")


def classes_of(*records: dict) -> list[str]:
    """Return of each record the class on which its bits depend, to be compared.

    Args:
        records: of two runs, or of a run and this machine (`environment`, `runtime`).
            A run that was killed before its runtime was known has the narrowest class.
    """
    runtimes = [record["runtime"] for record in records]
    if all(runtimes) and all(r["level"] == PORTABLE for r in runtimes):
        return [" ".join([PORTABLE, *_held_back(runtime)]) for runtime in runtimes]
    matter = _EVERY_UNIT
    if all(runtimes):
        matter = {unit for r in runtimes for unit in _UNITS.get(r["precision"], ())}
    return [_narrowed(record["environment"], matter) for record in records]


def _narrowed(environment: dict, matter: set[str]) -> str:
    """Return the class of a recorded processor, without units that do not matter."""
    words = environment.get("cpu_class")
    if not words:  # a record of before there were classes
        words = class_from(environment["cpu"], environment["cpu_isa"])
    kept = [w for w in words.split(" ") if w not in _EVERY_UNIT or w in matter]
    return " ".join(kept)


def _held_back(runtime: dict) -> list[str]:
    """Return to which instruction sets a run at level portable kept."""
    variables = runtime["variables"]
    found = [f"{name}={variables[name]}" for name in _HELD_BACK if name in variables]
    flags = str(variables.get("XLA_FLAGS", "")).split()
    return found + [flag for flag in flags if flag.startswith(_XLA_HELD_BACK)]
