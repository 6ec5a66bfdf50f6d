"""The diagram of a model: a line for each block, and lanes that show what feeds it."""

import collections
import dataclasses
import shutil
import textwrap
from collections.abc import Iterable

_HEADS = ("name", "puts out", "parameters", "made of")


@dataclasses.dataclass
class Block:
    """A layer with all that merely follows it: what normalises, activates, pools or
    reshapes its output, but does not flatten or average it away."""

    name: str
    """That of its first layer."""
    kinds: list[str]
    shape: str
    """Of what it puts out, without the batch."""
    parameters: int
    """Of one, if it is repeated."""
    sources: list[int]
    """Numbers of the blocks that feed it."""
    group: tuple[int, int, int] = (0, 1, 1)
    """Its place in a group that is repeated, the group's length, and how often."""


def networks_of(model: "keras.Model") -> Iterable["keras.Model"]:  # noqa: F821
    """The functional models that a model is or consists of, outer ones first."""
    import keras

    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    if isinstance(model, keras.Function):
        yield model
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from networks_of(layer)


def blocks_of(network: "keras.Model") -> list[Block]:  # noqa: F821
    """The blocks of a functional model, those that feed others first.

    Equal groups of blocks that follow each other are there once, with their number.
    """
    depths = network._nodes_by_depth  # as keras.utils.plot_model does
    nodes = [node for depth in sorted(depths, reverse=True) for node in depths[depth]]
    feeding = {node: dict.fromkeys(node.parent_nodes) for node in nodes}
    uses = collections.Counter(one for ones in feeding.values() for one in ones)
    ends = {id(tensor) for tensor in network.outputs}
    needed = ends | {id(tensor) for node in nodes for tensor in node.input_tensors}
    blocks, place, counted = [], {}, set()
    for node in nodes:
        layer, parents = node.operation, [n for n in feeding[node] if n in place]
        count = 0 if layer in counted else _count(layer)
        counted.add(layer)
        uses[node] += any(id(tensor) in ends for tensor in node.outputs)
        shape = _shape([tensor for tensor in node.outputs if id(tensor) in needed])
        if len(parents) == 1 and uses[parents[0]] == 1:
            block = blocks[place[parents[0]]]
            if not (parents[0].is_input or _begins(layer, block, shape)):
                block.kinds.append(_kind(layer))
                block.shape, block.parameters = shape, block.parameters + count
                place[node] = place[parents[0]]
                continue
        place[node] = len(blocks)
        sources = sorted({place[parent] for parent in parents})
        blocks.append(Block(layer.name, [_kind(layer)], shape, count, sources))
    return _folded(blocks)


def draw(network: "keras.Model") -> str:  # noqa: F821
    """The diagram, as wide as the terminal, a line for each block.

    Lanes at the left are outputs on their way: a dot is a block, and what meets it
    from the side or from above feeds it.
    """
    blocks = blocks_of(network)
    (ways, below), marks = _lanes(blocks), _marks(blocks)
    width = max(map(len, ways)) + 2
    rows = [
        (f"{way:<{width}}{mark}{block.name}", block.shape, _number(block.parameters))
        for way, mark, block in zip(ways, marks, blocks, strict=True)
    ]
    heads = (" " * (width + len(marks[0])) + _HEADS[0], *_HEADS[1:3])
    sizes = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    used = sum(sizes) + 2 * len(sizes)
    room = max(shutil.get_terminal_size().columns - used, 20)
    lines = [_line(heads, sizes, _HEADS[3])]
    for row, way, block in zip(rows, below, blocks, strict=True):
        first, *more = textwrap.wrap(", ".join(block.kinds), room)
        lines.append(_line(row, sizes, first))
        lines += [f"{way:<{used}}{text}" for text in more]
    return "\n".join(lines)


def _line(cells: tuple[str, ...], sizes: list[int], last: str) -> str:
    name, shape, count = cells
    return f"{name:<{sizes[0]}}  {shape:<{sizes[1]}}  {count:>{sizes[2]}}  {last}"


def _number(count: int) -> str:
    return f"{count:,}" if count else ""


def _begins(layer, block: Block, shape: str) -> bool:
    """Whether a block begins with this layer, although only one feeds it: what has a
    matrix, or weights where that block has none, and what makes one row of a map."""
    sizes = [len(weight.shape) for weight in getattr(layer, "weights", ())]
    weighty = max(sizes, default=0) > 1 or (sizes and not block.parameters)
    flat = "x" in block.shape and "x" not in shape
    return bool(weighty) or flat or hasattr(layer, "layers")


def _count(layer) -> int:
    return layer.count_params() if hasattr(layer, "count_params") else 0


def _kind(layer) -> str:
    """Its class, with the size of a convolution's window and what it activates."""
    kind = type(layer).__name__.replace("Normalization", "Norm")
    size = getattr(layer, "kernel_size", None)
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    if kind == "Activation":
        return activation
    if isinstance(size, tuple):
        kind += f" {'x'.join(map(str, size))}"
        stride = getattr(layer, "strides", (1,))[0]
        kind += f"/{stride}" * (stride > 1)
    plain = activation == "linear" or hasattr(layer, "cell")
    return kind if plain else f"{kind} {activation}"


def _shape(tensors) -> str:
    shapes = [
        "x".join("?" if side is None else str(side) for side in tensor.shape[1:])
        for tensor in tensors
    ]
    return ", ".join(shape or "1" for shape in shapes)


def _folded(blocks: list[Block]) -> list[Block]:
    """The same, equal groups that follow each other being there once."""
    looks = [
        (block.kinds, block.shape, block.parameters, [i - s for s in block.sources])
        for i, block in enumerate(blocks)
    ]
    read = list(range(len(blocks)))  # the last block that reads this one
    for i, block in enumerate(blocks):
        for source in block.sources:
            read[source] = i
    kept, new, i = [], {}, 0
    while i < len(blocks):
        length, times = _repeated(looks, read, i)
        for place in range(length):
            block = blocks[i + place]
            sources = sorted({new[source] for source in block.sources})
            new |= {i + n * length + place: len(kept) for n in range(times)}
            group = (place, length, times)
            kept.append(dataclasses.replace(block, sources=sources, group=group))
        i += length * times
    return kept


def _repeated(looks: list[tuple], read: list[int], start: int) -> tuple[int, int]:
    """Length and number of the equal groups that begin with a block and save most."""
    best = (0, 1, 1)
    for length in range(1, (len(looks) - start) // 2 + 1):
        group, times = looks[start : start + length], 1
        while True:
            end = start + (times + 1) * length
            if looks[end - length : end] != group:
                break
            # What is read from outside must stand in the last group.
            if max(read[start : end - length]) >= end:
                break
            times += 1
        best = max(best, (length * (times - 1), -length, times))
    return (max(-best[1], 1), best[2])


def _marks(blocks: list[Block]) -> list[str]:
    """What stands before the names: how often a group is repeated, and its bracket."""
    most = max(block.group[2] for block in blocks)
    if most == 1:
        return [""] * len(blocks)
    size, marks = len(f"{most}x "), []
    for block in blocks:
        place, length, times = block.group
        if times == 1:
            marks.append(" " * (size + 2))
            continue
        ends = "─" if length == 1 else "┌" if not place else "└"
        bracket = ends if place in (0, length - 1) else "│"
        often = f"{times}x" if not place else ""
        marks.append(f"{often:<{size}}{bracket} ")
    return marks


def _lanes(blocks: list[Block]) -> tuple[list[str], list[str]]:
    """For each block the lanes in its line, and those that go on below it."""
    last = {source: i for i, block in enumerate(blocks) for source in block.sources}
    lanes: list[int | None] = []
    drawn, below = [], []
    for i, block in enumerate(blocks):
        joined = [lanes.index(source) for source in block.sources]
        ended = [lane for lane in joined if last[lanes[lane]] == i]
        free = [lane for lane, source in enumerate(lanes) if source is None]
        at = min([*ended, *([] if ended else [*free, len(lanes)])])
        drawn.append(_crossing(lanes, at, joined, ended))
        lanes += [None] * (at + 1 - len(lanes))
        for lane in ended:
            lanes[lane] = None
        lanes[at] = i if i in last else None
        while lanes and lanes[-1] is None:
            lanes.pop()
        below.append(" ".join(" " if lane is None else "│" for lane in lanes))
    return drawn, below


def _crossing(lanes: list, at: int, joined: list[int], ended: list[int]) -> str:
    """The line of the block in lane `at`; `joined` lanes feed it, the `ended` ones of
    them nothing after it."""
    left, right = min([at, *joined]), max([at, *joined])
    text = ""
    for lane in range(max(len(lanes), at + 1)):
        inside = left <= lane <= right
        if lane == at:
            mark = "●"
        elif lane in joined:
            marks = "╯┴╰" if lane in ended else "┤┼├"
            mark = marks[0 if lane == right else 2 if lane == left else 1]
        elif lane < len(lanes) and lanes[lane] is not None:
            mark = "│"
        else:
            mark = "─" if inside else " "
        text += mark + ("─" if left <= lane < right else " ")
    return text.rstrip()
