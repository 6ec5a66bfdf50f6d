"""Texts as data: words, the column of texts, the vocabulary, and what is refused."""

import re

import numpy as np
import pytest

import gpuzoo
from gpuzoo.data import made_texts, tabular, texts, vocabulary
from gpuzoo.data.columns import from_file, from_memory

pytestmark = pytest.mark.usefixtures("own_cache")
TEXTS = [f"{what} day number {n}" for n in range(30) for what in ("good", "bad")]
LABELS = ["yes", "no"] * 30


def load(table: dict, target="label", **how):
    made = from_memory("mine", table)
    return texts.make("mine", "made up", made, target=target, **how)


@pytest.mark.parametrize(("text", "wanted"), [
    ("Don't stop!", ["don't", "stop", "!"]),
    ("It’s 3.50 €, e-mail a_b", ["it’s", "3", ".", "50", "€", ",", "e", "-", "mail", "a_b"]),
    ("STRASSE straße ﬁne", ["strasse", "strasse", "fine"]),
    ("cafe\u0301 caf\u00e9", ["café", "café"]),
    ("हिन्दी में", ["हिन्दी", "में"]),
    ("東京へ go", ["東", "京", "へ", "go"]),
    ("ทีนี้", ["ที", "นี้"]),
    ("می\u200cخواهم", ["می\u200cخواهم"]),
    ("так\u00ad же\ufeff", ["так", "же"]),
    ("😀❤\ufe0f", ["😀", "❤"]),
    ("Їжак ΣΑΣ İ", ["їжак", "σασ", "i\u0307"]),
    (" \n\t\u200e", []),
])  # fmt: skip
def test_words(text, wanted):
    assert vocabulary.words(text) == wanted


def test_the_vocabulary_is_that_of_the_training_rows():
    data = load({"text": TEXTS, "label": LABELS})
    known = data.text
    assert data.counts == {"train": 48, "test": 12} and data.classes == ("no", "yes")
    assert known.columns == ("text",) and known.length == 8
    assert set(known.words[:2]) == {"day", "number"} and "good" in known.words
    assert vocabulary.Vocabulary.from_record(known.as_record()) == known
    numbers = {word: known.words.index(word) + 2 for word in ("good", "day")}
    (row,) = known.encode(["GOOD  day, stranger"])
    assert row.tolist()[:2] == [numbers["good"], numbers["day"]]
    assert row.tolist()[2:] == [1, 1, 0, 0, 0, 0]
    # Other words in the rows for testing change nothing.
    whole = {"table": np.arange(60)[:, None], "label": np.array([1, 0] * 30)}
    other = list(TEXTS)
    for row in tabular.with_rows("mine", whole)["test"]["table"][:, 0]:
        other[row] = "quite other words"
    again = load({"text": other, "label": LABELS})
    assert again.text == known and (again.test["text"][:, :4] == [1, 1, 1, 0]).all()


def test_length():
    long = [" ".join(["word"] * (n + 1)) for n in range(60)]
    data = load({"text": long, "label": LABELS})
    assert data.text.length == 64 and data.input_shape == (64,)
    (said,) = [line for line in data.findings if "words are read" in line]
    longer = [*long[:58], "word " * 3000, "word " * 3000]
    assert load({"text": longer, "label": LABELS}).text.length in (
        64,
        vocabulary.LONGEST,
    )
    assert "longer are 0 of 48 training texts, 0 of 12 test texts" in said
    assert data.text.strange("word " * 70) == ["cut from 70 words to the first 64"]
    (line,) = data.text.strange("a new word")
    assert line == "unknown words from the text: 2 of 3, as 'a'"
    assert data.text.strange(" ") == ["no words: the text is empty"]


@pytest.mark.parametrize("content", [
    "text;label\n{}",
    "\ufefftext,label\r\n{}",
    "sep=;\ntext;label\n{}",
])  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_files_of_spreadsheets(content, encoding, tmp_path):
    if encoding != "utf-8" and content.startswith("\ufeff"):
        content = content[1:]
    mark = ";" if "text;" in content else ","
    rows = [
        f'"{one}{mark} ""naïve""\nsecond line"{mark}{label}'
        for one, label in zip(TEXTS, LABELS, strict=True)
    ]
    path = tmp_path / "mine.csv"
    path.write_bytes(content.format("\n".join(rows)).encode(encoding))
    data = gpuzoo.load_data(str(path), target="label", task="classify_text")
    assert {"naïve", '"', "second"} <= {*data.text.words}
    assert ("Windows-1252" in " ".join(data.findings)) == (encoding == "cp1252")


def test_a_file_of_one_column(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text('text\nthe first, I think\n"a ""second"" one"\n\nthird\n')
    table = from_file(path)
    assert table.columns["text"].texts[:2] == ["the first, I think", 'a "second" one']
    known = load({"text": TEXTS, "label": LABELS}).text
    assert texts.of_table(table, known)[0] == table.columns["text"].texts


def test_the_column_of_texts():
    table = {
        "id": list(range(60)), "when": ["2024-05-01"] * 60, "who": ["Ann", "Bo"] * 30,
        "text": TEXTS, "label": LABELS,
    }  # fmt: skip
    data = load(table)
    assert data.text.columns == ("text",)
    assert "not used: column 'id', 'when', 'who'" in data.findings
    both = load(table, kinds=("who:text", "text:text"))
    assert both.text.columns == ("who", "text") and "ann" in both.text.words
    assert load(table, kinds=("text:drop",)).text.columns == ("who",)
    rated = load({"text": TEXTS, "stars": [1, 5] * 30}, "stars")
    assert rated.classes == ("1", "5") and "regress" not in " ".join(rated.findings)
    faces = load({"text": ["\U0001f600", "\U0001f621 ?"] * 30, "label": LABELS})
    assert faces.text.words == ("\U0001f600", "?", "\U0001f621")


def test_empty_cells_are_left_out_and_named(tmp_path):
    table = {"text": list(TEXTS), "label": list(LABELS)}
    table["text"][3], table["text"][4], table["label"][7] = "", " \t", ""
    path = tmp_path / "mine.csv"
    path.write_text(
        "\n".join(map(",".join, [table, *zip(*table.values(), strict=True)]))
    )
    data = texts.make("mine", "", from_file(path), target="label")
    told = " ".join(data.findings)
    assert "2 of 60 rows have an empty text and are left out: lines 5, 6" in told
    assert "1 of 60 rows have no value of the target 'label'" in told
    assert sum(data.counts.values()) == 57


def test_texts_that_are_twice_and_classes_without_a_row():
    data = load({"text": TEXTS[:2] * 30, "label": LABELS})
    assert "12 of 12 test texts are also training texts" in data.findings


@pytest.mark.parametrize(("table", "how", "fault"), [
    ({"text": TEXTS}, {}, "no column 'label'; the columns are 'text'"),
    ({}, {}, "its only column is the target; a column of texts is missing"),
    ({"a": TEXTS, "label": list(range(60))}, {}, "too many for classes; name another target"),
    ({"a": range(60)}, {}, "no column beside the target holds texts with letters; name one with --columns NAME:text; the columns beside the target are 'a'"),
    ({"a": TEXTS, "b": TEXTS}, {}, "'a' and 'b' both hold texts; add --columns a:text"),
    ({"a b": TEXTS, "c": TEXTS}, {}, "add --columns 'a b:text', or 'a b:text' c:text for both"),
    ({"a": TEXTS}, {"kinds": ("a:number",)}, "columns must be name:kind, with a kind of text, drop"),
    ({"a": TEXTS}, {"kinds": ("label:text",)}, "is the target; it holds the classes; leave it out"),
    ({"a": TEXTS}, {"kinds": ("c:text",)}, "columns: no column 'c'"),
    ({"a": [""] * 60, "b": TEXTS}, {"kinds": ("a:text",)}, "every text is empty"),
    ({"a": [chr(0x4E00 + n) for n in range(60)]}, {}, "no word is in two training texts"),
    ({"a": TEXTS, "label": ["yes"] * 60}, {}, "is the same in all 60 rows"),
    ({"a": TEXTS, "label": TEXTS}, {}, "too many for classes"),
    ({"a": TEXTS[:6], "label": LABELS[:6]}, {}, "6 rows below the names"),
])  # fmt: skip
def test_what_is_refused(table, how, fault):
    table = {k: list(v) for k, v in table.items()}
    if "no column 'label'" not in fault:
        table = {"label": LABELS, **table}
    with pytest.raises(gpuzoo.GpuzooError, match=re.escape(fault)):
        load(table, **how)


@pytest.mark.parametrize(("name", "how", "fault"), [
    ("digits", {}, "texts are read from a .csv or .parquet file, with --target"),
    ("mine.csv", {}, "which column is to be predicted? Add --target NAME; the columns are 'text', 'label', 'more'"),
    ("mine.csv", {"target": "label", "image_size": 9}, "image_size is for a folder of images"),
    ("mine.csv", {"target": "label", "data_dir": "x"}, "data_dir is for TFDS datasets"),
    ("gone.csv", {"target": "label"}, "there is no such file"),
])  # fmt: skip
def test_sources_that_are_refused(name, how, fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("text,label,more\na b,c,1\n" * 20)
    with pytest.raises(gpuzoo.GpuzooError, match=re.escape(fault)):
        gpuzoo.load_data(name, task="classify_text", **how)


@pytest.mark.parametrize(("given", "fault"), [
    (b"bytes", "must be a str, a list of str"),
    (["a", 3], "int among them"),
    ([], "no texts to predict"),
    (np.zeros(3), "float among them"),
    ("new.csv", "looks like the name of a file"),
    ({"other": ["a"]}, "has no column 'text', which holds the texts"),
])  # fmt: skip
def test_what_is_no_text_to_predict(given, fault):
    known = load({"text": TEXTS, "label": LABELS}).text
    with pytest.raises(gpuzoo.GpuzooError, match=re.escape(fault)):
        texts.given(given, known)


def test_a_row_of_a_data_frame_is_one_text():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS})
    known = load({"text": TEXTS, "label": LABELS}).text
    for given in (frame.iloc[0], frame.iloc[:1], frame["text"].iloc[:1], TEXTS[0]):
        assert texts.given(given, known) == ([TEXTS[0]], [])


def test_texts_from_python():
    for x in (TEXTS, np.array(TEXTS), tuple(TEXTS)):
        table = texts.from_pair((x, LABELS))
        assert table.columns["text"].texts == TEXTS
    with pytest.raises(gpuzoo.GpuzooError, match="the texts are bytes; decode them"):
        texts.from_pair((np.array(TEXTS, "S"), LABELS))
    with pytest.raises(gpuzoo.GpuzooError, match="all must have the same number"):
        texts.from_pair((TEXTS, LABELS[:9]))
    assert texts.from_pair((np.zeros((9, 2)), LABELS[:9])) is None


def test_the_generated_reviews():
    table = made_texts.make()["table"].columns
    reviews, verdicts = table["review"].texts, table["verdict"].texts
    assert len(reviews) == made_texts.ROWS and len(set(reviews)) > 0.97 * len(reviews)
    shares = {one: verdicts.count(one) / len(verdicts) for one in set(verdicts)}
    assert min(shares.values()) > 0.25 and set(shares) == {"good", "bad", "mixed"}
    data = gpuzoo.load_data("reviews")
    assert data.fingerprint == REVIEWS


REVIEWS = "3ff59556eacbeb7622048274ab4f895cc89031237efe64856456f18ecb02450f"


@pytest.mark.parametrize(("content", "wanted", "said"), [
    ('text\na, b\n""\n\nc d; e\n\n', ["a, b", "", "c d; e"], "1 blank lines are no rows"),
    ("my text\na b c\nd e\nf, g h i j\n", ["a b c", "d e", "f, g h i j"], ""),
    ("my text\ngood film\n", ["good film"], ""),
    ('my text\n"a b"\n"c ""d"""\n"e f"\n', ["a b", 'c "d"', "e f"], ""),
    ("text\n" + "word " * 100_000 + "\n", ["word " * 99_999 + "word"], ""),
])  # fmt: skip
def test_files_of_one_column(content, wanted, said, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text(content)
    table = from_file(path)
    (column,) = table.columns.values()
    assert column.texts == wanted
    assert len(table.findings) == bool(said) and said in " ".join(table.findings)


def test_very_long_texts(tmp_path):
    path = tmp_path / "mine.csv"
    rows = [
        f'"{one}{" more" * 27_000}",{two}'
        for one, two in zip(TEXTS, LABELS, strict=True)
    ]
    path.write_text("\n".join(["text,label", *rows]))
    data = gpuzoo.load_data(str(path), task="classify_text")
    assert data.text.length == vocabulary.LONGEST
    assert "longer are 48 of 48 training texts, 12 of 12 test" in " ".join(
        data.findings
    )


def test_what_is_lost_of_texts_to_predict():
    known = load({"text": TEXTS, "label": LABELS}).text
    given = [np.str_("good day"), "good " * 9, "\u200b", "no such words"]
    found, said = texts.given(given, known)
    assert found == given and said == [
        "1 of 4 texts have no words",
        "1 of 4 texts are cut to the first 8 words",
        "1 of 4 texts have more unknown words than known ones",
    ]
    rows = {"text": ["\u200b", *given[:2]], "label": ["yes", "no", "no"]}
    other, said = texts.other(from_memory("mine", rows), known, ("no", "yes"))
    assert other["label"].tolist() == [0, 0] and len(said) == 2
    assert "1 of 3 rows have an empty text and are left out: rows 0" in said[0]


def test_a_data_frame_with_gaps():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": TEXTS, "stars": [1, 5] * 30})
    table.loc[3, "text"], table.loc[5, "stars"] = None, None
    data = texts.make("mine", "", from_memory("mine", table), target="stars")
    told = " ".join(data.findings)
    assert data.classes == ("1", "5") and sum(data.counts.values()) == 58
    assert "have an empty text and are left out: rows 3" in told
    assert "have no value of the target 'stars' and are left out: rows 5" in told
