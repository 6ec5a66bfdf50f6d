"""Compile every model for 1, 2, 4 and 8 cards that train together, without a GPU.

    python benchmarks/repeatability/gpu_devices.py   # goes on where it stopped
    python benchmarks/repeatability/gpu_devices.py --models cnn lstm --for t4

With `--elastic` a batch is always cut into 8 shards, and the result may not depend on
the number of devices. For that the program of a shard must be the same for each number:
it is compared to the byte (without names). Batch 80, so 10 in a shard; bfloat16.

Writes benchmarks/records/gpu_devices.json (--out) after each model; models that are
there are kept. `gpu_matrix.py --table` writes its table. Exit code 1 if the program of
a shard differs, something does not compile or may not repeat. All is predicted, nothing
measured.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

from gpu_matrix import HERE, kernels_of, markdown, recipe_of

RECORD = HERE / "records" / "gpu_devices.json"
COUNTS = (1, 2, 4, 8)
BATCH = 80  # wgan_gp needs a multiple of 5, and 8 shards one of 8
PRECISION = "mixed_bfloat16"

_TABLE = """\
## Several cards that train together

`--elastic` on {card} in {precision}, batch {batch} in 8 shards
(`benchmarks/repeatability/gpu_devices.py`): kernels of a step on one of 1, 2, 4 and 8
cards, and what one card receives in a step with 2 and with 8.
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--for", dest="card", default="h200", metavar="CARD")
    parser.add_argument("--out", type=pathlib.Path, default=RECORD)
    return parser.parse_args()


def compiled(model: str, card: str) -> dict:
    """Return what is told of a model's training step for each number of devices."""
    from gpuzoo.errors import GpuzooError
    from gpuzoo.gpus.compile import compile_for

    recipe = recipe_of(model).override(batch_size=BATCH, elastic=True)
    try:
        with tempfile.TemporaryDirectory() as kernels:
            found = compile_for(
                recipe, [card], (PRECISION,), kernels=kernels, devices=COUNTS
            )
    except GpuzooError as error:
        return {"refused": str(error)}
    if errors := [row["error"] for row in found["rows"] if row["error"]]:
        return {"error": errors[0]}
    return {"devices": [short(row) for row in found["rows"]]}


def short(row: dict) -> dict:
    step = row["programs"]["train"]
    return {
        "devices": row["devices"], "fits": row["fits"],
        "kernels": step["kernels_by_kind"], "flops": step["flops"],
        "received_bytes": sum(one["received_bytes"] for one in step["exchanges"]),
        "may_not_repeat": step["may_not_repeat"],
        "shard_sha256": step["shard_sha256"],
    }  # fmt: skip


def fault(model: dict) -> str:
    """Return what is not as it should be, or nothing."""
    if "devices" not in model:
        return model.get("error", "")
    if len({one["shard_sha256"] for one in model["devices"]}) > 1:
        return "the program of a shard depends on the number of devices"
    odd = [one for row in model["devices"] for one in row["may_not_repeat"]]
    return f"{odd[0]['operation']} of {odd[0]['layer']} may not repeat" if odd else ""


def section() -> list[str]:
    """Return the part of the page about several devices."""
    import gpuzoo

    record = json.loads(RECORD.read_text())
    rows = []
    for name, model in sorted(record["models"].items()):
        steps = model.get("devices", ())
        state = fault(model) or ("the same" if steps else "refused")
        received = {one["devices"]: one["received_bytes"] / 1e6 for one in steps}
        rows.append([
            name, state, ", ".join(f"{kernels_of(one):.0f}" for one in steps),
            f"{received[2]:.1f}, {received[8]:.1f} MB" if steps else "",
        ])  # fmt: skip
    refused = [
        f"- `{name}`: {model['refused']}"
        for name, model in sorted(record["models"].items()) if "refused" in model
    ]  # fmt: skip
    named = {name: record[name] for name in ("card", "precision", "batch")}
    missing = sorted(set(gpuzoo.list_models()) - record["models"].keys())
    left = ["", "Not compiled yet: " + ", ".join(f"`{name}`" for name in missing) + "."]
    return [
        _TABLE.format(**named),
        markdown(["model", "program of a shard", "kernels", "received"], rows),
        *(["", "Refused:", "", *refused] if refused else []),
        *(left if missing else []),
    ]


def main() -> None:
    args = parse()
    import gpuzoo
    from gpuzoo.files import write_atomically
    from gpuzoo.gpus.compile import check_installed
    from gpuzoo.runs.code import code_sha256

    record = {
        "what": "training steps in 8 shards, compiled for several cards, without a GPU",
        "kind": "predicted, not measured",
        "command": "python benchmarks/repeatability/gpu_devices.py",
        "card": args.card, "precision": PRECISION, "batch": BATCH,
        "versions": check_installed(), "models": {},
    }  # fmt: skip
    if args.out.exists():
        old = json.loads(args.out.read_text())
        if any(old[name] != record[name] for name in record if name != "models"):
            sys.exit(f"{args.out} is of another card, batch or compiler: remove it")
        record["models"] = old["models"]
    for name in sorted(args.models or gpuzoo.list_models()):
        if name in record["models"]:
            continue
        begun = time.perf_counter()
        record["models"][name] = {
            "code": code_sha256()[:16], "date": time.strftime("%Y-%m-%d"),
            **compiled(name, args.card),
        }  # fmt: skip
        write_atomically(args.out, (json.dumps(record, indent=1) + "\n").encode())
        state = fault(record["models"][name]) or record["models"][name].get(
            "refused", "ok"
        )
        print(f"{name}  {time.perf_counter() - begun:.0f} s  {state}", flush=True)
    sys.exit(any(fault(one) for one in record["models"].values()))


if __name__ == "__main__":
    main()
