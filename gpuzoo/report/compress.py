"""The picture of `gpuzoo compress`: quality over size and over latency.

The same results give the same file.
"""

from matplotlib.figure import Figure

from gpuzoo.report.plots import _GREY, _INK, _MUTED, _TEST, _TRAIN, plain, png_bytes

_AXES = (
    ("bytes", "size of the file (kB)", 1e3),
    ("gzip_bytes", "size of the file in gzip (kB)", 1e3),
    ("latency_us", "latency of one example (µs)", 1),
)


def frontier(found: dict) -> bytes:
    """Return the picture as the content of a PNG file.

    Args:
        found: as `gpuzoo.compress` returns it.
    """
    accuracy = found["metric"] == "accuracy"
    with plain():
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        panels = figure.subplots(1, len(_AXES), sharey=True)
        for axes, (key, label, unit) in zip(panels, _AXES, strict=True):
            _panel(axes, found, key, unit)
            axes.set_xlabel(label)
        panels[0].set_ylabel(found["metric"])
        if accuracy:
            panels[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.2f} %")
        else:
            panels[0].invert_yaxis()
        figure.suptitle(
            f"{found['model']} on {found['data']}, in {found['runtime']}: the line "
            "joins the forms that no other one beats",
            color=_MUTED, fontsize=9,
        )  # fmt: skip
        return png_bytes(figure)


def _panel(axes, found: dict, key: str, unit: float) -> None:
    rows = found["forms"]
    best = sorted(
        (row[key] / unit, row["value"])
        for row in rows
        if row["name"] in found["frontier"][key]
    )
    axes.plot(
        *zip(*best, strict=True), drawstyle="steps-post", color=_GREY, lw=1, zorder=1
    )
    for row in rows:
        place = row[key] / unit, row["value"]
        first = row is rows[0]
        axes.plot(
            *place, "s" if first else "o", ms=7, zorder=2,
            color=_TRAIN if first else _TEST,
            mfc="white" if row["refused"] else None,
        )  # fmt: skip
    _write_names(axes, [(row[key] / unit, row["value"], row["name"]) for row in rows])
    axes.set_xscale("log")
    axes.margins(x=0.18, y=0.15)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else ""
    )
    axes.tick_params(which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _write_names(axes, points: list[tuple[float, float, str]]) -> None:
    """Write names beside points, alternately above and below."""
    for number, (x, y, name) in enumerate(sorted(points)):
        above = number % 2 == 0
        axes.annotate(
            name, (x, y), (0, 8 if above else -8), textcoords="offset points",
            ha="center", va="bottom" if above else "top", fontsize=7.5, color=_INK,
        )  # fmt: skip
