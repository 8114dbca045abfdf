"""Text that depends on a seed alone, in pieces of so many words or exactly so many bytes."""

import random
import re
from functools import lru_cache

_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ra", "si", "to", "ve", "wa", "ze")
_WORD_COUNT = 509  # prime, so that strides of any length visit every word
_BUFFER_BYTES = 1 << 16

_DIRECTIVE = re.compile(r"#sim [^#\"\\]*#")

# Two, three and four bytes of UTF-8, and what JSON must escape.
_WIDE = ("é", "ß", "я", "ж", "中", "文", "あ", "한", "€", "😀", "🧪", '"', "\\", "\n", "\t", "\u2028", " ", "a", "z")


def _make_words() -> tuple[str, ...]:
    chosen = random.Random("words")  # noqa: S311 - text, not secrets
    return tuple(
        "".join(chosen.choice(_SYLLABLES) for _ in range(chosen.randint(1, 3)))
        + chosen.choice(("", "", "", "n", "s", "r"))
        for _ in range(_WORD_COUNT)
    )


WORDS = _make_words()


@lru_cache(maxsize=2)
def _buffer(wide: bool) -> bytes:
    chosen = random.Random("buffer")  # noqa: S311
    source = _WIDE if wide else tuple(f"{word} " for word in WORDS)
    text = "".join(chosen.choice(source) for _ in range(_BUFFER_BYTES))
    return text.encode()[:_BUFFER_BYTES]


class Text:
    """The pieces of one text. `size` bytes each, or `words` words when size is 0."""

    def __init__(self, seed: int, size: int, words: int, wide: bool = False) -> None:
        self.seed = seed
        self.size = size
        self.words = max(1, words)
        self.wide = wide

    def piece(self, index: int) -> str:
        if self.size:
            return self._sized(index)
        if self.wide:
            return self._sized(index, self.words * 4)
        at = self.seed * 31 + index * self.words
        if self.words == 1:
            word = WORDS[at % _WORD_COUNT]
            return word if index == 0 else " " + word
        joined = " ".join(WORDS[(at + step) % _WORD_COUNT] for step in range(self.words))
        return joined if index == 0 else " " + joined

    def _sized(self, index: int, size: int = 0) -> str:
        size = size or self.size
        buffer = _buffer(self.wide)
        at = (self.seed * 7919 + index * size) % len(buffer)
        taken = buffer[at : at + size]
        while len(taken) < size:
            taken += buffer[: size - len(taken)]
        if not self.wide:
            return taken.decode("ascii")
        # A slice of multi-byte text may begin and end inside a character: keep the whole ones, fill up with ASCII.
        text = taken.decode("utf-8", "ignore")
        return text + "." * (size - len(text.encode()))

    def whole(self, count: int) -> str:
        return "".join(self.piece(index) for index in range(count))


def count_text(value: object) -> int:
    """UTF-8 bytes of all strings inside a JSON value: what the simulator takes for the length of a prompt.

    Directives do not count, so that calls that differ only in them report the same.
    """
    if isinstance(value, str):
        if "#sim " in value:
            value = _DIRECTIVE.sub("", value)
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(count_text(inner) for inner in value.values())
    if isinstance(value, list):
        return sum(count_text(inner) for inner in value)
    return 0
