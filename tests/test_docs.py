"""The site: it builds without a warning, its links lead somewhere, its code runs."""

import datetime
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
from conftest import ROOT, environment, needs_jax
from drawn_boxes import coco
from drawn_boxes import examples as boxed
from drawn_masks import examples, folder

from gpuzoo.runs.record import read_run
from gpuzoo.runtime import jobs

PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("furo", reason="needs the extra docs")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", ROOT / "docs", tmp_path / "site"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / "site").rglob("*.html")}
    assert {path.stem for path in PAGES} <= pages


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def test_python_of_the_tutorial(cli_here, tmp_path):
    """With the run that the tutorial begins with, in fewer epochs."""
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    (words,) = re.findall(r"gpuzoo (train mnist .* --out first)", tutorial)
    done = cli_here(*words.split(), "--epochs", "2")
    assert done.returncode == 0, done.stderr
    run_python(python_blocks("tutorial.md"), tmp_path)


def test_python_of_a_models_page(tmp_path):
    file, *blocks = python_blocks("howto/own-model.md")
    (tmp_path / "mine.py").write_text(file)
    run_python(
        [*blocks, 'gpuzoo.train("mnist", data="digits", model="mine.py:net")'], tmp_path
    )


def test_python_of_the_page_on_fit(tmp_path):
    run_python(python_blocks("howto/keras-fit.md"), tmp_path)
    assert (tmp_path / "fits/a/fit.json").is_file()


def test_the_pages_on_a_trained_run(cli_here, tmp_path):
    """Its predictions and metrics, then signatures and encryption."""
    done = cli_here("train", "mnist", "--data", "digits", "--model", "mlp", "--epochs", "1",
               "--out", "runs/mnist-001")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run_python(python_blocks("howto/evaluate.md"), tmp_path)
    page = (ROOT / "docs" / "howto" / "evaluate.md").read_text()
    (words,) = re.findall(r"```bash\ngpuzoo (.*)\n", page)
    done = cli_here(*words.split())
    assert done.json["identical"] and (tmp_path / "evaluation").is_dir(), done.stderr
    page = (ROOT / "docs" / "howto" / "protect.md").read_text()
    blocks = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)```", page, re.S)
    assert [name for name, _ in blocks] == ["sign", "openssl", "encrypt"]
    for name, commands in blocks:
        if name != "openssl" or shutil.which("openssl"):
            run_bash(commands, tmp_path)
    for file in (tmp_path / "runs" / "mnist-001").iterdir():
        assert (tmp_path / "restored" / file.name).read_bytes() == file.read_bytes()


def test_the_page_on_audits(tmp_path, cli_several):
    page = (ROOT / "docs" / "howto" / "audit.md").read_text()
    blocks = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)```", page, re.S)
    assert [name for name, _ in blocks] == ["audit", "elsewhere"]
    run_commands("".join(commands for _, commands in blocks), cli_several)
    run_python(python_blocks("howto/audit.md"), tmp_path)


@needs_jax
def test_the_page_on_devices(tmp_path):
    page = (ROOT / "docs" / "howto" / "devices.md").read_text()
    blocks = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)```", page, re.S)
    assert [name for name, _ in blocks] == ["devices", "split", "launch"]
    for _, commands in blocks:
        run_bash(commands, tmp_path)
    four, both = (read_run(tmp_path / name) for name in ("four", "both"))
    assert four["weights_sha256"] == both["weights_sha256"]


def test_the_job_file_for_kubernetes():
    """What its parts must agree on; test_processes.py runs its command."""
    yaml = pytest.importorskip("yaml", reason="needs the extra docs")
    file = ROOT / "docs" / "jobs" / "cluster" / "kubernetes.yaml"
    service, job = yaml.safe_load_all(file.read_text())
    name, pod = service["metadata"]["name"], job["spec"]["template"]["spec"]
    assert name == pod["subdomain"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    (container,) = pod["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert set(variables) == {*jobs.ADDRESS, "WORLD_SIZE"}
    assert variables["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{name}"
    assert variables["WORLD_SIZE"] == str(job["spec"]["completions"])
    assert job["spec"]["completions"] == job["spec"]["parallelism"]


def test_the_page_on_many_runs(tmp_path, cli_several):
    page = (ROOT / "docs" / "howto" / "many-runs.md").read_text()
    blocks = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)```", page, re.S)
    assert [name for name, _ in blocks] == ["seeds", "sweep", "runs"]
    run_commands("".join(commands for _, commands in blocks), cli_several)
    assert not list((tmp_path / "runs/grid").glob("*seed*"))
    assert len(list((tmp_path / "runs/digits").glob("*seed*"))) == 3
    run_python(python_blocks("howto/many-runs.md"), tmp_path)


def test_the_page_on_tables(tmp_path, cli_several):
    pytest.importorskip("pandas", reason="needs the extra tables")
    rng = np.random.default_rng(0)
    size, rooms, city = (
        rng.uniform(30, 150, 300),
        rng.integers(1, 6, 300),
        rng.choice(["Oslo", "Rome"], 300),
    )
    rows = [f"{s:.1f},{r},{c}" for s, r, c in zip(size, rooms, city, strict=True)]
    prices = size * np.where(city == "Rome", 20, 30) + 100 * rooms
    lines = [f"{row},{price:.0f}" for row, price in zip(rows, prices, strict=True)]
    (tmp_path / "houses.csv").write_text("\n".join(["size,rooms,city,price", *lines]))
    (tmp_path / "new.csv").write_text("\n".join(["size,rooms,city", *rows[:5]]))
    page = (ROOT / "docs" / "howto" / "tables.md").read_text()
    ((name, commands),) = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)```", page, re.S)
    assert name == "table" and len(commands.splitlines()) <= 10
    run_commands(commands, cli_several)
    assert (
        json.loads((tmp_path / "houses/run.json").read_text())["metrics"]["test_r2"]
        > 0.95
    )
    run_python(python_blocks("howto/tables.md"), tmp_path)


def test_the_page_on_series(tmp_path, cli_several):
    pytest.importorskip("pandas", reason="needs the extra tables")
    at = np.arange(400)
    close = 50 + 5 * np.sin(at / 7) + np.random.default_rng(0).normal(0, 0.1, 400)
    first = datetime.date(2023, 1, 1)
    rows = [f"{first + datetime.timedelta(int(n))},{close[n]:.3f}" for n in at]
    (tmp_path / "prices.csv").write_text("\n".join(["day,close", *rows]))
    page = (ROOT / "docs" / "howto" / "series.md").read_text()
    ((name, commands),) = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)```", page, re.S)
    assert name == "series" and len(commands.splitlines()) <= 10
    for out in ("run", "move"):  # the same in less time
        options = "filters=8 levels=3" if out == "run" else "width=16 depth=1"
        commands = commands.replace(
            f"--out {out}\n",
            f"--out {out} --epochs 20 --batch-size 32 --model-options {options}\n", 1,
        )  # fmt: skip
    run_commands(commands, cli_several)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["metrics"]["test_loss"] < 0.5  # of the variance
    record = json.loads((tmp_path / "move/run.json").read_text())
    assert record["metrics"]["test_accuracy"] > record["metrics"]["test_base_rate"]
    run_python(python_blocks("howto/series.md"), tmp_path)


def test_the_page_on_text(tmp_path, cli_several):
    rng = np.random.default_rng(0)
    words, labels = np.array(["great", "fine", "awful", "poor"]), ["good", "bad"]
    picked = rng.integers(0, 4, 200)
    texts = [f'"The {n % 9}th, {words[kind]}!"' for n, kind in enumerate(picked)]
    lines = [
        f"{text},{labels[kind // 2]}" for text, kind in zip(texts, picked, strict=True)
    ]
    (tmp_path / "messages.csv").write_text("\n".join(["text,label", *lines]))
    (tmp_path / "new.csv").write_text("\n".join(["text", *texts[:5]]))
    page = (ROOT / "docs" / "howto" / "text.md").read_text()
    ((name, commands),) = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)```", page, re.S)
    assert name == "text" and len(commands.splitlines()) <= 10
    commands = commands.replace(  # the same in less time
        "--out run\n",
        "--out run --min-steps 60 --model-options width=16 filters=16\n",
        1,
    )
    run_commands(commands, cli_several)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["metrics"]["test_accuracy"] > 0.95
    run_python(python_blocks("howto/text.md"), tmp_path)


def test_the_page_on_films(tmp_path, cli_several):
    rng = np.random.default_rng(0)
    for number in range(61):  # the last one is new
        shade = np.full((9, 40, 40), 60, np.uint8)
        for frame in range(9):
            first = 2 + 3 * frame if number % 2 else 26 - 3 * frame
            shade[frame, 10 + number % 9 :, first : first + 12] = 150 + number + frame
        shade += rng.integers(0, 20, shade.shape, np.uint8)
        frames = [PIL.Image.fromarray(one) for one in shade]
        place = tmp_path / "clips" / ("left", "right")[number % 2]
        place = tmp_path if number == 60 else place
        place.mkdir(parents=True, exist_ok=True)
        name = "new.gif" if number == 60 else f"{number}.gif"
        frames[0].save(place / name, save_all=True, append_images=frames[1:])
    page = (ROOT / "docs" / "howto" / "films.md").read_text()
    ((name, commands),) = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)```", page, re.S)
    assert name == "films" and len(commands.splitlines()) <= 10
    commands = commands.replace(  # the same in less time
        "--out run\n", "--out run --epochs 12 --batch-size 12 "
        "--model-options filters=(8,16)\n", 1
    )  # fmt: skip
    run_commands(commands, cli_several)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["metrics"]["test_accuracy"] > 0.9
    assert record["data"]["input_shape"][:3] == [16, 32, 32]
    run_python(python_blocks("howto/films.md"), tmp_path)


def test_the_page_on_identities(tmp_path, cli_several):
    from test_embed import write

    write(tmp_path / "photos", 24)
    write(tmp_path / "others", 4, first=500)
    for n in (0, 1):
        shutil.copy(tmp_path / f"others/glyph_500/{n}.png", tmp_path / f"{'ab'[n]}.png")
    page = (ROOT / "docs" / "howto" / "identities.md").read_text()
    ((name, commands),) = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)```", page, re.S)
    assert name == "identities" and len(commands.splitlines()) <= 10
    commands = commands.replace(  # the same in less time
        "--image-size 64 --out run\n",
        "--image-size 24 --out run --epochs 8 --batch-size 16 --model-options "
        "filters=(4,8)\n",
        1,
    )
    done = run_commands(commands, cli_several)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["metrics"]["test_eer"] < 0.4
    assert -1 <= done[2].json["similarity"] <= 1
    run_python(python_blocks("howto/identities.md"), tmp_path)


def test_the_page_on_segmentation(tmp_path, cli_several):
    image, mask = examples(40, 40, 48)
    street = folder(tmp_path / "street", image, mask)
    (street / "classes.txt").write_text("ground\nhouse\ntree\n")
    PIL.Image.fromarray(image[7]).resize((240, 200)).save(tmp_path / "photo.jpg")
    page = (ROOT / "docs" / "howto" / "segmentation.md").read_text()
    ((name, commands),) = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)```", page, re.S)
    assert name == "segmentation" and len(commands.splitlines()) <= 10
    commands = commands.replace(  # the same in less time
        "--out run\n", "--out run --epochs 40 --eval-every 10 --batch-size 4 "
        "--model-options filters=8 depth=2\n", 1
    )  # fmt: skip
    run_commands(commands, cli_several)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["metrics"]["test_mean_iou"] > 0.8 and record["best"]["kept"]
    with PIL.Image.open(tmp_path / "predicted" / "00001-photo.png") as written:
        assert written.mode == "P" and written.size == (240, 200)
    run_python(python_blocks("howto/segmentation.md"), tmp_path)


def test_the_page_on_detection(tmp_path, cli_several):
    image, corners, labels = boxed(60)
    coco(tmp_path / "street", image, corners, labels)
    PIL.Image.fromarray(image[1]).resize((240, 200)).save(tmp_path / "photo.jpg")
    page = (ROOT / "docs" / "howto" / "detection.md").read_text()
    ((name, commands),) = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)```", page, re.S)
    assert name == "detection" and len(commands.splitlines()) <= 10
    commands = commands.replace(  # the same in less time
        "--out run\n", "--out run --epochs 40 --eval-every 20 --batch-size 8 "
        "--model-options filters=(8,16,24) depth=2 --augment flip\n", 1
    )  # fmt: skip
    run_commands(commands, cli_several)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["metrics"]["test_map50"] > 0.5 and record["best"]["kept"]
    assert len(list((tmp_path / "predicted").iterdir())) == 1
    run_python(python_blocks("howto/detection.md"), tmp_path)


JOBS = sorted((ROOT / "docs" / "jobs").glob("*.md"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the pages of docs/jobs/ take for granted."""
    place = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    for shade, kind in ((60, "cat"), (190, "dog")):
        (place / "photos" / kind).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(shade - 50, shade + 50, (40, 40, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(place / f"photos/{kind}/{number}.png")
    values = np.sin(np.arange(400) / 7) + rng.normal(0, 0.05, 400)
    rows = "".join(f"{day},{value:.4f}\n" for day, value in enumerate(values))
    (place / "sales.csv").write_text(f"day,sold\n{rows}")
    return place


@pytest.mark.parametrize("page", JOBS, ids=lambda page: page.stem)
def test_an_everyday_job(page, desk, tmp_path, cli_several):
    """Its commands or its code, of at most ten lines."""
    ((kind, code),) = re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.S)
    lines = [line for line in code.splitlines() if line.strip()]
    assert 1 <= len(lines) <= 10 and not list(tmp_path.iterdir())
    shutil.copytree(desk, tmp_path, dirs_exist_ok=True)
    if kind == "bash":
        run_commands(code, cli_several)
    else:
        run_python([code], tmp_path)
    records = [json.loads(file.read_text()) for file in tmp_path.rglob("run.json")]
    assert records and all(record["state"] == "finished" for record in records)


def test_the_page_on_tracking(tmp_path):
    run_python(python_blocks("howto/tracking.md"), tmp_path)
    assert (tmp_path / "runs/mnist-digits-001/tracking/metrics.csv").is_file()


def run_commands(block: str, cli_several) -> list:
    """Run commands of gpuzoo in one process, which saves them its start."""
    lines = block.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.strip()]
    assert {words[0] for words in commands} == {"gpuzoo"}
    every = cli_several(*[words[1:] for words in commands])
    for done in every:
        assert done.returncode == 0, done.stderr
    return every


def run_bash(commands: str, tmp_path) -> None:
    place = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=tmp_path, capture_output=True, text=True,
        env={**environment(tmp_path), "PATH": place}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def run_python(blocks: list[str], tmp_path) -> None:
    code = "\n".join(blocks)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(tmp_path),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
