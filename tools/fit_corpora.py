"""Cuts public text into training and test chunks for tools/fit_tokens.py.

    python tools/fit_corpora.py SOURCES OUT.jsonl

SOURCES holds unpacked packages and repositories, one folder each (docs/tokens.md lists them and how to get them); what
is missing is skipped and named. A few corpora come from the machine itself (Python's library, headers, gettext files).
Each line of OUT is {"corpus", "kind", "part": "train" or "test", "text"}. A file gives text to one part only, and
where two sources of a kind exist, they are on different sides. Deterministic for the same sources.
"""

import base64
import gettext
import gzip
import hashlib
import html
import json
import random
import re
import sys
import unicodedata
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import fit_scripts

TRAIN_CHUNKS, TEST_CHUNKS = 130, 60
TRAIN_CHARS, TEST_CHARS = (200, 4000), (800, 4000)
READ_LIMIT = 4_000_000  # characters of one corpus part

Reader = Callable[[Path], str]


def plain(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return data.decode("utf-8", "strict")


def treebank(path: Path) -> str:
    """The sentences of a CoNLL-U treebank, five to a paragraph."""
    sentences = re.findall(r"^# text = (.*)$", plain(path), re.M)
    # Some treebanks hold their text with every mark set apart.
    sentences = [re.sub(r" ([,.;:!?)])", r"\1", sentence) for sentence in sentences]
    groups = [" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5)]
    return "\n\n".join(groups)


def no_space_treebank(path: Path) -> str:
    return treebank(path).replace("。 ", "。")


def markup(path: Path) -> str:
    """The text of HTML or XML, one line per block."""
    text = re.sub(r"(?s)<(script|style|info)\b.*?</\1>|<!--.*?-->|<\?.*?\?>|<!DOCTYPE.*?>", " ", plain(path))
    text = re.sub(r"(?s)</?(p|div|h\d|li|tr|td|dt|dd|pre|title|item|section|page|br|table|value)\b[^>]*>", "\n", text)
    text = html.unescape(re.sub(r"(?s)<[^>]*>", "", text))
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def catalogue(path: Path) -> str:
    """The translations of a compiled gettext file, those with some words in them."""
    with path.open("rb") as file:
        entries = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    return "\n".join(v for v in entries.values() if isinstance(v, str) and len(v) > 40 and "\n\n" not in v)


def files(root: Path, *patterns: str) -> list[Path]:
    found = {p for pattern in patterns for p in root.glob(pattern) if p.is_file() and not p.is_symlink()}
    return sorted(found, key=lambda p: hashlib.sha256(str(p.relative_to(root)).encode()).digest())


def chunks(text: str, part: str, rng: random.Random) -> Iterator[str]:
    low, high = TRAIN_CHARS if part == "train" else TEST_CHARS
    at = 0
    while len(text) - at >= low:
        size = int(low * (high / low) ** rng.random())
        piece = text[at : at + size]
        if len(piece) >= low:
            yield piece
        at += size


class Corpora:
    def __init__(self, sources: Path) -> None:
        self.sources = sources
        self.rows: list[dict[str, str]] = []

    def add_text(self, corpus: str, kind: str, part: str, texts: Iterable[str], chunks_max: int = 1000) -> None:
        rng = random.Random(f"{corpus}/{part}")
        pieces: list[str] = []
        read = 0
        for text in texts:
            pieces.extend(chunks(text, part, rng))
            read += len(text)
            if read > READ_LIMIT:
                break
        wanted = TRAIN_CHUNKS if part == "train" else TEST_CHUNKS
        chosen = rng.sample(pieces, min(wanted, chunks_max, len(pieces)))
        if len(chosen) < 10:
            print(f"few chunks: {corpus} {part} {len(chosen)}", file=sys.stderr)
        self.rows += [{"corpus": corpus, "kind": kind, "part": part, "text": t} for t in chosen]

    def add(self, corpus: str, kind: str, part: str, root: str, reader: Reader, *patterns: str) -> None:
        """Text of the files of one source; short files are joined."""
        folder = Path(root) if root.startswith("/") else self.sources / root
        self.add_text(corpus, kind, part, self._joined(files(folder, *patterns), reader))

    def split(self, corpus: str, kind: str, root: str, reader: Reader, *patterns: str) -> None:
        """One source on both sides, file by file."""
        folder = Path(root) if root.startswith("/") else self.sources / root
        found = files(folder, *patterns)
        self.add_text(corpus, kind, "train", self._joined(found[::2], reader))
        self.add_text(corpus, kind, "test", self._joined(found[1::2], reader))

    @staticmethod
    def _joined(paths: list[Path], reader: Reader) -> Iterator[str]:
        held = ""
        for path in paths:
            try:
                held += reader(path) + "\n"
            except (UnicodeDecodeError, OSError, ValueError):
                continue
            if len(held) > 20_000:
                yield held
                held = ""
        if held:
            yield held


def natural(c: Corpora) -> None:
    help_text = "usr/share/help"
    c.add("en-web", "natural", "train", "UD_English-EWT", treebank, "*.conllu")
    c.add("en-quotes", "natural", "train", "fortunes", plain, "usr/share/games/fortunes/[a-z]*[a-z]")
    c.add("en-docs", "natural", "train", "debian-reference-en", markup, "usr/share/debian-reference/ch*.html")
    c.add("en-mixed", "natural", "test", "UD_English-GUM", treebank, "*.conllu")
    c.add("en-book", "natural", "test", "progit", plain, "en/*/*.markdown")
    for code, name in (("de", "German"), ("fr", "French"), ("es", "Spanish")):
        c.add(
            f"{code}-docs", "natural", "train", f"debian-reference-{code}", markup, "usr/share/debian-reference/*.html"
        )
        c.add(f"{code}-help", "natural", "train", f"gnome-user-docs/{help_text}/{code}", markup, "*/*.page")
        c.add(f"{code}-news", "natural", "test", f"UD_{name}-PUD", treebank, "*.conllu")
    c.add("de-quotes", "natural", "train", "fortunes-de", plain, "usr/share/games/fortunes/de/*[a-z]")
    c.add("es-quotes", "natural", "train", "fortunes-es", plain, "usr/share/games/fortunes/es/*[a-z]")
    c.add("it-help", "natural", "train", f"gnome-user-docs/{help_text}/it", markup, "*/*.page")
    c.add("it-docs", "natural", "train", "debian-reference-it", markup, "usr/share/debian-reference/*.html")
    c.add("it-news", "natural", "test", "UD_Italian-PUD", treebank, "*.conllu")
    c.add("it-quotes", "natural", "train", "fortunes-it", plain, "usr/share/games/fortunes/it/*[a-z]")
    c.add("pt-docs", "natural", "train", "debian-reference-pt", markup, "usr/share/debian-reference/*.html")
    c.add("pt-book", "natural", "test", "progit", plain, "pt-br/*/*.markdown")
    for code in ("pl", "cs", "nl", "uk", "fi", "id", "hu"):
        c.add(f"{code}-help", "natural", "train", f"gnome-user-docs/{help_text}/{code}", markup, "*/*.page")
        c.add(f"{code}-book", "natural", "test", "progit", plain, f"{code}/*/*.markdown")
    c.add("uk-mixed", "natural", "train", "UD_Ukrainian-IU", treebank, "*.conllu")
    for code, name in (("pl", "Polish"), ("pt", "Portuguese"), ("id", "Indonesian")):
        c.add(f"{code}-news", "natural", "test", f"UD_{name}-PUD", treebank, "*.conllu")
    c.add("pt-help", "natural", "train", f"gnome-user-docs/{help_text}/pt_BR", markup, "*/*.page")
    c.add("sv-help", "natural", "train", f"gnome-user-docs/{help_text}/sv", markup, "*/*.page")
    c.add("tr-help", "natural", "train", f"gnome-user-docs/{help_text}/tr", markup, "*/*.page")
    c.add("tr-messages", "natural", "train", "/usr/share/locale", catalogue, "tr/LC_MESSAGES/*.mo")
    c.add("tr-news", "natural", "test", "UD_Turkish-PUD", treebank, "*.conllu")
    c.add("vi-help", "natural", "train", f"gnome-user-docs/{help_text}/vi", markup, "*/*.page")
    c.add("vi-news", "natural", "train", "UD_Vietnamese-VTB", treebank, "*.conllu")
    c.add("vi-book", "natural", "test", "progit", plain, "vi/*/*.markdown")
    c.add("ru-help", "natural", "train", f"gnome-user-docs/{help_text}/ru", markup, "*/*.page")
    c.add("ru-quotes", "natural", "train", "fortunes-ru", plain, "usr/share/games/fortunes/ru/*[a-z0-9]")
    c.add("ru-web", "natural", "train", "UD_Russian-Taiga", treebank, "*.conllu")
    c.add("el-help", "natural", "train", f"gnome-user-docs/{help_text}/el", markup, "*/*.page")
    c.add("el-news", "natural", "train", "UD_Greek-GDT", treebank, "*train.conllu", "*dev.conllu")
    c.add("el-news", "natural", "test", "UD_Greek-GDT", treebank, "*test.conllu")
    c.add("el-messages", "natural", "train", "/usr/share/locale", catalogue, "el/LC_MESSAGES/*.mo")
    c.add("el-fiction", "natural", "train", "UD_Greek-GUD", treebank, "*train.conllu")
    c.add("el-fiction", "natural", "test", "UD_Greek-GUD", treebank, "*test.conllu")
    c.add("ar-book", "natural", "train", "progit", plain, "ar/*/*.markdown")
    c.add("ar-messages", "natural", "train", "/usr/share/locale", catalogue, "ar/LC_MESSAGES/*.mo")
    c.add("ar-interface", "natural", "train", "libreoffice-l10n-ar", markup, "usr/lib/**/*.xcd")
    c.add("ar-news", "natural", "test", "UD_Arabic-PUD", treebank, "*.conllu")
    c.add("fa-help", "natural", "train", f"gnome-user-docs/{help_text}/fa", markup, "*/*.page")
    c.add("fa-news", "natural", "train", "UD_Persian-Seraji", treebank, "*dev.conllu")
    c.add("fa-book", "natural", "test", "progit", plain, "fa/*/*.markdown")
    c.add("he-news", "natural", "train", "UD_Hebrew-HTB", treebank, "*.conllu")
    c.add("he-messages", "natural", "train", "/usr/share/locale", catalogue, "he/LC_MESSAGES/*.mo")
    c.add("he-wiki", "natural", "test", "UD_Hebrew-IAHLTwiki", treebank, "*.conllu")
    c.add("hi-help", "natural", "train", f"gnome-user-docs/{help_text}/hi", markup, "*/*.page")
    c.add("hi-messages", "natural", "train", "/usr/share/locale", catalogue, "hi/LC_MESSAGES/*.mo")
    for code in ("ta", "te", "gu"):
        c.split(f"{code}-help", "natural", f"gnome-user-docs/{help_text}/{code}", markup, "*/*.page")
    for code in ("bn", "kn", "pa", "ml", "mr", "si", "km", "my", "ne", "ka", "hy", "am", "ug", "dz"):
        c.split(f"{code}-messages", "natural", "/usr/share/locale", catalogue, f"{code}*/LC_MESSAGES/*.mo")
    c.add("th-tud", "natural", "train", "UD_Thai-TUD", treebank, "*train.conllu")
    c.add("th-interface", "natural", "train", "libreoffice-l10n-th", markup, "usr/lib/**/*.xcd")
    c.add("ko-help", "natural", "train", f"gnome-user-docs/{help_text}/ko", markup, "*/*.page")
    c.add("ko-text", "natural", "train", "UD_Korean-Kaist", treebank, "*.conllu")
    c.add("ko-news", "natural", "test", "UD_Korean-PUD", treebank, "*.conllu")
    c.add("ja-docs", "natural", "train", "debian-reference-ja", markup, "usr/share/debian-reference/*.html")
    c.add("ja-wiki", "natural", "train", "UD_Japanese-GSD", no_space_treebank, "*.conllu")
    c.add("zh-docs", "natural", "train", "debian-reference-zh-cn", markup, "usr/share/debian-reference/*.html")
    c.add("zh-wiki", "natural", "train", "UD_Chinese-GSDSimp", no_space_treebank, "*.conllu")
    c.add("zh-help", "natural", "train", f"gnome-user-docs/{help_text}/zh_CN", markup, "*/*.page")
    c.add("zh-poems", "natural", "train", "fortunes-zh", plain, "usr/share/games/fortunes/tang300")
    c.add("zh-poems", "natural", "test", "fortunes-zh", plain, "usr/share/games/fortunes/song100")
    c.add("zh-tw-docs", "natural", "train", "debian-reference-zh-tw", markup, "usr/share/debian-reference/*.html")


EMOJI = (
    "😀😃😄😁😆😅🤣😂🙂😉😊😇🥰😍🤩😘😜🤔🤗🤫😐😏😬😴😷🤯🥳😎😕😮😳🥺😢😭😱😡💀💩👻🤖❤️💔💯💥💬👋👌✌️👍👎👏🙌🙏💪👀🧠👨‍💻👩‍🔬🐍🦀🐳🐛🌍🌟"
    "☀️🔥🎉🎯🏆🚗✈️🚀⏰📱💻💡📖📝📈📌📎🔒🔑🔨🔧⚙️⚡✅❌❓❗⚠️➡️🔄🆕🔴🟢🔵▶️⭐🇫🇷🇩🇪🇯🇵"
)


def emoji_chat(c: Corpora) -> None:
    """Emoji as chat texts and readmes hold them: after sentences, at line starts, alone and in runs."""
    clusters = re.findall(r"[🇦-🇿]{2}|.️?(?:‍.️?)*", EMOJI)
    for part, source in (("train", "UD_English-EWT"), ("test", "UD_English-GUM")):
        rng = random.Random(f"emoji/{part}")
        rows = []
        for path in files(c.sources / source, "*.conllu"):
            for sentence in re.findall(r"^# text = (.*)$", plain(path), re.M):
                some = "".join(rng.choices(clusters, k=rng.choice((1, 1, 1, 2, 3))))
                rows.append(
                    rng.choice((f"{sentence} {some}", f"{some} {sentence}", f"- {some} {sentence[:40]}", sentence))
                )
        c.add_text("emoji", "natural", part, ["\n".join(rows)])


def code(c: Corpora) -> None:
    python = f"{sys.base_prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    c.add("python-stdlib", "code", "train", python, plain, "[a-m]*.py", "asyncio/*.py", "email/*.py")
    c.add(
        "python-packages",
        "code",
        "test",
        sys.prefix,
        plain,
        "lib/python3*/site-packages/mistral_common/**/*.py",
        "lib/python3*/site-packages/dashscope/**/*.py",
    )
    c.add("javascript", "code", "train", "/usr/lib/node_modules", plain, "npm/lib/**/*.js")
    c.add(
        "javascript",
        "code",
        "test",
        "/usr/lib/node_modules",
        plain,
        "npm/node_modules/[m-z]*/lib/*.js",
        "npm/node_modules/[m-z]*/index.js",
    )
    c.split("typescript", "code", "excalidraw", plain, "packages/**/*.ts", "packages/**/*.tsx")
    c.add("c-headers", "code", "train", "/usr/include", plain, "*.h", "linux/[a-k]*.h")
    c.add("c-source", "code", "test", "trurl", plain, "*.c", "*.h")
    c.split("go", "code", "gin", plain, "**/*.go")
    c.split("rust", "code", "mini-redis", plain, "**/*.rs")
    c.split("java", "code", "spring-petclinic", plain, "**/*.java")
    c.split("shell", "code", "/usr/bin", lambda p: plain(p) if p.read_bytes()[:9] == b"#!/bin/sh" else "", "*")
    c.add("boxes", "code", "train", "debian-reference-en", plain, "usr/share/debian-reference/*.txt.gz")
    c.add("boxes", "code", "train", "debian-reference-zh-tw", plain, "usr/share/debian-reference/*.txt.gz")
    c.add("boxes", "code", "test", "debian-reference-fr", plain, "usr/share/debian-reference/*.txt.gz")
    c.split("css", "code", "excalidraw", plain, "**/*.scss", "**/*.css")
    c.add("html", "code", "train", "debian-reference-en", plain, "usr/share/debian-reference/*.html")
    c.add("xml", "code", "test", "gnome-user-docs/usr/share/help/de", plain, "gnome-help/*.page")
    c.add("xml", "code", "train", "gnome-user-docs/usr/share/help/fr", plain, "gnome-help/*.page")
    c.split("sql", "code", "/usr/share", plain, "**/*.sql")
    c.add("markdown", "code", "train", "/usr/lib/node_modules", plain, "npm/**/*.md")
    c.add("markdown", "code", "test", "excalidraw", plain, "**/*.md", "**/*.mdx")
    c.add("yaml", "code", "train", "excalidraw", plain, "**/*.yml")
    c.add("man-source", "code", "train", "/usr/share/man/man8", plain, "*.gz")


def machine(c: Corpora) -> None:
    c.add("json", "json", "train", "/usr/lib/node_modules", plain, "**/package.json")
    c.add("json", "json", "train", "litellm", plain, "litellm/*.json")
    c.add("json-packages", "json", "train", sys.base_prefix, plain, "**/*.json")
    c.add("json-locales", "json", "train", "excalidraw", plain, "packages/excalidraw/locales/[a-k]*.json")
    c.add("json-locales", "json", "test", "excalidraw", plain, "packages/excalidraw/locales/[l-z]*.json")
    c.add("json-other", "json", "test", "/usr/share", plain, "**/*.json")
    for part, systems in (
        ("train", "Android Apache BGL HDFS Hadoop HealthApp Linux Mac Proxifier"),
        ("test", "HPC OpenSSH OpenStack Spark Thunderbird Windows Zookeeper"),
    ):
        c.add("log", "log", part, "loghub", plain, *(f"{s}/*.log" for s in systems.split()))
        c.add("csv", "csv", part, "loghub", plain, *(f"{s}/*structured.csv" for s in systems.split()))
    for part, seed in (("train", 1), ("test", 2)):
        rng = random.Random(seed)
        c.add_text("tool-calls", "json", part, (tool_call(rng) for _ in range(150)))
        c.add_text("numbers-csv", "csv", part, (table(rng) for _ in range(80)))
        c.add_text("ids", "hex", part, (ids(rng) for _ in range(80)))
        blobs = binary(rng, part == "train")
        c.add_text("base64", "base64", part, (base64.b64encode(b).decode() for b in blobs))
        c.add_text("hex", "hex", part, (hexadecimal(b, rng) for b in blobs))
    c.add("digests", "hex", "train", "/var/lib/dpkg/info", plain, "[a-k]*.md5sums")
    c.add("digests", "hex", "test", "/var/lib/dpkg/info", plain, "[l-z]*.md5sums")


# First and last code point: letters that text hardly has, signs, and characters in no order that a language has.
BLOCKS = (
    (0x21, 0x7F),
    (0x61, 0x7B),
    (0xA1, 0x180),
    (0x180, 0x370),
    (0x370, 0x400),
    (0x400, 0x530),
    (0x531, 0x600),
    (0x600, 0x780),
    (0x900, 0xE00),
    (0xE00, 0x1000),
    (0x1000, 0x2000),
    (0x2000, 0x2C00),
    (0x3040, 0x3100),
    (0x3400, 0x4DC0),
    (0x4E00, 0xA000),
    (0xA000, 0xAC00),
    (0xAC00, 0xD7A4),
    (0xE000, 0xF900),
    (0xF900, 0x10000),
    (0x1D400, 0x1D800),
    (0x1F300, 0x1FB00),
    (0x20000, 0x2A6E0),
    (0x80, 0x30000),
)


def noise(c: Corpora) -> None:
    """Random characters: no language, but what keeps such text from being counted at a fraction of what it costs."""
    for part, seed in (("train", 3), ("test", 4)):
        rng = random.Random(seed)
        for low, high in BLOCKS:
            texts = []
            for size in (300, 900, 1500, 2500) * 3:
                spaces = rng.choice((0, 0, 0.05, 0.15))
                text = "".join(" " if rng.random() < spaces else chr(rng.randrange(low, high)) for _ in range(size))
                texts.append("".join(x for x in text if unicodedata.category(x) not in ("Cn", "Cs", "Cc")))
            c.add_text(f"random-{low:x}", "random characters", part, texts, 12)


def tool_call(rng: random.Random) -> str:
    """JSON as agents exchange it: schemas, arguments and results."""
    words = re.findall(
        r"\w+", "query path user limit status message created_at content type id name value result items total error"
    )

    def value(depth: int) -> object:
        kind = rng.randrange(8 if depth else 5)
        if kind == 0:
            return rng.randrange(10 ** rng.randrange(1, 7))
        if kind == 1:
            return rng.choice((True, False, None, round(rng.random() * 100, 2)))
        if kind == 2:
            return str(uuid.UUID(int=rng.getrandbits(128)))
        if kind in (3, 4):
            return " ".join(rng.choices(words, k=rng.randrange(1, 9)))
        if kind == 5:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        return {
            rng.choice(words) + rng.choice(("", "s", "_id", "Name")): value(depth - 1)
            for _ in range(rng.randrange(1, 6))
        }

    rows = [{rng.choice(words): value(3) for _ in range(6)} for _ in range(12)]
    indent = rng.choice((None, None, 2, 4))
    return json.dumps(rows, indent=indent, separators=rng.choice(((",", ":"), (", ", ": "))))


def table(rng: random.Random) -> str:
    columns = rng.randrange(3, 9)
    kinds = [rng.randrange(5) for _ in range(columns)]
    lines = [",".join(f"column_{i}" for i in range(columns))]
    for row in range(150):
        cells = []
        for kind in kinds:
            cells.append(
                (
                    str(row),
                    f"{rng.gauss(0, 10):.{rng.randrange(1, 7)}f}",
                    f"2026-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}",
                    rng.choice(("red", "green", "blue", "unknown")),
                    str(rng.randrange(1_000_000)),
                )[kind]
            )
        lines.append(",".join(cells))
    return "\n".join(lines)


def ids(rng: random.Random) -> str:
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    makers = (
        lambda: str(uuid.UUID(int=rng.getrandbits(128))),
        lambda: f"req_{''.join(rng.choices(alphabet, k=24))}",
        lambda: f"{rng.getrandbits(160):040x}",
        lambda: f"0x{rng.getrandbits(64):X}",
    )
    maker = rng.choice(makers)
    return rng.choice(("\n", ", ", '", "')).join(maker() for _ in range(150))


def binary(rng: random.Random, train: bool) -> list[bytes]:
    """Pictures, programs and compressed data."""
    found = [p for p in files(Path("/usr/share"), "**/*.png", "**/*.gz") if 3000 < p.stat().st_size < 200_000]
    found = found[::2] if train else found[1::2]
    blobs = [p.read_bytes()[:6000] for p in found[:60]]
    # Programs of one half of the alphabet only. The test part reads each at one place, the training also elsewhere.
    programs = files(Path("/usr/bin"), "[a-m]*" if train else "[n-z]*")
    for path in programs[: 120 if train else 40]:
        data = path.read_bytes()
        blobs.append(data[4096:10_000])
        if train:
            blobs += [data[:3000], data[len(data) * 2 // 3 :][:4500], data[-3000:]]
    blobs += [zlib.compress(rng.randbytes(4000)) for _ in range(20)]
    return blobs


def hexadecimal(data: bytes, rng: random.Random) -> str:
    style = rng.randrange(3)
    if style == 0:
        return data[:2500].hex()
    if style == 1:
        return data[:2500].hex(" ").upper()
    return "\n".join(f"{i:08x}  {data[i : i + 16].hex(' ', 2)}" for i in range(0, min(len(data), 1600), 16))


def main() -> None:
    sources, out = Path(sys.argv[1]), Path(sys.argv[2])
    c = Corpora(sources)
    natural(c)
    fit_scripts.add(c)
    emoji_chat(c)
    code(c)
    machine(c)
    noise(c)
    with out.open("w") as file:
        for row in c.rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(len(c.rows), "chunks", sum(len(r["text"].encode()) for r in c.rows) // 1000, "kB")


if __name__ == "__main__":
    main()
