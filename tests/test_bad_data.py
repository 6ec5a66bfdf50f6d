"""Arrays, series and caches that would be taken for something else than they are."""

import io
import zipfile

import numpy as np
import pytest
from conftest import splits
from test_bad_folders import plain_user
from test_forecast import waves

import gpuzoo
from gpuzoo.data import cache
from gpuzoo.data.dataset import make_dataset

pytestmark = pytest.mark.usefixtures("own_cache")


# --- arrays -------------------------------------------------------------------------


def saved(path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_names_that_are_no_utf_8_are_not_made_one(arrays, npz):
    for split in ("train", "test"):
        names = np.array([b"B\xe4r", b"B\xfcr"])
        arrays[f"y_{split}"] = names[arrays[f"y_{split}"]]
    with pytest.raises(gpuzoo.GpuzooError, match=r"labels: b'B\\x.*no UTF-8"):
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
    assert gpuzoo.load_data(saved(npz, **arrays, **told)).fingerprint == wanted
    told = {"x": arrays["x_train"], "y": arrays["y_train"], "x_test": arrays["x_test"]}
    with pytest.raises(gpuzoo.GpuzooError, match="needs the arrays.*has x, x_test, y"):
        gpuzoo.load_data(saved(npz, **told))
    with pytest.raises(gpuzoo.GpuzooError, match="needs the arrays.*has x$"):
        gpuzoo.load_data(saved(npz, x=arrays["x_train"]))


def test_channels_before_height_are_refused(arrays, npz):
    for split in ("train", "test"):
        arrays[f"x_{split}"] = np.moveaxis(arrays[f"x_{split}"], -1, 1)
    with pytest.raises(gpuzoo.GpuzooError, match=r"put them last: x.transpose"):
        gpuzoo.load_data(saved(npz, **arrays))


def test_masks_of_0_and_1_are_told(arrays, npz):
    for split in ("train", "test"):
        arrays[f"x_{split}"] = (arrays[f"x_{split}"] > 110).astype(np.uint8)
    data = gpuzoo.load_data(saved(npz, **arrays))
    assert data.findings[0] == "the brightest training pixel is 1 of 255"


def test_an_array_larger_than_the_memory(npz):
    """A small file that says it holds 4 exabytes."""
    head = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (10**18,)}
    np.lib.format.write_array_header_1_0(head, shape)
    with zipfile.ZipFile(npz, "w") as file:
        for name in ("x", "y"):
            file.writestr(f"{name}.npy", head.getvalue())
    with pytest.raises(gpuzoo.GpuzooError, match="too large for the memory"):
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
        (-1, "5", "line 501: 1 columns, parted by ',', where the first line has 2"),
        (100, "5,1,2", "line 101: 3 columns"),
        (100, "5,", "line 101: '' is no number"),
        (0, "value", "line 2: 2 columns"),
        (0, "Datum;Wert", "line 2: 1 columns, parted by ';'"),
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
    with pytest.raises(gpuzoo.GpuzooError, match="line 8: '1.234' is no number with a"):
        series_of(tmp_path / "mine.csv", lines)


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    lines = ['"of the\nday",value', "", *(f"{i},{v}" for i, v in enumerate(waves(500)))]
    lines[7] = "x,many"
    with pytest.raises(gpuzoo.GpuzooError, match="line 9: 'many'"):
        series_of(tmp_path / "mine.csv", lines)


# --- the cache ----------------------------------------------------------------------


@pytest.fixture
def entry(arrays):
    cache.store(make_dataset("mine", "somewhere", splits(arrays)), "key")
    return cache.root() / "data" / "mine" / "key"


@pytest.mark.parametrize("byte", [0x01, 0x7F, 0x80, 0xFF])
def test_a_damaged_length_in_the_cache(byte, entry):
    path = entry / "arrays.safetensors"
    content = bytearray(path.read_bytes())
    content[7] = byte
    path.write_bytes(content)
    assert cache.load("mine") is None and not entry.exists()


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

    def fails(_):
        raise MemoryError

    with monkeypatch.context() as short:
        short.setattr(cache, "dataset_fingerprint", fails)
        with pytest.raises(MemoryError):
            cache.load("mine")
    assert cache.load("mine").count("train") == 80


def test_the_data_of_a_run_are_found_beside_others(arrays, cli, tmp_path):
    """Of two sets in the cache that have one name."""
    ours = make_dataset("mnist", "ours", splits(arrays))
    arrays["x_train"] = 255 - arrays["x_train"]
    other = make_dataset("mnist", "other", splits(arrays))
    cache.store(ours, "download")
    done = cli("train", "mnist", "--epochs", "1", "--fast-dev-run", "--batch-size", "8",
               "--device", "cpu", "--out", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = cache.root() / "data" / "mnist"
    (folder / "download").rename(folder / "folder-1")
    cache.store(other, "download")
    assert gpuzoo.load_data("mnist").fingerprint == other.fingerprint
    found = gpuzoo.load_data("mnist", fingerprint=ours.fingerprint)
    assert found.fingerprint == ours.fingerprint
    assert cli("verify", "run").json["verdict"] == "identical"
