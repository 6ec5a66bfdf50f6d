# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From my own arrays to a service
#
# Two NumPy arrays become a trained network with a report, a file for another runtime,
# and a service that answers over HTTP.

# %%
import gpuzoo

gpuzoo.configure(seed=0)
import numpy as np

rng = np.random.default_rng(0)
x = rng.integers(0, 256, (600, 12, 12, 1), dtype=np.uint8)
y = np.arange(600) % 3
for image, label in zip(x, y):  # a bright bar: where it is, is the class
    image[4 * label : 4 * label + 4] = 255 - image[4 * label : 4 * label + 4] // 4

# %% [markdown]
# ## Train, with a part held out to choose by
#
# A tenth of the training examples is for validation: the best epoch is chosen by them.
# The test examples are looked at once, at the end.

# %%
run = gpuzoo.train(
    "mnist_mlp", data=(x, y), validation=0.1, epochs=10, augment=(),
    early_stopping=3, keep="best", quiet=True,
)  # fmt: skip
{key: run[key] for key in ("epochs", "val_accuracy", "test_accuracy", "run_dir")}

# %% [markdown]
# ## The report
#
# `report.html` in the run folder has curves, mistakes and the whole record on one page.

# %%
import pathlib

from IPython.display import Image

folder = pathlib.Path(run["run_dir"])
print((folder / "report.html").stat().st_size // 1024, "KiB")
Image(folder / "curves.png")

# %% [markdown]
# ## Can it be repeated?

# %%
gpuzoo.verify(folder)["verdict"]

# %% [markdown]
# ## For another runtime
#
# The whole function, from pixels to probabilities, compared with the run on its test
# set.

# %%
written = gpuzoo.export(folder, formats=("onnx",), out="exported")
sorted(path.name for path in pathlib.Path("exported").iterdir())

# %% [markdown]
# ## A service
#
# `gpuzoo serve` needs no Keras. Here it runs beside the notebook, for two requests: an
# example as numbers, and the same as a picture.

# %%
import http.client
import io
import json
import re
import subprocess
import sys

import PIL.Image

command = [sys.executable, "-m", "gpuzoo", "serve", "exported", "--port", "0"]
server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
lines = iter(server.stderr.readline, "")
found = (re.search(r"http://(\S+)", line) for line in lines)
address = next(one[1] for one in found if one)


def predicted(body: bytes, kind: str) -> dict:
    connection = http.client.HTTPConnection(address)
    connection.request("POST", "/predict", body, {"Content-Type": kind})
    return json.load(connection.getresponse())


image = x[4]
picture = io.BytesIO()
PIL.Image.fromarray(image[..., 0]).save(picture, "PNG")
numbers = json.dumps({"inputs": [image.tolist()]}).encode()
print("label", y[4])
print(predicted(numbers, "application/json"))
print(predicted(picture.getvalue(), "image/png"))

# %%
server.terminate()
server.wait()
