"""`gpuzoo doctor --for CARD`: what the installed packages make of a card that this
machine does not have."""

from collections.abc import Iterator

from gpuzoo.catalogue.recipes import load_recipe
from gpuzoo.doctor import Finding, kernels_for, probe
from gpuzoo.errors import GpuzooError
from gpuzoo.gpus import cards
from gpuzoo.gpus.cards import MEMORY_FRACTION, Card
from gpuzoo.gpus.compile import compile_for
from gpuzoo.runtime.environment import is_installed
from gpuzoo.runtime.startup import choose_precision


def examine(name: str, *, quick: bool = False) -> Iterator[Finding]:
    """Check a card; `quick` compiles nothing.

    Raises:
        GpuzooError: no such card.
    """
    card = cards.load(name)
    yield _precision(card)
    yield Finding(
        "memory", True, f"{card.memory_bytes / 1e9:.0f} GB, of which JAX takes "
        f"{MEMORY_FRACTION:.0%} by default; gpuzoo compile RECIPE --for {name} says "
        "whether a recipe fits",
    )  # fmt: skip
    if is_installed("tensorflow"):
        yield _tensorflow(card)
    if is_installed("jax"):
        skipped = Finding("jax", True, "not checked (--quick)", checked=False)
        yield skipped if quick else _jax(name)


def _precision(card: Card) -> Finding:
    chosen, _ = choose_precision("auto", "gpu", card.capability)
    missing = [one for one in ("bfloat16", "float16") if card.flops[one] is None]
    what = f"--precision auto takes {chosen}"
    if missing:
        what += f"; {' and '.join(missing)} is computed in float32, slower"
    return Finding("precision", True, what)


def _tensorflow(card: Card) -> Finding:
    found = probe("tensorflow")
    if isinstance(found, str):
        return Finding("tensorflow", False, f"does not start: {found}",
                       "pip install --force-reinstall tensorflow")  # fmt: skip
    if not found["compiled_for"]:
        return Finding(
            "tensorflow", False, "the installed wheel is built without CUDA",
            "pip install 'tensorflow[and-cuda]', or use --backend jax",
        )  # fmt: skip
    built = f"built with CUDA {found['cuda']} for {', '.join(found['compiled_for'])}"
    here = f"compute capability {card.compute_capability}"
    match kernels_for(card.capability, found["compiled_for"]):
        case "native":
            return Finding("tensorflow", True, f"{built}: kernels for this card")
        case "translated":
            return Finding(
                "tensorflow", False, f"{built}, not for {here}: the driver translates "
                "all kernels at the first start (minutes), and compiling with XLA may "
                "end the process (TensorFlow issue 111958)",
                "use --backend jax; with TensorFlow, gpuzoo tries XLA in a child "
                "process and turns it off where that fails",
            )  # fmt: skip
    return Finding(
        "tensorflow", False, f"{built}, not for {here}: it does not run there",
        "another release of TensorFlow, or --backend jax if it compiles for the card",
    )  # fmt: skip


def _jax(name: str) -> Finding:
    try:
        recipe = load_recipe("mnist").override(data="digits")
        (row,) = compile_for(recipe, [name])["rows"]
    except GpuzooError as error:
        return Finding("jax", True, f"not checked: {error}", checked=False)
    if row["error"]:
        return Finding(
            "jax", False, row["error"], "another release of JAX's CUDA plugin may know "
            "the card: CUDA 13 needs compute capability 7.5, CUDA 12 takes older ones",
        )  # fmt: skip
    used = row["memory_bytes"] / 1e9
    return Finding(
        "jax", True, f"compiles the recipe mnist ({row['precision']}), which needs "
        f"{used:.2f} GB (predicted)",
    )  # fmt: skip
