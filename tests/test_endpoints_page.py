"""docs/endpoints.md names every endpoint that is served, and tests that exist."""

import re
from pathlib import Path

from relay.wire.endpoints import DIALECT_NAMES, ENDPOINTS

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "endpoints.md").read_text().splitlines()
    if re.match(r"\| (`[A-Z]+ /|\|)", line)
]


def test_every_served_endpoint_has_a_row_and_no_other():
    shown = {(row[0].strip("`"), row[1]) for row in ROWS if row[0]}
    served = {(f"{e.method} {e.path}", DIALECT_NAMES[e.dialect]) for e in ENDPOINTS if e.served}
    assert shown == served


def test_every_named_test_exists():
    assert len(ROWS) > 20
    for row in ROWS:
        names = re.findall(r"`(test_\w+\.py)::(\w+)`", row[4])
        assert names, row
        for file, name in names:
            text = (ROOT / "tests" / "functional" / file).read_text()
            assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), (file, name)


def test_kinds_and_methods():
    for row in ROWS:
        assert row[2] in ("JSON", "stream", "upload", "WebSocket"), row
        assert row[3], row
