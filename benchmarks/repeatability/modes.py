"""The options that choose modes, for layers.py and repeatable.py."""

import argparse

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def mode_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of backends, precisions, XLA, device, and the job of a worker."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS,
                        default=PRECISIONS)  # fmt: skip
    parser.add_argument("--backends", nargs="+", choices=("tensorflow", "jax"),
                        default=("tensorflow", "jax"))  # fmt: skip
    parser.add_argument("--xla", nargs="+", choices=("off", "on"),
                        default=("off", "on"),
                        help="TensorFlow's; JAX is always XLA")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser
