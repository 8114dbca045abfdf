"""The shape of the token automaton: byte classes and transitions, the same for every tokenizer family.

A state is a small tuple that says what the piece of text at hand looks like; `step` says what one more byte makes of
it. All states that can be reached from the start are numbered. The weights of the transitions are what
tools/fit_tokens.py fits: so a state tells apart what tokenizers treat differently, and no more than text can teach.
"""

import string
from collections import deque

State = tuple[str | int | bool, ...]
START: State = ("start",)

_PUNCTUATION = {
    '"': "quote",
    "'": "apostrophe",
    "`": "tick",
    "(": "open",
    "[": "open",
    "{": "brace",
    "<": "less",
    ")": "close",
    "]": "close",
    "}": "unbrace",
    ">": "greater",
    ".": "dot",
    ",": "comma",
    ";": "semicolon",
    "!": "mark",
    "?": "mark",
    ":": "colon",
    "/": "slash",
    "\\": "backslash",
    "_": "under",
    "-": "dash",
    "=": "equals",
    "*": "star",
    "#": "star",
}
_PUNCTUATION_CLASSES = frozenset(_PUNCTUATION.values()) | {"other"}
_UPPER = {"A": "AA", "E": "EE", **dict.fromkeys("BCDF", "BCDF"), **dict.fromkeys("IOU", "IOU")}
_UPPER_CLASSES = ("AA", "EE", "BCDF", "IOU", "ZZ")
# First byte of a character → the first one of the next group.
_LEADS = (
    (0xC3, "c2"),
    (0xC4, "c3"),
    (0xC6, "c4"),
    (0xCC, "c6"),
    (0xCE, "cc"),
    (0xCF, "ce"),
    (0xD0, "cf"),
    (0xD1, "d0"),
    (0xD2, "d1"),
    (0xD6, "d2"),
    (0xD7, "d6"),
    (0xD8, "d7"),
    (0xD9, "d8"),
    (0xDA, "d9"),
    (0xDC, "da"),
    (0xE0, "dc"),
    (0xE1, "e0"),
    (0xE2, "e1"),
    (0xE3, "e2"),
    (0xE4, "e3"),
    (0xE5, "e4"),
    (0xE6, "e5"),
    (0xE7, "e6"),
    (0xE8, "e7"),
    (0xE9, "e8"),
    (0xEA, "e9"),
    (0xEB, "ea"),
    (0xEC, "eb"),
    (0xED, "ec"),
    (0xEE, "ed"),
    (0xEF, "ee"),
    (0xF0, "ef"),
    (0x100, "f0"),
)
_LEAD_CLASSES = frozenset(name for _, name in _LEADS)
# Scripts of two bytes a letter: lead → script; and how far into a word positions are told apart.
_SCRIPT = {
    "c3": "latin",
    "c4": "latin",
    "c6": "latin",
    "ce": "greek",
    "cf": "greek",
    "d0": "cyrillic",
    "d1": "cyrillic",
    "d2": "cyrillic",
    "d6": "hebrew",
    "d7": "hebrew",
    "d8": "arabic",
    "d9": "arabic",
    "da": "arabic",
    "cc": "rare",
    "dc": "rare",
    "c2": "sign",
}
_POSITIONS = {"latin": 5, "greek": 6, "cyrillic": 7, "hebrew": 6, "arabic": 6, "rare": 2, "sign": 2}
_WORD_POSITIONS = 5


def class_of(byte: int) -> str:
    char = chr(byte)
    if byte >= 0xC0:
        return next(name for limit, name in _LEADS if byte < limit)
    if byte >= 0x80:
        # Two values each, but for the first two: they tell CJK punctuation from Hiragana.
        return f"cont{byte:x}" if byte < 0x82 else f"cont{byte & 0xFE:x}"
    if char in string.ascii_lowercase:
        return char
    if char in string.ascii_uppercase:
        return _UPPER.get(char, "ZZ")
    if char in string.digits:
        return "0"
    named = {" ": "space", "\t": "tab", "\n": "newline", "\r": "newline"}
    return named.get(char) or _PUNCTUATION.get(char, "other")


def _lower(state: State, char: str) -> State:
    kind, position = state[0], state[1] if len(state) > 1 else 0
    if kind in ("word", "upper"):
        # A capital counts as the first letter of its word, wherever it stood among capitals.
        return "word", min(int(position) + 1 if kind == "word" else 2, _WORD_POSITIONS), char
    if kind == "latin":
        return "latin", min(int(position) + 1, _POSITIONS["latin"])
    if kind in ("digits", "mixed"):
        run = int(state[2]) + 1 if state[:2] == ("mixed", "a") else 1
        return "mixed", "a", min(run, 4), bool(state[-1]) and char in "abcdef"
    return "word", 1, char


def _upper(state: State, cls: str) -> State:
    if state[0] == "upper":
        # A run of nothing but A is how base64 writes zeros: many of them are one token.
        if cls == "AA" and len(state) == 3:
            return "upper", min(int(state[1]) + 1, 5), "A"
        return "upper", min(int(state[1]) + 1, 5)
    if state[0] in ("digits", "mixed"):
        if cls == "AA" and not state[-1]:
            return "mixed", "AA", min(int(state[2]) + 1, 4) if state[1] == "AA" else 1, False
        run = int(state[2]) + 1 if state[:2] == ("mixed", "A") else 1
        return "mixed", "A", min(run, 3), bool(state[-1]) and cls in ("AA", "EE", "BCDF")
    return ("upper", 1, "A") if cls == "AA" else ("upper", 1)


def _digit(state: State) -> State:
    if state[0] == "digits":
        return "digits", int(state[1]) % 3 + 1, True
    if state[0] == "mixed":
        run = int(state[2]) % 3 + 1 if state[1] == "0" else 1
        return "mixed", "0", run, state[-1]
    if state[0] == "upper" or (state[0] == "word" and int(state[1]) <= 3):
        return "mixed", "0", 1, state[0] == "upper" or str(state[2]) in "abcdef"
    return "digits", 1, True


def _lead(state: State, cls: str) -> State:
    """State after the first byte of a character that is not ASCII; it keeps the position in a word of that script."""
    kind = state[0]
    if cls in _SCRIPT:
        script = _SCRIPT[cls]
        position = 0
        if kind == script:
            position = int(state[1])
        elif script == "latin" and kind in ("word", "upper"):
            position = min(int(state[1]), 4)
        return "lead", script, position, cls
    run = int(state[-1]) if kind in ("indic", "cjk", "kana", "emoji", "symbol", "rare3") else 0
    if cls == "e0":
        return "lead", "indic", run if kind == "indic" else 0
    if cls == "e1":
        return "lead", "e1", min(int(state[1]), 4) if kind in ("latin", "word", "upper") else 0
    if cls == "e2":
        return "lead", "e2", min(run, 1) if kind == "symbol" else 0
    if cls == "e3":
        return "lead", "kana", run if kind == "kana" else 0
    if cls in ("ee", "ef"):
        return "lead", "ef"
    if cls == "f0":
        return "lead", "f0", min(run, 1) if kind == "emoji" else 0
    family = "hangul" if cls in ("ea", "eb", "ec", "ed") else "han"
    return "lead", "cjk", family, cls, run if state[:2] == ("cjk", family) else 0


def _continue(state: State, cls: str) -> State:
    if state[0] == "second":
        what = state[1]
        if what == "indic":
            return "indic", state[2], min(int(state[3]) + 1, 2)
        if what == "cjk":
            return "cjk", state[2], min(int(state[3]) + 1, 2)
        if what == "kana":
            return "kana", state[2], min(int(state[3]) + 1, 2)
        if what == "e1":
            return ("latin", min(int(state[3]) + 1, _POSITIONS["latin"])) if state[2] == "latin" else ("rare3", 1)
        if what == "e2":
            return "symbol", state[2], 1
        if what == "f0":
            return "third", state[2], cls[:5]
        return ("rare3", 1)
    if state[0] == "third":
        return "emoji", 1
    if state[0] != "lead":
        return state
    what = state[1]
    if what in _POSITIONS:
        return str(what), min(int(state[2]) + 1, _POSITIONS[str(what)])
    byte = int(cls[4:], 16)
    if what == "indic":
        return "second", "indic", byte if byte >= 0xA4 else 0, state[2]
    if what == "cjk":
        return "second", "cjk", state[2], state[4]
    if what == "kana":
        group = "sign" if byte == 0x80 else "hiragana" if byte == 0x81 else "katakana" if byte == 0x82 else "other"
        return "second", "kana", group, state[2]
    if what == "e1":
        return "second", "e1", "latin" if byte == 0xBA else byte >> 4, state[2] if byte == 0xBA else 0
    if what == "e2":
        return "second", "e2", "dash" if byte == 0x80 else "box" if byte in (0x94, 0x96) else "other"
    if what == "f0":
        return "second", "f0", state[2]
    return "second", str(what)


def step(state: State, cls: str) -> State:
    if len(cls) == 1 and cls.isalpha():
        return _lower(state, cls)
    if cls == "space":
        return "space", min(int(state[1]) + 1, 9) if state[0] == "space" else 1
    if cls in _UPPER_CLASSES:
        return _upper(state, cls)
    if cls == "0":
        return _digit(state)
    if cls == "newline":
        return cls, min(int(state[1]) + 1, 3) if state[0] == cls else 1
    if cls == "tab":
        return cls, min(int(state[1]) + 1, 2) if state[0] == cls else 1
    if cls in _PUNCTUATION_CLASSES:
        return "punctuation", cls, 2 if state[0] == "punctuation" else 1
    if cls in _LEAD_CLASSES:
        return _lead(state, cls)
    return _continue(state, cls)


def _classes() -> list[str]:
    """Frequent ones first, so that the part of a row that most text touches lies in few cache lines."""
    order = ["space", *string.ascii_lowercase, "0", *_UPPER_CLASSES, "newline", "tab", *sorted(_PUNCTUATION_CLASSES)]
    rest = dict.fromkeys(class_of(byte) for byte in range(256))
    return order + [name for name in rest if name not in order]


CLASSES = _classes()
CLASS_OF_BYTE = [CLASSES.index(class_of(byte)) for byte in range(256)]


def states() -> tuple[list[State], list[int]]:
    """All states, the start first, and the next state's number for each state and class, row by row."""
    numbers = {START: 0}
    found = [START]
    transitions: list[int] = []
    waiting = deque([START])
    while waiting:
        state = waiting.popleft()
        for cls in CLASSES:
            target = step(state, cls)
            if target not in numbers:
                numbers[target] = len(found)
                found.append(target)
                waiting.append(target)
            transitions.append(numbers[target])
    return found, transitions
