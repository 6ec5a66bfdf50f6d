"""The report of `gpuzoo robustness`: pictures, and one page of HTML that holds them.

The page has no scripts and loads nothing. The same results give the same files.
"""

import base64
import html
import json

import numpy as np
from matplotlib.figure import Figure

from gpuzoo.report.plots import _GREY, _INK, _MUTED, _TEST, _TRAIN, plain, png_bytes

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a2e; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .8rem 0 }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #e3e4ea }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; height: auto } p.note { color: #a03c24 }
footer { color: #6c7186; font-size: .85rem; margin-top: 2.5rem;
         overflow-wrap: anywhere }
"""


def files(found: dict, examples: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Return the files of a report: name -> content.

    Args:
        found: as `gpuzoo.robustness` returns it.
        examples: kind of corruption -> an image, and the same at each severity.
    """
    with plain():
        figures = {}
        if "corruptions" in found:
            figures["corruptions.png"] = _heat_map(found)
            figures["examples.png"] = _sheet(examples)
        if "attacks" in found:
            figures["attacks.png"] = _attacks(found)
        if "calibration" in found:
            figures["reliability.png"] = _reliability(found["calibration"])
        made = {name: png_bytes(figure) for name, figure in figures.items()}
    made["robustness.html"] = _page(found, made).encode()
    made["robustness.json"] = (json.dumps(found, indent=1) + "\n").encode()
    return made


# --- pictures -----------------------------------------------------------------------


def _heat_map(found: dict) -> Figure:
    rows = found["corruptions"]["accuracy"]
    values = np.array([[found["clean"]["accuracy"], *row] for row in rows.values()])
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column, row, f"{value:.1%}", ha="center", va="center", fontsize=8,
            color="white" if value > 0.6 else _INK,
        )  # fmt: skip
    axes.set_xticks(range(6), ["none", *"12345"])
    axes.set_yticks(range(len(rows)), [kind.replace("_", " ") for kind in rows])
    axes.set_xlabel("severity")
    axes.set_title("accuracy on corrupted images", loc="left", color=_INK)
    figure.colorbar(image, format=lambda value, _: f"{value:.0%}", shrink=0.6)
    return figure


def _sheet(examples: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(7, 1.12 * len(examples)), layout="constrained")
    grid = figure.subplots(len(examples), 6, squeeze=False)
    for row, (kind, images) in zip(grid, examples.items(), strict=True):
        for axes, image in zip(row, images, strict=True):
            grey = image.shape[-1] == 1
            brightest = 255 if image.dtype == np.uint8 else 1
            axes.imshow(
                image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=brightest
            )
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(
            kind.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=9
        )
    for axes, text in zip(grid[0], ["none", *"12345"], strict=True):
        axes.set_title(text, fontsize=9, color=_INK)
    return figure


def _attacks(found: dict) -> Figure:
    part, clean = found["attacks"], found["clean"]["accuracy"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    places = np.argsort(part["epsilons"], kind="stable")
    sizes = [0, *np.array(part["epsilons"])[places]]
    for name, text, colour in (
        ("fgsm", "FGSM", _TRAIN), ("pgd", f"PGD-{part['pgd_steps']}", _TEST),
    ):  # fmt: skip
        values = [clean, *np.array(part[name])[places]]
        axes.plot(sizes, values, "o-", color=colour, label=text)
    axes.set(ylim=(-0.02, 1.02), xlabel="largest change of a pixel (white is 1)")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title("accuracy under attack", loc="left", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def _reliability(part: dict) -> Figure:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    titles = "as trained", f"temperature {part['temperature']:.3f}"
    for axes, name, title in zip(
        figure.subplots(1, 2), ("before", "after"), titles, strict=True
    ):
        one, width = part[name], 1 / part["bins"]
        middles = (np.arange(part["bins"]) + 0.5) * width
        filled = np.array(one["examples"]) > 0
        axes.bar(
            middles[filled], np.array(one["accuracy"])[filled], 0.92 * width,
            color=_TRAIN, label="accuracy",
        )  # fmt: skip
        axes.plot(
            np.array(one["confidence"])[filled], np.array(one["confidence"])[filled],
            "o", color=_TEST, ms=4, label="confidence",
        )  # fmt: skip
        axes.plot([0, 1], [0, 1], color=_MUTED, lw=0.8)
        share = np.array(one["examples"]) / sum(one["examples"])
        axes.step(
            np.arange(part["bins"] + 1) * width, [*share, share[-1]], where="post",
            color=_GREY, lw=0.8, label="part of the images",
        )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence")
        axes.set_title(
            f"{title}: calibration error {one['ece']:.4f}", loc="left", color=_INK,
            fontsize=10,
        )  # fmt: skip
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", fontsize=8)
    return figure


# --- the page -----------------------------------------------------------------------


def _page(found: dict, pictures: dict[str, bytes]) -> str:
    text = html.escape
    title = f"Robustness of {found['model']} on {found['data']}"
    clean = found["clean"]
    parts = [
        f"<h1>{text(title)}</h1>",
        f"<p>Run {text(found['run'])}, recipe {text(found['recipe'])}: "
        f"{clean['accuracy']:.2%} of {found['examples']} unchanged test images are "
        f"classified correctly (log loss {clean['log_loss']:.4f}); the test set has "
        f"{found['test_examples']}.</p>",
    ]
    for name, write in _PARTS.items():
        if name in found:
            parts.append(write(found, pictures))
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    parts.append(
        f"<footer>Seed {found['seed']}, {text(found['backend'])}, "
        f"{text(found['precision'])}; {text(versions)}; weights "
        f"{text(found['weights_sha256'])}; run id {text(found['run_id'])}. All "
        "numbers: robustness.json.</footer>"
    )
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _corruption_part(found: dict, pictures: dict[str, bytes]) -> str:
    part = found["corruptions"]
    return (
        "<h2>Corrupted images</h2>"
        f"<p>Mean accuracy over 15 kinds and 5 severities: "
        f"{part['mean_accuracy']:.2%}. The kinds are after "
        f"{html.escape(part['after'])}.</p>"
        f"{_picture('corruptions.png', 'Accuracy by kind and severity', pictures)}"
        f"{_picture('examples.png', 'One image in all corruptions', pictures)}"
    )


def _attack_part(found: dict, pictures: dict[str, bytes]) -> str:
    part = found["attacks"]
    rows = [["largest change of a pixel", *(f"{e:.4g}" for e in part["epsilons"])]]
    for name, text in (("fgsm", "FGSM"), ("pgd", f"PGD-{part['pgd_steps']}")):
        rows.append([text, *(f"{value:.2%}" for value in part[name])])
    return (
        "<h2>Adversarial examples</h2><p>Images that are classified correctly with and "
        f"without the attack.</p>{_table(rows)}{_findings(part)}"
        f"{_picture('attacks.png', 'Accuracy under attack', pictures)}"
    )


def _calibration_part(found: dict, pictures: dict[str, bytes]) -> str:
    part = found["calibration"]
    rows = [["", "calibration error", "log loss"]]
    for name, text in (
        ("before", "as trained"),
        ("after", f"temperature {part['temperature']:.3f}"),
    ):
        one = part[name]
        rows.append([text, f"{one['ece']:.4f}", f"{one['log_loss']:.4f}"])
    return (
        f"<h2>Calibration</h2><p>Expected calibration error of {part['bins']} bins. "
        f"The temperature was fitted on {html.escape(part['fitted_on'])}.</p>"
        f"{_table(rows)}{_findings(part)}"
        f"{_picture('reliability.png', 'Reliability before and after', pictures)}"
    )


def _ood_part(found: dict, pictures: dict[str, bytes]) -> str:
    part = found["ood"]
    rows = [["score", "AUROC", "others passed at 95 %"]]
    for name in ("confidence", "energy"):
        passed = f"{part[name]['false_positives_at_95']:.2%}"
        rows.append([name, f"{part[name]['auroc']:.4f}", passed])
    return (
        f"<h2>Other data</h2><p>{part['examples']} images of "
        f"{html.escape(part['data'])}, told from the run's by each score.</p>"
        f"{_table(rows)}"
    )


_PARTS = {
    "corruptions": _corruption_part,
    "attacks": _attack_part,
    "calibration": _calibration_part,
    "ood": _ood_part,
}


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    cells = "".join(f"<th>{html.escape(one)}</th>" for one in head)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(one)}</td>" for one in row) + "</tr>"
        for row in body
    ]
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"


def _findings(part: dict) -> str:
    return "".join(
        f'<p class="note">{html.escape(line)}</p>' for line in part["findings"]
    )


def _picture(name: str, alt: str, pictures: dict[str, bytes]) -> str:
    data = base64.b64encode(pictures[name]).decode()
    return f'<p><img alt="{alt}" src="data:image/png;base64,{data}"></p>'
