"""The picture of `gpuzoo compress`: quality over size and over latency.

The same results give the same file.
"""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gpuzoo.report.plots import _GREY, _INK, _MUTED, plain, png_bytes

_AXES = (
    ("bytes", "size of the file (kB)", 1e3),
    ("gzip_bytes", "size of the file in gzip (kB)", 1e3),
    ("latency_us", "latency of one example (µs)", 1),
)
_COLOURS = (_INK, "#c8553d", "#7aa6d8", "#4f9d69", "#b58db6", "#d9a441", "#2a6f97",
            "#8d5524")  # fmt: skip


def frontier(found: dict) -> bytes:
    """Return the picture as the content of a PNG file.

    Args:
        found: as `gpuzoo.compress` returns it.
    """
    rows = found["forms"]
    plain_forms = [row["name"] for row in rows if not row["int8"]]
    styles = {row["name"]: _style(row, plain_forms) for row in rows}
    with plain():
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        panels = figure.subplots(1, len(_AXES), sharey=True)
        for axes, (key, label, unit) in zip(panels, _AXES, strict=True):
            _panel(axes, found, key, unit, styles)
            axes.set_xlabel(label)
        panels[0].set_ylabel(found["metric"])
        if found["metric"] == "accuracy":
            panels[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.2f} %")
        elif found["metric"] == "error":
            panels[0].invert_yaxis()
        names = [
            Line2D([], [], ls="", label=row["name"], **styles[row["name"]])
            for row in rows
        ]
        line = Line2D([], [], color=_GREY, lw=1, label="Pareto front")
        figure.legend(
            handles=[*names, line], loc="outside right center", frameon=False,
            fontsize=9,
        )  # fmt: skip
        figure.suptitle(
            f"{found['model']} on {found['data']}, in {found['runtime']}",
            color=_MUTED, fontsize=9,
        )  # fmt: skip
        return png_bytes(figure)


def _style(row: dict, names: list[str]) -> dict:
    """Return a colour for each form, the same for its quantized one, a diamond."""
    base = "original" if row["name"] == "int8" else row["name"].removesuffix("-int8")
    colour = _COLOURS[names.index(base) % len(_COLOURS)]
    style = {"marker": "D" if row["int8"] else "o", "ms": 6 if row["int8"] else 8,
             "mec": colour, "color": colour}  # fmt: skip
    return {**style, "mfc": "white"} if row["refused"] else style


def _panel(axes, found: dict, key: str, unit: float, styles: dict) -> None:
    best = sorted(
        (row[key] / unit, row["value"])
        for row in found["forms"]
        if row["name"] in found["frontier"][key]
    )
    axes.plot(
        *zip(*best, strict=True), drawstyle="steps-post", color=_GREY, lw=1, zorder=1
    )
    for row in found["forms"]:
        place = row[key] / unit, row["value"]
        axes.plot(*place, ls="", zorder=2, **styles[row["name"]])
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else ""
    )
    axes.tick_params(which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
