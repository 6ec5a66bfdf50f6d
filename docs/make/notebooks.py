"""Create the notebooks from their scripts: executed, with small images.

    python docs/make/notebooks.py            # all of notebooks/*.py
    python docs/make/notebooks.py gan codes  # some

Each runs in its own empty folder, on the data that its reader would get: MNIST from the
TFDS folder, gpuzoo's cache or a download, otherwise the digits of scikit-learn.
"""

import base64
import io
import pathlib
import sys
import tempfile

import jupytext
import nbclient
import PIL.Image

NOTEBOOKS = pathlib.Path(__file__).resolve().parents[2] / "notebooks"


def small(picture: str) -> str:
    """Reduce a base64 PNG to 32 colors."""
    image = PIL.Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    target = io.BytesIO()
    image.quantize(32).save(target, "PNG", optimize=True)
    return base64.b64encode(target.getvalue()).decode()


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
    for name in names:
        script = NOTEBOOKS / f"{name}.py"
        notebook = jupytext.read(script)
        with tempfile.TemporaryDirectory() as folder:
            place = {"metadata": {"path": folder}}
            nbclient.NotebookClient(notebook, timeout=3600, resources=place).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it was run
            if cell.cell_type != "code":
                continue
            # Warnings of packages contain paths of this machine.
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                data = output.get("data", {})
                if "image/png" in data:
                    data["image/png"] = small(data["image/png"])
        target = script.with_suffix(".ipynb")
        jupytext.write(notebook, target, fmt="ipynb")
        print(f"{name} {target.stat().st_size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
