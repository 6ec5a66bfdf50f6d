"""report.html of a run: what it holds, that it follows from the run, and how it looks
in a real Chromium."""

import base64
import hashlib
import html
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT

import gpuzoo
from gpuzoo.report import charts, page
from gpuzoo.runs import derived
from gpuzoo.runs.folder import RunFolder
from gpuzoo.runs.record import read_run, seal

NAMES = [
    "<script>alert(1)<", "<img src=x onerror=alert(1)>", "\"' onload='alert(1)",
    "&lt;b&gt; {{ 7 * 7 }} {% raw %}", "\u202eright-to-left \u05d0\u05d1",
    "long-" + 30 * "W", "\u001b[31mred", "*/ </style",
]  # fmt: skip
NAMES = [name.replace("/", "\u2215") for name in NAMES]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, runtime):
    """A finished run on a folder of images whose classes have hostile names."""
    place = tmp_path_factory.mktemp("report")
    data, rng = place / "a 'data' <b>", np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        for split, count in (("train", 6), ("test", 3)):
            folder = data / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 40, (14, 14)) + 25 * number
                PIL.Image.fromarray(pixels.astype(np.uint8)).save(
                    folder / f"{index}.png"
                )
    gpuzoo.train(
        "mnist", data=str(data), model="mlp", model_options=("units=(8,)",), epochs=3,
        batch_size=12, out=str(place / "run"), quiet=True,
    )  # fmt: skip
    return place / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, to be spoiled."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def text_of(content: bytes) -> str:
    """The text of a page, without its tags."""
    body = content.decode().partition("<body>")[2].partition("<script>")[0]
    return html.unescape(re.sub(r"<[^>]*>", "", body))


def written(run) -> bytes:
    page.report(run)
    return (run / "report.html").read_bytes()


def change(run, **fields) -> dict:
    """A record as gpuzoo would have written it for another run."""
    record = json.loads((run / "run.json").read_text()) | fields
    record["seal"] = seal(record)
    (run / "run.json").write_text(json.dumps(record))
    return record


# --- what it holds ------------------------------------------------------------------


def test_the_page_holds_the_whole_run(trained):
    record = read_run(trained)
    content = (trained / "report.html").read_bytes()
    text = text_of(content)
    accuracy = f"{record['metrics']['test_accuracy']:.2%}".replace("%", " %")
    assert f"test accuracy of {accuracy}" in " ".join(text.split())
    for name in NAMES:
        assert name in text, name
    for part in (record["recipe"], record["environment"]["versions"], record["files"],
                 record["code"], record["runtime"]["reasons"]):  # fmt: skip
        for key, value in part.items():
            assert str(key) in text and page._cell(value) in text, key
    for value in (record["id"], record["seal"], record["data"]["fingerprint"]):
        assert value in text
    assert "Not verified yet" in text and "gpuzoo verify ." in text
    raw = text[text.index('{\n "schema"') :]
    assert json.JSONDecoder().raw_decode(raw)[0] == record
    shown = re.findall(rb'src="data:image/png;base64,([^"]*)"', content)
    pictures = ("confusion.png", "mistakes.png")
    assert [base64.b64decode(one) for one in shown] == [
        (trained / name).read_bytes() for name in pictures if (trained / name).exists()
    ]
    assert content.count(b"<polyline") == 4  # loss and accuracy of train and test


def test_the_same_run_gives_the_same_bytes(trained, run):
    before = (trained / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert written(run) == before and written(run) == before
    assert not list(run.glob("*kept*"))
    page.report(run, run.parent / "other.html")
    assert (run.parent / "other.html").read_bytes() == before
    with pytest.raises(gpuzoo.GpuzooError, match="exists; name a new file"):
        page.report(run, run.parent / "other.html")


def test_the_command_repeats_the_run(cli, tmp_path):
    words = ["train", "mnist", "--data", "digits", "--model", "mlp", "--epochs", "1",
             "--model-options", "units=(8,)", "--device", "cpu", "--quiet"]  # fmt: skip
    done = cli(*words, "--out", "a b")
    assert done.returncode == 0, done.stderr
    text = text_of((tmp_path / "a b" / "report.html").read_bytes())
    (line,) = re.findall(r"python -m gpuzoo train .*", text)
    again = shlex.split(line)[3:]
    assert again == [*words, "--out", "a b"]
    repeated = cli(*again[:-1], "second")
    assert repeated.json["weights_sha256"] == done.json["weights_sha256"]
    verified = cli("verify", ".", program=("-c", VERIFY_IN, "a b"))
    assert verified.returncode == 0, verified.stderr
    text = text_of((tmp_path / "a b" / "report.html").read_bytes())
    assert "Last verify: identical" in text and "Not verified" not in text
    assert "of 5 of 5 steps and the final weights are the same" in " ".join(
        text.split()
    )
    other = cli("report", "a b")
    assert other.returncode == 0 and other.json == {"report": "a b/report.html"}
    assert cli("report", "nowhere").returncode == 2
    with RunFolder.open(tmp_path / "a b"):  # as a process that resumes it
        locked = cli("report", "a b")
        assert locked.returncode == 2 and "locked by another" in locked.stderr


VERIFY_IN = """
import os, sys
os.chdir(sys.argv.pop(1))
from gpuzoo.__main__ import main
main()
"""


TASKS = [
    path.stem
    for path in sorted((ROOT / "gpuzoo" / "tasks").glob("*.py"))
    if "\nclass Task(" in path.read_text() and path.stem != "base"
]


@pytest.mark.parametrize("task", TASKS)
def test_the_page_of_every_task(task, run):
    """The page imports no Keras; it must say what the tasks say."""
    from gpuzoo import tasks

    kind = tasks.load(task)
    names = dict.fromkeys(m.name for m in (*kind.metrics, kind.headline))
    values = {f"test_{name}": 0.25 + n for n, name in enumerate(names)}
    recorded = read_run(run)
    files = {k: v for k, v in recorded["files"].items() if not k.endswith(".png")}
    for name in kind.pictures:
        PIL.Image.new("L", (2, 2)).save(run / f"{name}.png")
        content = (run / f"{name}.png").read_bytes()
        files[f"{name}.png"] = hashlib.sha256(content).hexdigest()
    recipe = recorded["recipe"] | {"task": task, "label_smoothing": 0.1}
    record = change(run, recipe=recipe, metrics=values, files=files)
    name, value = page.main_metric(record)
    best = kind.headline
    assert name == f"test {best.name}"
    wanted = best.text(values[name.replace(" ", "_")]).replace("%", " %")
    assert value == wanted
    made = gpuzoo.Recipe(**recipe)
    assert set(page.only_in_training(recipe).split(" and ")) == set(
        kind.only_in_training(made).split(" and ")
    )
    content = written(run)
    assert content.count(b'src="data:image/png') == len(kind.pictures)


def test_what_the_page_says_of_a_verdict(run):
    record = read_run(run)
    found = {
        "verdict": "differs", "exit_code": 1, "run_dir": "secret", "steps": 2,
        "first_difference": {"step": 2, "what": "loss", "variables": []},
        "weights": {}, "rows": ["<i>row</i>"] * 30, "figures": [], "environment": [],
        "causes": [f"{pathlib.Path.home()}/x changed"], "changed_files": ["curves.png"],
    }  # fmt: skip
    content = derived.verdict_file(found, record, "9.9")
    assert b"secret" not in content and str(pathlib.Path.home()).encode() not in content
    (run / "verify.json").write_bytes(content)
    text = " ".join(text_of(written(run)).split())
    for part in ("Last verify: differs", "gpuzoo 9.9", "First difference: loss of step 2",
                 "~/x changed", "<i>row</i>", "And 12 more"):  # fmt: skip
        assert part in text, part
    # Of another state of the run, edited or damaged: it is not shown.
    for other in (content.replace(b"differs", b"identical"), b"{", b"[]", b"\xff",
                  derived.verdict_file(found, record | {"seal": "0"}, "9.9"),
                  derived.verdict_file(found, record | {"id": "1"}, "9.9")):  # fmt: skip
        (run / "verify.json").write_bytes(other)
        assert "Not verified yet" in text_of(written(run)), other
    # An edited record says so, and proves nothing.
    (run / "run.json").write_text(json.dumps(record | {"steps": 7}))
    assert "run.json has been changed since gpuzoo wrote it" in " ".join(
        text_of(written(run)).split()
    )


def test_which_weights_were_kept(run):
    """Those of the best validation, and not of the last step."""
    record = read_run(run)
    best = {"epoch": 2, "step": 8, "monitor": "val_loss", "value": 0.25, "kept": True,
            "stopped_early": False}  # fmt: skip
    metrics = {"val_loss": 0.25, **record["metrics"]}
    data = {**record["data"], "val_examples": 1234}
    change(run, best=best, metrics=metrics, data=data)
    rows = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(rows.replace('"test"', '"val"'))
    content = written(run)
    text = " ".join(text_of(content).split())
    kept = (
        "those of step 8, where val_loss was best: 0.25, on 1,234 validation examples."
    )
    assert kept in text and "val loss0.2500" in text and "val, last" in text
    change(run, best={**best, "kept": False})
    assert "where val_loss was best" not in text_of(written(run))


def test_changed_and_missing_files_are_named(run):
    (run / "confusion.png").write_bytes(b"<svg onload=alert(1)>")
    (run / "metrics.jsonl").write_text('{"split": "test"}\n')
    text = text_of(written(run))
    assert "confusion.png has been changed since the run ended" in text
    assert "metrics.jsonl cannot be read, there are no curves" in text
    (run / "confusion.png").unlink()
    (run / "confusion.png").symlink_to(run / "curves.png")
    text = text_of(written(run))
    assert "confusion.png cannot be read" in text


def test_runs_that_did_not_finish(run, cli_here, tmp_path):
    """At every state that a record may have there is a page."""
    keep = ("schema", "id", "started", "finished", "command", "environment", "code",
            "inputs", "recipe", "options", "fast_dev_run", "data", "runtime")  # fmt: skip
    record = {name: read_run(run)[name] for name in keep}
    bare = {**record, "code": None, "data": None, "runtime": None}
    for fields in (bare, record):
        for state in ("running", "failed", "diverged"):
            left = {**fields, "state": state, "metrics": {}, "error": "it <failed>"}
            left["seal"] = seal(left)
            (run / "run.json").write_text(json.dumps(left))
            text = text_of(written(run))
            assert f"the run is {state}" in text and "it <failed>" in text
    done = cli_here("train", "mnist", "--data", "digits", "--model", "mlp", "--device", "cpu",
               "--learning-rate", "1e30", "--optimizer", "sgd", "--digest-every", "1",
               "--out", "wild")  # fmt: skip
    assert done.returncode == 1
    text = text_of((tmp_path / "wild" / "report.html").read_bytes())
    assert done.json["error"] in text and done.json["diagnosis"]["lines"][0] in text


# --- whose file it is ---------------------------------------------------------------


def test_no_other_file_is_overwritten(run, tmp_path):
    own = written(run)
    edited = own.replace(b"report of a training", b"report of a  training")
    with RunFolder.create(str(tmp_path / "other"), "any", **FIELDS) as folder:
        page.write(folder)
    others = [b"mine", edited, (tmp_path / "other" / "report.html").read_bytes(), b""]
    for number, content in enumerate(others, start=1):
        (run / "report.html").write_bytes(content)
        assert written(run) == own
        assert (run / f"report.kept-{number}.html").read_bytes() == content
    target = tmp_path / "target"
    target.write_bytes(own)
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(target)
    os.link(target, tmp_path / "hard")
    assert written(run) == own and not (run / "report.html").is_symlink()
    assert (run / "report.kept-5.html").is_symlink() and target.read_bytes() == own


FIELDS = {
    "recipe": gpuzoo.load_recipe("mnist").as_record(),
    "options": {},
    "fast_dev_run": False,
}


def test_a_page_that_cannot_be_written_does_not_lose_the_run(
    npz, tmp_path, runtime, capsys
):
    out = tmp_path / "run"
    told = []

    class Blocked(RunFolder):
        def write_file(self, name, content):
            if name == "weights.safetensors":
                (self.path / "report.html").mkdir()
                (self.path / "report.html" / "mine").touch()
            super().write_file(name, content)

    from gpuzoo.training import train

    original, train.RunFolder = train.RunFolder, Blocked
    try:
        told = gpuzoo.train("mnist", data=str(npz), model="mlp", epochs=1,
                            batch_size=16, out=str(out))  # fmt: skip
    finally:
        train.RunFolder = original
    assert "report.html could not be written" in capsys.readouterr().err
    assert read_run(out)["state"] == told["state"] == "finished"
    assert (out / "report.html" / "mine").exists()
    with pytest.raises(gpuzoo.GpuzooError, match="report.html cannot be written"):
        page.report(out)
    shutil.rmtree(out / "report.html")
    gpuzoo.resume(out, quiet=True)  # as after a kill before the page
    assert derived.is_own(
        "report.html", (out / "report.html").read_bytes(), read_run(out)["id"]
    )


def test_writing_the_page_imports_no_backend_and_no_matplotlib(run):
    code = (
        "import sys; from gpuzoo.report import page; page.report(sys.argv[1])\n"
        "print([m for m in ('keras', 'tensorflow', 'jax', 'matplotlib', 'scipy')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, run], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# --- charts -------------------------------------------------------------------------


@pytest.mark.parametrize("values", [
    [0.5], [0.0, 0.0], [1e30, 1.0], [-3.2, 4.8], [0.9991, 0.9993], [1e-9, 3e-9],
    [123456.0, 123457.0], [float("nan"), 2.0, float("inf")], [-5e-324, 5e-324],
])  # fmt: skip
def test_a_chart_holds_its_points_and_round_ticks(values):
    made = charts.chart("loss", {"test": list(enumerate(values))})
    for x, y in made.lines[0].points:
        assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
        assert charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM
    assert 2 <= len(made.up) <= 8 and len({text for _, text in made.up}) == len(made.up)
    assert len(made.lines[0].points) == sum(map(np.isfinite, values))


def test_a_split_has_one_colour_in_all_charts():
    rows = [
        {"split": "train", "step": 1, "epoch": 1, "loss": 1.0},
        {"split": "test", "step": 1, "epoch": 1, "loss": 1.0, "map50": 0.5},
    ]
    tones = [{one.name: one.tone for one in made.lines} for made in page.charts(rows)]
    assert tones == [{"train": 0, "test": 1}, {"test": 1}]


def test_long_and_empty_charts():
    assert charts.chart("loss", {"test": [(1, float("nan"))], "train": []}) is None
    points = [(n, float(n)) for n in range(100_001)]
    (line,) = charts.chart("loss", {"test": points}).lines
    assert 150 < len(line.points) <= 301 and line.last == "1e+05" and not line.dots
    assert line.points[-1] == (charts.WIDTH - charts.RIGHT, charts.TOP)


# --- in a browser -------------------------------------------------------------------


def opened(browser, path, **options):
    """The page, and what went wrong or elsewhere on it."""
    tab, problems = browser.new_page(**options), []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("dialog", lambda dialog: (problems.append("a dialog"), dialog.dismiss()))
    tab.on(
        "request",
        lambda one: (
            None
            if one.url == path.as_uri() or one.url.startswith("data:")
            else problems.append(one.url)
        ),
    )
    tab.goto(path.as_uri())
    return tab, problems


CONTRAST = """() => {
  const part = v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 };
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
    return .2126 * part(r) + .7152 * part(g) + .0722 * part(b) };
  const paper = e => { for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|transparent/.test(c)) return c; } return "rgb(255, 255, 255)" };
  const found = [];
  document.querySelectorAll("details").forEach(d => { d.open = true });
  for (const e of document.querySelectorAll("body *")) {
    const style = getComputedStyle(e);
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    const drawn = e.matches("polyline, circle, path.line");
    if (e.matches("script") || !own && !drawn) continue;
    const ink = e.matches("circle, text") ? style.fill : drawn ? style.stroke : style.color;
    const [a, b] = [light(ink), light(paper(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < (drawn ? 3 : 4.5)) found.push([e.outerHTML.slice(0, 80), ratio]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_the_page_in_chromium(width, scheme, browser, trained):
    size = {"width": width, "height": 800}
    tab, problems = opened(
        browser, trained / "report.html", viewport=size, color_scheme=scheme
    )
    assert tab.evaluate(CONTRAST) == []  # opens all details, too
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    pictures = tab.evaluate(
        "[...document.images].map(i => [i.complete && i.naturalWidth, i.alt.length])"
    )
    assert pictures and all(loaded and alt > 20 for loaded, alt in pictures)
    levels = tab.evaluate(
        "[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert tab.evaluate("document.documentElement.lang") == "en"
    assert tab.evaluate(
        "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))"
    )
    unnamed = "[...document.querySelectorAll('svg[role=img], [role=region]')]"
    assert tab.evaluate(
        f"{unnamed}.every(s => s.getAttribute('aria-label').length > 5)"
    )
    assert tab.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.tHead)"
    )
    body = tab.inner_text("body")
    for name in NAMES:
        assert name.replace("\x1b", "") in body.replace("\x1b", ""), name
    assert problems == []
    tab.close()


def column(tab, table: str, number: int) -> list[str]:
    return tab.evaluate(
        f"[...document.querySelectorAll('{table} tbody tr')]"
        f".map(r => r.cells[{number}].textContent)"
    )


def test_tables_sort_by_mouse_and_by_keyboard(browser, trained):
    tab, problems = opened(browser, trained / "report.html")
    table = "#curves table"
    tab.click("#curves summary")
    heads = tab.evaluate(
        f"[...document.querySelectorAll('{table} th')].map(h => h.innerText)"
    )
    loss = next(n for n, head in enumerate(heads) if head.startswith("loss"))
    before = column(tab, table, loss)
    button = tab.locator(f"{table} th button").nth(loss)
    button.click()
    assert column(tab, table, loss) == sorted(before, key=float)
    assert (
        tab.locator(f"{table} th").nth(loss).get_attribute("aria-sort") == "ascending"
    )
    button.focus()
    tab.keyboard.press("Enter")
    assert column(tab, table, loss) == sorted(before, key=float)[::-1]
    assert (
        tab.locator(f"{table} th").nth(loss).get_attribute("aria-sort") == "descending"
    )
    assert tab.locator(f"{table} [aria-sort]").count() == 1
    # Text, and numbers of several digits: step 9 stands before step 10.
    steps = heads.index(next(head for head in heads if head.startswith("step")))
    tab.locator(f"{table} th button").nth(steps).click()
    assert column(tab, table, steps) == sorted(column(tab, table, steps), key=int)
    settings = "#record table >> nth=1"
    tab.locator(settings).locator("th button").first.click()
    names = tab.locator(settings).locator("tbody th").all_inner_texts()
    assert names == sorted(names) and len(names) > 20
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.matches('th button')")
    assert problems == []
    tab.close()


def test_the_page_in_print_and_without_scripts(browser, trained, tmp_path):
    tab, problems = opened(browser, trained / "report.html", color_scheme="dark")
    closed = tab.locator("details:not([open])").count()
    pdf = tab.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000 and closed > 4
    assert tab.locator("details:not([open])").count() == closed  # as before the print
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("details:not([open])").count() == 0
    tab.emulate_media(media="print")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(paper) == "rgb(255, 255, 255)"
    assert tab.locator("nav").is_hidden()
    printed = tab.locator("#record summary:visible").all_inner_texts()
    assert "Seconds" in printed and "Environment and versions" in printed
    assert not [line for line in printed if "digest" in line or "sha256" in line]
    assert problems == []
    tab.close()
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto((trained / "report.html").as_uri())
    assert "What the record proves" in tab.inner_text("main")
    context.close()


def test_the_policy_holds(browser, trained, tmp_path):
    """What somebody adds to the page is neither executed nor loaded."""
    content = (trained / "report.html").read_text()
    added = (
        "<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\">"
        "<img src='http://127.0.0.1:9/a.png'><style>body { display: none }</style></main>"
    )
    path = tmp_path / "spoiled.html"
    path.write_text(content.replace("</main>", added))
    tab, failed = browser.new_page(), {}
    tab.on("requestfailed", lambda one: failed.update({one.url: one.failure}))
    tab.goto(path.as_uri())
    assert tab.title() != "run" and tab.locator("main").is_visible()
    assert failed["http://127.0.0.1:9/a.png"] == "csp"
    tab.close()
