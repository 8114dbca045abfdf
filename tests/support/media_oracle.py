"""What pictures of a request cost in tokens, in plain Python: the oracle of relay/fastpath/media.pxi.

By the rules that the providers publish; a picture whose size is not known (None) counts as the largest.
"""

from math import ceil

from tests.support.tap_oracle import COUNT_TOKENS, GEMINI_COUNT, GEMINI_EMBED, GENERATE, MESSAGES

Size = tuple[int, int] | None

# By the longest beginning of the name: tokens per picture and per tile of 512 pixels; or per patch of 32 pixels.
TILES = {"": (85, 170), "gpt-4o-mini": (2833, 5667), "gpt-5": (70, 140), "o1": (75, 150), "o3": (75, 150)}
PATCHES = {
    "gpt-5-mini": 1620,
    "gpt-5-nano": 2460,
    "gpt-4.1-mini": 1620,
    "gpt-4.1-nano": 2460,
    "o4-mini": 1720,
}  # in thousandths
OLD_CLAUDE = ("claude-2", "claude-3", "claude-instant", "-4-0", "-4-1", "-4-2", "-4-5", "-4-6", "-4.5", "-4.6")


def shrunk(size: tuple[int, int], most: int) -> tuple[int, int]:
    """(long, short) with a long side of at most so many pixels."""
    long, short = size
    return size if long <= most else (most, max(short * most // long, 1))


def tiles(size: Size) -> int:
    if size is None:
        return 8
    long, short = shrunk((max(size), min(size)), 2048)
    if short > 768:
        long, short = ceil(long * 768 / short), 768
    return ceil(long / 512) * ceil(short / 512)


def patches(size: Size) -> int:
    return 1536 if size is None else min(ceil(size[0] / 32) * ceil(size[1] / 32), 1536)


def claude(size: Size, *, high: bool) -> int:
    most = 4784 if high else 1568
    if size is None:
        return most
    long, short = shrunk((max(size), min(size)), 2576)
    if not high:
        long, short = shrunk((long, short), 1568)
    return min(ceil(long * short / 750), most)


def gemini_tiles(size: Size) -> int:
    if size is None:
        return 4
    if max(size) <= 384:
        return 1
    unit = max(256, min(768, min(size) * 2 // 3))
    return min(ceil(max(size) / unit) * ceil(min(size) / unit), 64)


def tokens(format: int, model: str, pictures: list[tuple[Size, bool]], resolution: int = 1120) -> int:
    """Of pictures as (size, whether `detail` is low)."""
    if not pictures:
        return 0
    if format in (MESSAGES, COUNT_TOKENS) or "claude" in model:
        high = not any(part in model for part in OLD_CLAUDE)
        return sum(claude(size, high=high) for size, _ in pictures)
    if format in (GENERATE, GEMINI_COUNT, GEMINI_EMBED):
        return max(len(pictures) * resolution, sum(gemini_tiles(size) for size, _ in pictures) * 258)
    name = model.rpartition("/")[2]
    start = max((start for start in (*TILES, *PATCHES) if name.startswith(start)), key=len)
    if start in PATCHES:
        cut = sum(patches(size) for size, low in pictures if not low)
        return ceil(cut * PATCHES[start] / 1000) + 85 * sum(low for _, low in pictures)
    each, per_tile = TILES[start]
    return sum(each + (0 if low else tiles(size) * per_tile) for size, low in pictures)
