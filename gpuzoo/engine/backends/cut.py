"""A step of one shard, traced by JAX and cut where the shards exchange arrays.

Of each region between two exchanges, what is computed from the weights alone is the
same for every shard; the rest is the shard's own. Each becomes one program.
"""

import dataclasses
from collections.abc import Iterable

from jax.extend import core

from gpuzoo.errors import GpuzooError

exchange = core.Primitive("gpuzoo_exchange")
"""Marks where arrays are averaged over all shards of a batch."""
exchange.multiple_results = True
exchange.def_abstract_eval(lambda *arrays: list(arrays))

# What a value depends on: nothing; the weights; the examples of the shard.
CONSTANT, UNIFORM, OWN = range(3)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Equations of one kind of a region, as a function."""

    program: core.ClosedJaxpr
    uniform: tuple
    """Its first arguments: variables that are the same for every shard."""
    own: tuple
    """Its other arguments."""
    results: tuple
    """Variables that it computes."""


@dataclasses.dataclass(frozen=True)
class Region:
    """What is computed between two exchanges."""

    uniform: Piece | None
    """Computed once, and first."""
    own: Piece | None
    """Computed for every shard."""
    exchanged: tuple[tuple, ...]
    """Pairs of variables: a shard's own array, and the mean over all shards."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """A whole step in regions."""

    arguments: tuple
    regions: tuple[Region, ...]
    results: tuple
    """Variables or literals."""
    kinds: dict
    """Variable -> CONSTANT, UNIFORM or OWN."""

    def is_own(self, atom) -> bool:
        """Whether a result differs from shard to shard."""
        return not isinstance(atom, core.Literal) and self.kinds[atom] == OWN


class _Open:
    """A region that is being filled."""

    def __init__(self):
        self.equations: dict[int, list] = {UNIFORM: [], OWN: []}
        self.exchanged: list[tuple] = []


def cut(closed: core.ClosedJaxpr, uniform: Iterable[bool]) -> Cut:
    """Cut a step.

    Args:
        closed: the step, traced for one shard.
        uniform: of each argument, whether it is the same for every shard.

    Raises:
        GpuzooError: an exchange within a loop or a condition.
    """
    jaxpr = closed.jaxpr
    kinds = dict.fromkeys(jaxpr.constvars, CONSTANT)
    pairs = zip(jaxpr.invars, uniform, strict=True)
    kinds |= {one: UNIFORM if same else OWN for one, same in pairs}
    constants, same, regions = [], {}, [_Open()]

    def kind_of(atom) -> int:
        return CONSTANT if isinstance(atom, core.Literal) else kinds[atom]

    def resolved(atom):
        return atom if isinstance(atom, core.Literal) else same.get(atom, atom)

    for equation in jaxpr.eqns:
        given = [resolved(atom) for atom in equation.invars]
        if equation.primitive is exchange:
            for atom, mean in zip(given, equation.outvars, strict=True):
                if kind_of(atom) == OWN:
                    regions[-1].exchanged.append((atom, mean))
                    kinds[mean] = UNIFORM
                else:  # the mean of equal arrays
                    same[mean] = atom
            regions.append(_Open())
            continue
        _refuse_nested(equation)
        kind = max(map(kind_of, given), default=CONSTANT)
        kinds |= dict.fromkeys(equation.outvars, kind)
        equations = regions[-1].equations[kind] if kind else constants
        equations.append(equation.replace(invars=given))
    results = tuple(map(resolved, jaxpr.outvars))
    pieces = _pieces(closed, constants, regions, results, kinds)
    return Cut(tuple(jaxpr.invars), pieces, results, kinds)


def _pieces(closed, constants: list, regions: list[_Open], results, kinds: dict):
    """Return the regions, each with what later ones need as results."""
    needed, found = set(_variables(results)), []
    for place, region in reversed([*enumerate(regions)]):
        needed.update(atom for atom, _ in region.exchanged)
        # Of constants, only results are needed outside of the pieces that use them.
        spare = constants if place == len(regions) - 1 else []
        pieces: dict[int, Piece | None] = {OWN: None, UNIFORM: None}
        for kind in pieces:
            equations = region.equations[kind]
            computed = [*equations, *(spare if kind == UNIFORM else [])]
            outs = [v for one in computed for v in one.outvars if v in needed]
            if outs:
                piece = _piece(closed, constants, equations, outs, kinds)
                needed.update(piece.uniform, piece.own)
                pieces[kind] = piece
        exchanged = tuple(region.exchanged)
        found.append(Region(pieces[UNIFORM], pieces[OWN], exchanged))
    return tuple(reversed(found))


def _piece(closed, constants: list, equations: list, outs: list, kinds: dict) -> Piece:
    inside = {v for one in equations for v in one.outvars}
    given = dict.fromkeys(
        v for one in equations for v in _variables(one.invars)
        if v not in inside and kinds[v] != CONSTANT
    )  # fmt: skip
    uniform = tuple(v for v in given if kinds[v] == UNIFORM)
    own = tuple(v for v in given if kinds[v] == OWN)
    jaxpr = closed.jaxpr.replace(
        invars=[*uniform, *own], outvars=outs, eqns=[*constants, *equations],
        debug_info=closed.jaxpr.debug_info.with_unknown_names(),
    )  # fmt: skip
    program = core.ClosedJaxpr(jaxpr, closed.consts)
    return Piece(program, uniform, own, tuple(outs))


def _variables(atoms) -> list:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _refuse_nested(equation) -> None:
    """Raise GpuzooError if weights are updated within a loop or a condition."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else [value]:
            jaxpr = getattr(inner, "jaxpr", inner)
            for one in getattr(jaxpr, "eqns", ()):
                if one.primitive is exchange:
                    raise GpuzooError(
                        "weights are updated within a loop or a condition of the step, "
                        "which shards cannot do; leave elastic and devices out"
                    )
                _refuse_nested(one)
