"""More text for tools/fit_corpora.py of scripts that are easily too narrow, from Cyrillic and Greek to Chinese.

Most sources here are on both sides, split by document (a file; in the PUD treebanks the news article or encyclopedia
page that a sentence comes from), never by chunk.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fit_corpora import Corpora


def _half(name: str) -> str:
    return "test" if hashlib.sha256(name.encode()).digest()[0] & 1 else "train"


def articles(folder: Path, part: str, space: str) -> list[str]:
    """The documents of one half of a PUD treebank, each in the order of its sentences."""
    documents: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.conllu")):
        for name, text in re.findall(
            r"^# sent_id = (\w\d{5})\d*\n(?:#.*\n)*?# text = (.*)$", path.read_text("utf-8"), re.M
        ):
            documents.setdefault(name, []).append(text)
    return ["\n\n".join([space.join(lines) for name, lines in documents.items() if _half(name) == part])]


def poem(path: Path) -> str:
    """The poems or chapters of one file of chinese-poetry."""
    rows = json.loads(path.read_text("utf-8"))
    texts = []
    for row in rows if isinstance(rows, list) else [rows]:
        lines = [x for x in row.get("paragraphs") or row.get("content") or [] if isinstance(x, str)]
        head = [str(row[k]) for k in ("title", "rhythmic", "author", "chapter") if row.get(k)]
        texts.append("\n".join(head + lines))
    return "\n\n".join(texts)


def manual_page(path: Path) -> str:
    """The text of a manual page without its requests."""
    from fit_corpora import plain

    lines = [line for line in plain(path).split("\n") if not line.startswith((".", "'"))]
    return re.sub(r"\\f.|\\&|\\%", "", "\n".join(lines)).replace("\\-", "-")


def pages(path: Path) -> str:
    """HTML without what every page repeats."""
    from fit_corpora import markup

    return markup(path) if path.stat().st_size > 3000 else ""


def add(c: "Corpora") -> None:
    from fit_corpora import no_space_treebank, plain, treebank

    for code, name, space in (
        ("ru", "Russian", " "),
        ("hi", "Hindi", " "),
        ("th", "Thai", " "),
        ("zh-tw", "Chinese", ""),
    ):
        for part in ("train", "test"):
            folder = c.sources / f"UD_{name}-PUD"
            c.add_text(f"{code}-news", "natural", part, articles(folder, part, space))
    for code in ("el", "ja", "zh-cn", "zh-tw"):
        folder = f"libreoffice-help-{code}/usr/share/libreoffice/help"
        c.split(f"{code}-office", "natural", folder, pages, "*/text/**/*.html")
    for code in ("el", "ja", "ru"):
        c.split(f"{code}-gimp", "natural", f"gimp-help-{code}/usr/share/gimp/2.0/help/{code}", pages, "*.html")
    for code, folder in (("ru", "ru-RU"), ("ja", "ja-JP"), ("zh-cn", "zh-CN")):
        c.split(
            f"{code}-handbook",
            "natural",
            f"debian-handbook/usr/share/doc/debian-handbook/html/{folder}",
            pages,
            "*.html",
        )
    # The chapters of this book repeat the same listings, so a book is on one side.
    for code in ("ru", "ja", "zh", "zh-tw"):
        c.add(f"{code}-book", "natural", "test", "progit", plain, f"{code}/*/*.markdown")
    c.add("th-book", "natural", "train", "progit", plain, "th/*/*.markdown")
    c.split("ru-manual", "natural", "manpages-ru/usr/share/man/ru", manual_page, "man*/*.gz")
    c.split("zh-manual", "natural", "manpages-zh/usr/share/man/zh_CN", manual_page, "man*/*.gz")
    c.split("th-web", "natural", "th.reactjs.org", plain, "content/**/*.md")
    c.add("th-chat", "natural", "train", "wisesight-sentiment", plain, "neg.txt", "pos.txt")
    c.add("th-chat", "natural", "test", "wisesight-sentiment", plain, "neu.txt", "q.txt")
    # Treebanks of loose sentences: their own division.
    for corpus, folder in (("ru-wiki", "UD_Russian-GSD"), ("bg-news", "UD_Bulgarian-BTB"), ("th-tud", "UD_Thai-TUD")):
        c.add(corpus, "natural", "train", folder, treebank, "*dev.conllu")
        c.add(corpus, "natural", "test", folder, treebank, "*test.conllu")
    for corpus, folder in (("zh-tw-wiki", "UD_Chinese-GSD"), ("zh-classical", "UD_Classical_Chinese-Kyoto")):
        c.add(corpus, "natural", "train", folder, no_space_treebank, "*dev.conllu")
        c.add(corpus, "natural", "test", folder, no_space_treebank, "*test.conllu")
    c.add("zh-subtitles", "natural", "test", "UD_Chinese-HK", no_space_treebank, "*.conllu")
    # Song lyrics only to measure; left out are collections that repeat poems of another file.
    c.split("zh-verse", "natural", "chinese-poetry", poem, "全唐诗/poet.*.json")
    c.add("zh-lyrics", "natural", "train", "chinese-poetry", poem, "五代诗词/**/*.json")
    c.add("zh-lyrics", "natural", "test", "chinese-poetry", poem, "宋词/ci.song*.json")
