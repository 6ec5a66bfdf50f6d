"""Sounds: computed ones, folders of WAV files, and the model that tells them apart."""

import struct

import numpy as np
import pytest
import soundfile
from PIL import Image
from scipy.io import wavfile
from scipy.signal import resample_poly
from small import RECIPE, same, train

import gpuzoo
from gpuzoo.data import audio
from gpuzoo.engine import checkpoint

LISTEN = RECIPE.override(
    name="listen", task="classify_audio", model="audio_cnn", augment=(), epochs=2,
    model_options=("filters=(4,8)", "dropout=0.1"), label_smoothing=0.1,
)  # fmt: skip


def tone(pitch: float, samples: int = 2_000, rate: int = 16_000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(samples) / rate)


def write(path, sound, rate=16_000, dtype=np.int16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if dtype == np.uint8:
        sound = np.round(128 + 127 * sound)
    elif np.dtype(dtype).kind == "i":
        sound = np.round(sound * np.iinfo(dtype).max)
    wavfile.write(path, rate, sound.astype(dtype))


@pytest.fixture
def folder(tmp_path):
    for number in range(20):
        write(
            tmp_path / "sounds" / "high" / f"{number:02}.wav", tone(2000 + 10 * number)
        )
        write(tmp_path / "sounds" / "low" / f"{number:02}.WAV", tone(300 + 10 * number))
    return tmp_path / "sounds"


def test_tones_are_the_same_everywhere_and_balanced():
    data = gpuzoo.load_data("tones")
    assert data.fingerprint.startswith("b13a0ffbe035") and data.findings == ()
    assert data.input_shape == (4_000,) and data.train["audio"].dtype == np.int16
    assert list(np.bincount(data.test["label"])) == [125] * 8
    loudest = np.abs(data.train["audio"].astype(int)).max(axis=1)
    assert 3_200 < loudest.min() < 4_000 and 31_000 < loudest.max() < 32_768


def test_spoken_digits_are_the_same_everywhere_and_balanced():
    data = gpuzoo.load_data("spoken_digits")
    assert data.fingerprint.startswith("70547e324722") and data.findings == ()
    assert data.input_shape == (11_200,) and data.train["audio"].dtype == np.int16
    assert data.classes[0] == "zero" and len(data.classes) == 10
    assert list(np.bincount(data.test["label"])) == [100] * 10
    # What hisses in "six" is above the formants of the vowels of "one".
    spectra = np.abs(np.fft.rfft(data.train["audio"][:1_000], axis=1)) ** 2
    hertz = np.fft.rfftfreq(11_200, 1 / 16_000)
    high = spectra[:, (hertz > 4_500) & (hertz < 6_500)].sum(axis=1) / spectra.sum(
        axis=1
    )
    label = data.train["label"][:1_000]
    assert np.median(high[label == 6]) > 1.5 * np.median(high[label == 1])


def test_a_folder_of_wav_files(folder):
    data = gpuzoo.load_data(str(folder))
    assert data.classes == ("high", "low") and data.source == "folder of WAV files"
    assert data.count("train") == 32 and data.input_shape == (2_000,)
    # The pitch, from the zeros that are crossed, tells that sound and label belong.
    crossed = (np.diff(np.sign(data.train["audio"]), axis=1) != 0).sum(axis=1)
    assert np.array_equal(crossed < 200, data.train["label"] == 1)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64]
)
def test_every_width_rate_and_number_of_channels(folder, dtype):
    wanted = audio.read_folder("x", folder, ["high"], 0.0)["audio"][0]
    sound = tone(2000, 6_000, 48_000)
    write(folder / "high" / "00.wav", np.stack([sound, sound], 1), 48_000, dtype)
    found = audio.read_folder("x", folder, ["high"], 0.0)["audio"][0]
    # But for the edges, where resampling sees the silence around.
    middle = slice(100, -100)
    apart = found[middle].astype(int) - wanted[middle]
    assert len(found) == 2_000 and np.abs(apart).max() < 300


def test_lengths(folder):
    write(folder / "low" / "long.wav", tone(300, 3_000))
    shapes = {
        seconds: gpuzoo.load_data(str(folder), audio_seconds=seconds).input_shape
        for seconds in (0.0, 0.1, 0.25)
    }
    assert shapes == {0.0: (3_000,), 0.1: (1_600,), 0.25: (4_000,)}
    short = audio.read_folder("x", folder, ["low"], 0.25)["audio"][0]
    assert short[:2_000].any() and not short[2_000:].any()


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1_000])


def of_none(path):
    write(path, tone(300, 0))


def too_long(path):
    write(path, np.zeros(31 * 400), 400)


def not_finite(path):
    write(path, np.full(2_000, np.nan), dtype=np.float32)


def scaled_like_integers(path):
    write(path, 20_000 * tone(440), dtype=np.float32)


def cut_at_the_top(path):
    write(path, 5 * tone(440), dtype=np.float32)


def of_24_bits_in_32(path):
    write(path, tone(440), dtype=np.int32)
    changed(path, 34, 24, size=2)


def no_sound(path):
    path.write_bytes(b"RIFF" + struct.pack("<I", 4) + b"WAVE")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"no sound"), "low/00.WAV: not a readable WAV"),
        (lambda path: path.write_bytes(b""), "low/00.WAV: not a readable WAV"),
        (no_sound, "low/00.WAV: not a readable WAV"),
        (cut_short, "low/00.WAV: not a readable WAV"),
        (not_finite, "values that are not finite"),
        (scaled_like_integers, "samples up to [19].*; expected -1..1, rescale"),
        (cut_at_the_top, "samples up to 2.5; expected -1..1, rescale"),
        (of_24_bits_in_32, "24 bits per sample and 4 bytes .* save it with 16 bits"),
        (of_none, "0 seconds; they must be more than none"),
        (too_long, "31 seconds; .*--audio-seconds 1 cuts"),
    ],
)
def test_bad_files(folder, damage, words):
    damage(folder / "low" / "00.WAV")
    with pytest.raises(gpuzoo.GpuzooError, match=words):
        gpuzoo.load_data(str(folder))


def changed(path, place, number, size=4):
    content = bytearray(path.read_bytes())
    content[place : place + size] = number.to_bytes(size, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("told", [0, 0xFFFFFFFF, 0x7FFFF000, 4_500])
def test_headers_of_a_pipe(folder, told):
    wanted = gpuzoo.load_data(str(folder)).fingerprint
    for path in (folder / "low" / "00.WAV", folder / "high" / "03.wav"):
        changed(path, 40, told)
        if told > 2**30:
            changed(path, 4, told)
    assert gpuzoo.load_data(str(folder)).fingerprint == wanted


@pytest.mark.parametrize("rate", [0, 1, 268_479_556, 0xFFFFFFFF])
def test_absurd_rates_are_refused(folder, rate):
    changed(folder / "low" / "00.WAV", 24, rate)
    with pytest.raises(gpuzoo.GpuzooError, match="low/00.WAV: not a readable WAV"):
        gpuzoo.load_data(str(folder))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
def test_samples_are_those_that_scipy_reads(dtype, rate, channels, tmp_path):
    """The bits of trainings follow from them."""
    rng = np.random.default_rng(0)
    sound = np.clip(rng.normal(0, 0.3, (3_000, channels)), -1, 1)
    write(tmp_path / "a" / "1.wav", sound, rate, np.dtype(dtype))
    _, raw = wavfile.read(tmp_path / "a" / "1.wav")
    if raw.dtype == np.uint8:
        raw = (raw.astype(np.float64) - 128) / 128
    elif raw.dtype.kind == "i":
        raw = raw / -float(np.iinfo(raw.dtype).min)
    raw = raw if raw.ndim == 1 else raw.mean(axis=1)
    if rate != 16_000:
        raw = resample_poly(raw, 160, 441)
    wanted = np.round(32767 * np.clip(raw, -1, 1)).astype(np.int16)
    found = audio.read_folder("x", tmp_path, ["a"], 0.0)["audio"][0]
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "aiff"])
def test_other_formats(folder, suffix, tmp_path):
    wanted = gpuzoo.load_data(str(folder))
    for path in list(folder.glob("*/*")):
        rate, sound = wavfile.read(path)
        soundfile.write(path.with_suffix(f".{suffix}"), sound, rate)
        path.unlink()
    data = gpuzoo.load_data(str(folder))
    assert data.source == "folder of sound files" and data.count("train") == 32
    if suffix in ("flac", "aiff"):
        assert data.fingerprint == wanted.fingerprint
    damaged = folder / "low" / f"00.{suffix}"
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(gpuzoo.GpuzooError, match="low/00.*not a readable sound file"):
        gpuzoo.load_data(str(folder))


def test_a_cover_among_sounds(folder):
    wanted = gpuzoo.load_data(str(folder)).fingerprint
    Image.new("RGB", (9, 9)).save(folder / "low" / "cover.png")
    notes = []
    assert gpuzoo.load_data(str(folder), note=notes.append).fingerprint == wanted
    assert "1 files in sounds/ are ignored by suffix: .png" in notes[0]
    for path in folder.glob("*/*.[wW]*"):
        path.rename(path.with_suffix(".m4a"))
    (folder / "low" / "cover.png").unlink()
    with pytest.raises(gpuzoo.GpuzooError, match="40 files in sounds/ are AAC sound"):
        gpuzoo.load_data(str(folder))


def test_bad_folders(folder, tmp_path, runtime):
    both = tmp_path / "both"
    both.mkdir()
    (both / "train").symlink_to(folder)
    for name in ("low", "high"):
        write(both / "test" / name / "1.wav", tone(300, 1_000))
    with pytest.raises(gpuzoo.GpuzooError, match="0.125 seconds in train and 0.0625"):
        gpuzoo.load_data(str(both))
    data = gpuzoo.load_data(str(both), audio_seconds=0.1)
    assert (data.count("train"), data.count("test")) == (40, 2)
    with pytest.raises(gpuzoo.GpuzooError, match="needs image and label"):
        train(RECIPE, data, runtime)
    with pytest.raises(gpuzoo.GpuzooError, match="at least 1600: .*--audio-seconds"):
        train(LISTEN, gpuzoo.load_data(str(both), audio_seconds=0.05), runtime)
    with pytest.raises(gpuzoo.GpuzooError, match="augment changes images"):
        train(LISTEN.override(augment=("flip",)), data, runtime)


def test_a_run_learns_repeats_and_resumes(folder, runtime, tmp_path):
    data = gpuzoo.load_data(str(folder))
    one, _ = train(LISTEN, data, runtime)
    asked = iter([False, True])
    train(LISTEN, data, runtime, folder=tmp_path, stop=lambda: next(asked))
    start, _ = checkpoint.load(tmp_path)
    resumed, _ = train(LISTEN, data, runtime, resume=start)
    assert same(one, resumed) and one.metrics == resumed.metrics
    assert not same(one, train(LISTEN.override(seed=1), data, runtime)[0])
    longer = LISTEN.override(epochs=10, learning_rate=0.02)
    assert train(longer, data, runtime)[0].metrics["test_accuracy"] == 1


def test_the_level_and_the_batch_do_not_matter(runtime):
    model = gpuzoo.build("audio_cnn", input_shape=(2_000,), filters=(4,))
    noise = 0.1 * np.random.default_rng(0).normal(size=(3, 2_000))
    sounds = np.stack([tone(pitch) for pitch in (200, 900, 3_000)]) + noise
    sounds = sounds.astype("f4")
    logits = np.array(model(sounds))
    assert np.allclose(np.array(model(sounds / 8)), logits, atol=2e-2)
    assert np.allclose(np.array(model(sounds[:1])), logits[:1], atol=1e-4)


def test_a_folder_from_the_command_line(cli, folder):
    done = cli("train", "tones", "--data", folder, "--fast-dev-run", "--batch-size", "8",
               "--out", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.json["data"] == "sounds" and "WAV" in done.stderr
    assert cli("verify", "run").json["verdict"] == "identical"
