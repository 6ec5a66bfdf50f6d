"""The hash chain of digests.jsonl, and its Merkle root.

The `chain` of a row is the sha256 of the `chain` of the row before and of the row
itself: whoever changes, leaves out, adds or moves a row must renew all that follow. The
root, which run.json holds, is that of a Merkle tree over the rows as in RFC 6962,
section 2.1 (Certificate Transparency): the hash of a leaf begins with a byte 0, that of
a node with a byte 1, so that no node passes for a leaf. Whoever keeps the root, 64
characters, can tell later that a trail is the one that it was made of.

Neither needs a secret: both detect that a trail was changed after its root was known to
somebody else, by a signature for example. That the trail is that of a training is what
`gpuzoo verify` and `gpuzoo audit` check.
"""

import hashlib
import json

START = "0" * 64
"""The chain before the first row."""


def chained(row: dict, before: str) -> dict:
    """Return a row with its `chain`.

    Args:
        before: the chain of the row before it, or START.
    """
    return {**row, "chain": _after(row, before)}


def check(rows: list[dict]) -> None:
    """Raise ValueError if a row does not follow from the one before. Rows without any
    chain, of earlier versions, are not checked."""
    before = START
    if not any("chain" in row for row in rows):
        return
    for number, row in enumerate(rows, start=1):
        if row.get("chain") != _after(row, before):
            raise ValueError(
                f"line {number} (step {row['step']}): its chain does not follow from "
                "the lines before it"
            )
        before = row["chain"]


def record(rows: list[dict]) -> dict:
    """Return what run.json holds of a trail: the number of rows, the chain of the last
    one and the Merkle root."""
    last = rows[-1]["chain"] if rows else START
    root = merkle_root(list(map(_canonical, rows)))
    return {"rows": len(rows), "chain": last, "root": root}


def merkle_root(leaves: list[bytes]) -> str:
    """Return the root of the Merkle tree over so many leaves."""
    level = [hashlib.sha256(b"\0" + leaf).digest() for leaf in leaves]
    if not level:
        return hashlib.sha256(b"").hexdigest()
    while len(level) > 1:  # a last one without a partner moves up
        pairs = zip(level[::2], level[1::2], strict=False)
        nodes = [hashlib.sha256(b"\1" + one + two).digest() for one, two in pairs]
        level = nodes + level[len(level) - len(level) % 2 :]
    return level[0].hex()


def without(row: dict) -> dict:
    """Return a row without its chain: what it says about the training."""
    return {name: value for name, value in row.items() if name != "chain"}


def _after(row: dict, before: str) -> str:
    content = bytes.fromhex(before) + _canonical(without(row))
    return hashlib.sha256(content).hexdigest()


def _canonical(row: dict) -> bytes:
    return json.dumps(row, sort_keys=True, separators=(",", ":")).encode()
