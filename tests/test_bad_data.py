"""Arrays, series and caches that would be taken for something else than they are."""

import datetime
import io
import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from small import splits
from test_bad_folders import plain_user
from test_forecast import waves

import gpuzoo
from gpuzoo import files
from gpuzoo.data import cache, table
from gpuzoo.data.validate import make_dataset

pytestmark = pytest.mark.usefixtures("own_cache")


# --- arrays -------------------------------------------------------------------------


def saved(path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_names_that_are_no_utf_8_are_not_made_one(arrays, npz):
    for split in ("train", "test"):
        names = np.array([b"B\xe4r", b"B\xfcr"])
        arrays[f"y_{split}"] = names[arrays[f"y_{split}"]]
    with pytest.raises(gpuzoo.GpuzooError, match=r"labels: b'B\\x.*not UTF-8"):
        gpuzoo.load_data(saved(npz, **arrays))
    for split in ("train", "test"):
        names = np.array(["B\u00e4r".encode(), b"dog"])[:, None]
        arrays[f"y_{split}"] = names[(arrays[f"y_{split}"] == b"B\xfcr").astype(int)]
    assert gpuzoo.load_data(saved(npz, **arrays)).classes == ("B\u00e4r", "dog")


@pytest.mark.parametrize("suffix", [".npz", ".NPZ"])
@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2", "u1", ">u8", "f2"])
def test_order_of_bytes_and_of_axes_do_not_matter(dtype, suffix, arrays, npz, tmp_path):
    wanted = gpuzoo.load_data(str(npz))
    turned = {k: np.asfortranarray(v.astype(dtype)) for k, v in arrays.items()}
    np.savez(tmp_path / "x", **turned)
    (tmp_path / "x.npz").rename(tmp_path / f"y{suffix}")
    assert (
        gpuzoo.load_data(str(tmp_path / f"y{suffix}")).fingerprint == wanted.fingerprint
    )


def test_only_the_arrays_that_are_named_are_read(arrays, npz):
    wanted = gpuzoo.load_data(str(npz)).fingerprint
    told = {"about": np.array([{}, {}]), "x": np.zeros(3)}
    said: list[str] = []
    path = saved(npz, **arrays, **told)
    assert gpuzoo.load_data(path, note=said.append).fingerprint == wanted
    assert [line.endswith("are read, about, x ignored") for line in said] == [True]
    told = {"x": arrays["x_train"], "y": arrays["y_train"], "x_test": arrays["x_test"]}
    with pytest.raises(gpuzoo.GpuzooError, match="needs the arrays.*has x, x_test, y"):
        gpuzoo.load_data(saved(npz, **told))
    with pytest.raises(gpuzoo.GpuzooError, match="needs the arrays.*has y$"):
        gpuzoo.load_data(saved(npz, y=arrays["x_train"]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_before_height_are_refused(channels, arrays, npz):
    for split in ("train", "test"):
        x = arrays[f"x_{split}"][..., :1].repeat(channels, axis=-1)
        arrays[f"x_{split}"] = np.moveaxis(x, -1, 1)
    with pytest.raises(gpuzoo.GpuzooError, match=r"put them last: x.transpose"):
        gpuzoo.load_data(saved(npz, **arrays))


def test_masks_of_0_and_1_are_told(arrays, npz):
    for split in ("train", "test"):
        arrays[f"x_{split}"] = (arrays[f"x_{split}"] > 110).astype(np.uint8)
    data = gpuzoo.load_data(saved(npz, **arrays))
    assert data.findings[0].startswith("the brightest training pixel is 1 of 255: ")


def test_an_array_larger_than_the_memory(npz):
    """A small file that says it holds 4 exabytes."""
    head = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (10**18,)}
    np.lib.format.write_array_header_1_0(head, shape)
    with zipfile.ZipFile(npz, "w") as file:
        for name in ("x", "y"):
            file.writestr(f"{name}.npy", head.getvalue())
    with pytest.raises(gpuzoo.GpuzooError, match="too large for memory"):
        gpuzoo.load_data(str(npz))


# --- series -------------------------------------------------------------------------


def series_of(path, lines, encoding="utf-8"):
    path.write_text("\n".join(lines) + "\n", encoding)
    return gpuzoo.load_data(str(path))


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", [".csv", ".CSV"])
def test_columns_may_be_parted_in_three_ways(mark, suffix, tmp_path):
    values = [f"{value:.3f}" for value in waves(500, noise=0.3)]
    plain = series_of(tmp_path / "a.csv", values)
    path = tmp_path / f"b{suffix}"
    dated = [f"01.01.2020{mark}{value}" for value in values]
    assert series_of(path, dated).fingerprint == plain.fingerprint
    headed = [f"Datum{mark}Wert", *dated]
    assert series_of(path, headed, "utf-8-sig").fingerprint == plain.fingerprint
    if mark == ";":
        commas = [line.replace(".", ",") for line in headed]
        assert series_of(path, commas).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("place", "line", "fault"),
    [
        (-1, "5", "line 501: 1 columns, separated by ',', where the first line has 2"),
        (100, "5,1,2", "line 101: 3 columns"),
        (100, "5,", "line 101: '' is not a number"),
        (0, "value", "line 2: 2 columns"),
        (0, "Datum;Wert", "line 2: 1 columns, separated by ';'"),
        (0, "Datum\tWert", "line 2: 1 columns"),
    ],
)
def test_lines_of_other_widths_are_refused(place, line, fault, tmp_path):
    lines = ["time,value", *(f"{i},{v:.4f}" for i, v in enumerate(waves(500)))]
    lines[place] = line
    with pytest.raises(gpuzoo.GpuzooError, match=fault):
        series_of(tmp_path / "mine.csv", lines)


def test_a_point_beside_decimal_commas_is_refused(tmp_path):
    lines = [f"{i};{v:.4f}".replace(".", ",") for i, v in enumerate(waves(500))]
    lines[7] = "7;1.234"
    with pytest.raises(
        gpuzoo.GpuzooError, match="line 8: '1.234' is not a number with a"
    ):
        series_of(tmp_path / "mine.csv", lines)


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    lines = ['"of the\nday",value', "", *(f"{i},{v}" for i, v in enumerate(waves(500)))]
    lines[7] = "x,many"
    with pytest.raises(gpuzoo.GpuzooError, match="line 9: 'many'"):
        series_of(tmp_path / "mine.csv", lines)


# Sixteen months of days, and a value for each.
DAYS = [datetime.date(2021, 3, 1) + datetime.timedelta(n) for n in range(500)]
VALUES = np.round(950 + 80 * np.sin(np.arange(500) / 9) + np.arange(500) % 7 / 8, 2)


def comma(text: str) -> str:
    return text.translate(str.maketrans(".,", ",."))


def rows(write, head="", newest=False):
    pairs = list(zip(DAYS, VALUES, strict=True))
    lines = [write(day, value) for day, value in (pairs[::-1] if newest else pairs)]
    return [head] * bool(head) + lines


AS_MEANT = {
    "decimal comma": rows(lambda d, v: comma(f"{v:.2f}")),
    "decimal comma after a date": rows(lambda d, v: f"{d}," + comma(f"{v:.2f}")),
    "decimal comma, tabs": rows(lambda d, v: f"{d}\t" + comma(f"{v:.2f}"), "a\tb"),
    "thousands, German": rows(lambda d, v: f"{d};" + comma(f"{v:,.2f}"), "a;b"),
    "thousands, quoted": rows(lambda d, v: f'{d},"{v:,.2f}"', "a,b"),
    "thousands, Swiss": rows(lambda d, v: f"{v:,.2f}".replace(",", "'")),
    "thousands, French": rows(
        lambda d, v: f"{d};{v:,.2f}".replace(",", "\u202f").replace(".", ","), "a;b"
    ),
    "currency": rows(lambda d, v: f"{d};{v:.2f} \u20ac", "a;b"),
    "blanks": rows(lambda d, v: f"{(d - DAYS[0]).days:4d}  {v:.18e}"),
    "label last": rows(lambda d, v: f"{d},{v:.2f},{'ab'[d.day % 2]}", "date,v,class"),
    "nothing last": rows(lambda d, v: f"{d},{v:.2f},", "date,v,"),
    "a frame without names": rows(lambda d, v: f"{(d - DAYS[0]).days},{v}", ",0"),
    "year above": rows(lambda d, v: f"{d:%d.%m.%Y};" + comma(f"{v:.2f}"), "Tag;2021"),
    "newest, month first": rows(lambda d, v: f"{d:%m/%d/%Y},{v:.2f}", newest=True),
    "newest, day first": rows(lambda d, v: f"{d:%d/%m/%y};{v:.2f}", "a;b", True),
    "newest, in words": rows(lambda d, v: f'"{d:%a, %b %d, %Y}",{v}', "a,b", True),
    "newest, 8 digits": rows(lambda d, v: f"{d:%Y%m%d},{v:.2f}", newest=True),
    "newest, by number": rows(
        lambda d, v: f"{(d - DAYS[0]).days},{v:.2f}", "t,v", True
    ),
    "newest, zones": rows(lambda d, v: f"{d}T07:00:00+01:00,{v}", "t,v", True),
    "newest, last": rows(lambda d, v: f"{v:.2f},{d}", "v,date", True),
    "Excel's first line": ["sep=|", *rows(lambda d, v: f"{d}|{v}", "a|b")],
    "comments": ["# of a", "# station", *rows(lambda d, v: f"{d},{v}", "a,b")],
    "rows of nothing at the end": [*rows(lambda d, v: f"{d};{v}", "a;b"), ";", ";"],
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", AS_MEANT)
def test_numbers_are_read_as_they_are_meant(name, encoding, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(AS_MEANT[name]) + "\n", encoding)
    found = table.read_column(path)
    assert np.array_equal(found.values, VALUES)
    (told,) = (line for line in found.findings if line.startswith("series: "))
    assert f"{VALUES[0]:.10g}" in told and f"{VALUES[-1]:.10g}" in told
    assert ("newest first in the file" in told) == name.startswith("newest")


def test_whole_numbers_in_groups(tmp_path):
    whole = np.round(1000 * VALUES).astype(int)
    path = tmp_path / "mine.csv"
    for write in ("{:,}", "x,{:,}", "2020-01-01,{:,}"):
        for change in (str, comma):
            if change is comma and "," in write.replace(":,", ""):
                continue
            path.write_text("\n".join(change(write.format(v)) for v in whole))
            assert np.array_equal(table.read_column(path).values, whole), write


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["t;n"] + [f"{i};998" for i in range(400)] + ["400;1.002"] * 9,
         "line 402: '1.002' may have a mark of thousands or a decimal one"),
        (["1.234"] * 300 + ["1,234"] * 200, "may have a mark of thousands"),
        ([f"{n % 9},{n % 7}" for n in range(500)],
         "line 1: '0,0' may be one number with a decimal .* or two columns"),
        (["0"] + [f"{n % 9}.5" for n in range(500)], "line 1: '0' may be a header or"),
        (rows(lambda d, v: f"{d},{v}M", "a,b"), r"line 2: '\d+\.\d+M' is not a number"),
        ([*rows(lambda d, v: f"{d},{v}", "a,b"), "Total,5"], "'Total' is not a date like"),
        (rows(lambda d, v: f"{d},{v}", "a,b") + rows(lambda d, v: f"{d},{v}"),
         "line 502: '2021-03-01' comes after '2022-07-13'; sort the lines"),
        ([*rows(lambda d, v: f"{d},{v}", "a,b"), '2023-01-01,"5', *"x" * 999],
         "line 502: a quotation mark is opened there and not closed"),
        ([*rows(lambda d, v: f"{d},{v}", "a,b"), "2023-01-01,NA"],
         "line 502: 'NA' is not a number: a value of column 'b' is missing"),
        ([*rows(lambda d, v: f"{d},{v}", "a,b"), "2023-01-01," + 999 * "y"],
         r"line 502: 'y{60}\.\.\.' is not a number"),
        ([",".join(["label", *(f"pixel{n}" for n in range(64))])]
         + [",".join("3" * 65)] * 500, "is a table of 65 columns, not a series.*npz"),
        ([",".join("3" * 65)] * 500, "is a table of 65 columns, not a series.*npz"),
    ],
)  # fmt: skip
def test_what_may_be_read_in_two_ways_is_refused(lines, fault, tmp_path):
    with pytest.raises(gpuzoo.GpuzooError, match=fault) as caught:
        series_of(tmp_path / "mine.csv", lines)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


# --- the cache ----------------------------------------------------------------------


@pytest.fixture
def entry(arrays):
    cache.store(make_dataset("mine", "somewhere", splits(arrays)), "key")
    return files.root() / "data" / "mine" / "key"


@pytest.mark.parametrize("byte", [0x01, 0x7F, 0x80, 0xFF])
def test_a_damaged_length_in_the_cache(byte, entry):
    path = entry / "arrays.safetensors"
    content = bytearray(path.read_bytes())
    content[7] = byte
    path.write_bytes(content)
    assert cache.load("mine") is None


def test_any_damage_to_the_head_of_the_arrays(entry, arrays):
    path = entry / "arrays.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    for place in [*range(8), *rng.integers(8, 8 + length, 100)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        found = cache.load("mine")
        # A space that became another blank, or the like, is no damage.
        assert found is None or np.array_equal(found.train["image"], arrays["x_train"])
        cache.store(make_dataset("mine", "somewhere", splits(arrays)), "key")


def test_an_entry_that_cannot_be_read_now_is_kept(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("GPUZOO_CACHE", "cache")
    for path in (entry / "arrays.safetensors", entry / "manifest.json", entry):
        mode = path.stat().st_mode
        entry.chmod(0o777), entry.parent.chmod(0o777), path.chmod(0)
        with (
            plain_user(tmp_path),
            pytest.raises(
                gpuzoo.GpuzooError, match="cannot be read: Perm.*GPUZOO_CACHE"
            ),
        ):
            cache.load("mine")
        path.chmod(mode)
    monkeypatch.chdir(tmp_path)

    def fails(*_):
        raise MemoryError

    with monkeypatch.context() as short:
        short.setattr(cache, "dataset_fingerprint", fails)
        with pytest.raises(MemoryError):
            cache.load("mine")
    assert cache.load("mine").count("train") == 80


def test_the_data_of_a_run_are_found_beside_others(arrays, cli_here, tmp_path):
    """Of two sets in the cache that have one name."""
    ours = make_dataset("mnist", "ours", splits(arrays))
    arrays["x_train"] = 255 - arrays["x_train"]
    other = make_dataset("mnist", "other", splits(arrays))
    cache.store(ours, "download")
    done = cli_here("train", "mnist", "--epochs", "1", "--fast-dev-run", "--batch-size", "8",
               "--device", "cpu", "--out", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = files.root() / "data" / "mnist"
    (folder / "download").rename(folder / "folder-1")
    cache.store(other, "download")
    assert gpuzoo.load_data("mnist").fingerprint == other.fingerprint
    found = gpuzoo.load_data("mnist", fingerprint=ours.fingerprint)
    assert found.fingerprint == ours.fingerprint
    assert cli_here("verify", "run").json["verdict"] == "identical"


# --- damage -------------------------------------------------------------------------


def test_damaged_inputs_are_read_or_refused():
    """A slice of what benchmarks/repeatability/fuzz.py does with 10,000."""
    script = (
        pathlib.Path(__file__).parents[1] / "benchmarks" / "repeatability" / "fuzz.py"
    )
    done = subprocess.run(
        [sys.executable, script, "--inputs", "230"],
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    ends = json.loads(done.stdout)["ends"]
    assert ends.keys() == {"read", "refused"} and min(ends.values()) > 40
