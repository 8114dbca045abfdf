"""Whether two names of models mean the same: providers answer with the snapshot behind an alias, relays of several
providers with the provider in front of the name or without it."""

import re
from typing import Final

NAME: Final = re.compile(r"[A-Za-z0-9._:/@-]{1,64}")
# What may stand behind a name without making it another model: a date, the number of a snapshot, a channel of release.
_SNAPSHOT: Final = re.compile(
    r"([-@:._](\d{4}-\d{2}-\d{2}|\d{8}|\d{6}|\d{4}|\d{2}-\d{2}(-\d{4})?|\d{2}-\d{4}|00\d|v\d+(:\d+)?"
    r"|latest|preview|exp|free|nitro|floor|online|default))+"
)


def is_same(asked: str, named: str) -> bool:
    """Aliases, and dated snapshots of the same name, are no difference."""
    one, other = _plain(asked), _plain(named)
    short, long = sorted((one, other), key=len)
    rest = long[len(short) :]
    return (long.startswith(short) and (not rest or _SNAPSHOT.fullmatch(rest) is not None)) or _bare(one) == _bare(
        other
    )


def _plain(name: str) -> str:
    return name.lower().removeprefix("models/").rpartition("/")[2]


def _bare(name: str) -> str:
    """Without what may stand behind it."""
    found = re.search(_SNAPSHOT.pattern + "$", name)
    return name[: found.start()] if found is not None else name
