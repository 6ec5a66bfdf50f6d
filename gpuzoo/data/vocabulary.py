"""Words of texts, and the vocabulary by which texts become numbers.

Keras's TextVectorization is not used: it needs TensorFlow, which the JAX backend does
without.
"""

import collections
import dataclasses
import functools
import re
import unicodedata

import numpy as np

from gpuzoo.data.lines import quoted
from gpuzoo.errors import GpuzooError

PADDING, UNKNOWN = 0, 1
"""What stands after the last word, and for a word that is not known."""
FIRST = 2
"""The number of the first word of a vocabulary."""
MOST = 20_000
"""Words of a vocabulary."""
LONGEST = 512
"""Words of a text that are read at most."""
_PART = 0.99
"""Fraction of the training texts that are read as a whole."""
_LETTERS = 60
"""Letters of a word; longer ones are cut."""
# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han.
_ALONE = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
# Not seen: soft hyphens, directions, variants of emoji.
_HIDDEN = "\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufe00-\ufe0f"
_PLAIN = re.compile(r"\w+(?:'\w+)*|[^\s\0-\x1f\x7f]", re.ASCII)


def words(text: str) -> list[str]:
    """Return the words of a text, in one form of Unicode (NFKC) and in lower case, and
    its punctuation marks and symbols, each for itself. Of scripts that do not part
    words each letter is one."""
    if text.isascii():  # the same in less time
        found = _PLAIN.findall(text.lower())
    else:
        text = unicodedata.normalize("NFKC", text).casefold()
        found = _pattern().findall(unicodedata.normalize("NFKC", text))
    return [word[:_LETTERS] for word in found]


@functools.cache
def _pattern() -> re.Pattern:
    """Return the pattern of a word. Marks, as vowels of Hindi are, belong to the letter
    before them; Python's \\w leaves them out."""
    points = (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
    marks = [c for c in map(chr, points) if unicodedata.category(c)[0] == "M"]
    marks = "".join(c for c in marks if not "\ufe00" <= c <= "\ufe0f")
    letter = f"(?:(?![{_ALONE}])[\\w{marks}])"
    joined = f"{letter}+(?:['\u2019\u200c\u200d]{letter}+)*"
    return re.compile(f"[{_ALONE}][{marks}]*|{joined}|[^\\s{_HIDDEN}\0-\x1f\x7f-\x9f]")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """How the texts of a dataset became what a model takes, (texts, length), int32: the
    number of each word, FIRST and its place in `words`, or UNKNOWN; PADDING after the
    last one."""

    columns: tuple[str, ...]
    """The columns that hold a text, joined in this order."""
    target: str
    length: int
    words: tuple[str, ...]
    """The most frequent first."""

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return FIRST + len(self.words)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, FIRST)}

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return texts as a model takes them, (texts, length), int32."""
        return self.of_words(list(map(words, texts)))

    def of_words(self, texts: list[list[str]]) -> np.ndarray:
        """Do the same for the words of texts."""
        found = np.full((len(texts), self.length), PADDING, np.int32)
        for row, text in zip(found, texts, strict=True):
            each = [self._numbers.get(one, UNKNOWN) for one in text[: self.length]]
            row[: len(each)] = each
        return found

    def strange(self, text: str) -> list[str]:
        """Return lines about what is lost of a text: words that are unknown, and those
        after the first `length`; or that it has none. Lines are of one kind if they are
        equal up to " from "."""
        each = words(text)
        if not each:
            return ["no words: the text is empty"]
        found = []
        read = each[: self.length]
        if len(each) > len(read):
            found.append(f"cut from {len(each):,} words to the first {len(read)}")
        unknown = [one for one in read if one not in self._numbers]
        if unknown:
            found.append(
                f"unknown words from the text: {len(unknown)} of {len(read)}, as "
                f"{quoted(unknown[0])}"
            )
        return found

    def lost(self, texts: list[str]) -> list[str]:
        """Return lines about what is lost of all of some texts."""
        each = [words(text) for text in texts]
        strange = [
            2 * sum(one not in self._numbers for one in text[: self.length])
            > len(text[: self.length])
            for text in each
        ]
        counts = {
            "have no words": sum(not text for text in each),
            f"are cut to the first {self.length} words": sum(
                len(text) > self.length for text in each
            ),
            "have more unknown words than known ones": sum(strange),
        }
        return [
            f"{count:,} of {len(each):,} texts {line}"
            for line, count in counts.items()
            if count
        ]

    def as_record(self) -> dict:
        return {
            "columns": list(self.columns), "target": self.target,
            "length": self.length, "words": list(self.words),
        }  # fmt: skip

    @classmethod
    def from_record(cls, record: dict) -> "Vocabulary":
        """Raises GpuzooError: not what `as_record` returns."""
        try:
            columns, known = tuple(record["columns"]), tuple(record["words"])
            length, target = record["length"], record["target"]
            texts = all(type(one) is str for one in (*columns, *known, target))
            numbers = type(length) is int and 0 < length <= LONGEST
            if not (texts and numbers and columns and len({*known}) == len(known)):
                raise ValueError("columns, target, length and words are damaged")
        except (KeyError, TypeError, ValueError) as error:
            raise GpuzooError(f"run.json is not valid: data.text: {error}") from None
        return cls(columns, target, length, known)


def fit(columns: tuple[str, ...], target: str, texts: list[list[str]]) -> Vocabulary:
    """Return the vocabulary of the words of training texts: the MOST words that are in
    most of them, of those that are in at least two; models learn what to make of
    unknown ones from the others. The length is that of the longest text but for one in
    a hundred, a multiple of 8 up to LONGEST."""
    counts = collections.Counter(word for text in texts for word in {*text})
    known = [one for one in counts if counts[one] > 1]
    known.sort(key=lambda one: (-counts[one], one))
    longest = sorted(map(len, texts))[int(_PART * (len(texts) - 1))]
    length = min(max(-(-longest // 8) * 8, 8), LONGEST)
    return Vocabulary(columns, target, length, tuple(known[:MOST]))
