"""Records beside the store: everything that fits is written, in order; what is slow or broken delays nobody."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from relay.config import Observe
from relay.config_values import ConfigError
from relay.control import documents
from relay.observe.access_log import AccessLog
from relay.observe.call_document import call_document
from relay.observe.outlet import RECORDS_MAX, Outlet
from relay.observe.outlets import Outlets
from relay.storage import Store
from tests.support.stored import call_record


class Gated:
    """A sink that waits to be let through, and fails when told to."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.records: list[Any] = []
        self.fails = False
        self.begun = threading.Event()

    def write(self, records: list[Any]) -> None:
        self.begun.set()
        assert self.gate.wait(20)
        if self.fails:
            raise OSError(28, "No space left on device")
        self.records += records

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        self.records.append("closed")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_the_document_is_that_of_the_operators_api(tmp_path: Path):
    records = [
        call_record(1, organisation_id=3, video_seconds=2),
        call_record(2, model=None, channel=None, first_byte_us=None, source_ip=None, error_code="model_not_found"),
    ]
    store = await Store.open(tmp_path / "data")
    try:
        store.append_calls(list(records))
        await store.flush()
        rows = {row.id: documents.call(row) for row in await store.calls()}
    finally:
        await store.close()
    for record in records:
        shown = rows[record[0]]
        assert call_document(record) == shown
        assert list(call_document(record)) == list(shown)


def test_what_does_not_fit_is_dropped_and_counted():
    sink = Gated()
    outlet = Outlet("test", sink)
    records = [call_record(number) for number in range(500)]
    outlet.put(records)
    assert sink.begun.wait(20)
    began = time.monotonic()
    for _ in range(60):
        outlet.put(records)
    assert time.monotonic() - began < 10  # it never waited for the sink
    assert outlet.dropped == 61 * 500 - RECORDS_MAX
    sink.gate.set()
    outlet.finish()
    outlet.join(20)
    assert sink.records == [*(records * (RECORDS_MAX // 500)), "closed"]


def test_a_sink_that_fails_loses_its_batch_and_goes_on(caplog: pytest.LogCaptureFixture):
    sink = Gated()
    sink.gate.set()
    sink.fails = True
    outlet = Outlet("test", sink)
    outlet.put([call_record(1)])
    deadline = time.monotonic() + 20
    while outlet.dropped < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sink.fails = False
    outlet.put([call_record(2)])
    outlet.finish()
    outlet.join(20)
    assert sink.records == [call_record(2), "closed"]
    assert outlet.dropped == 1
    assert [record.message.split(" (")[0] for record in caplog.records] == ["test cannot be written"]
    assert "No space" not in caplog.text


def test_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path):
    outlets = Outlets()
    path = tmp_path / "calls.jsonl"
    observe = Observe(access_log=str(path))
    outlets.use(observe, "config.toml")
    outlets.put([call_record(1)])
    deadline = time.monotonic() + 20
    while not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    path.rename(tmp_path / "calls.1")
    outlets.use(observe, "config.toml")
    outlets.put([call_record(2)])
    other = tmp_path / "other.jsonl"
    outlets.use(Observe(access_log=str(other)), "config.toml")
    outlets.put([call_record(3)])
    with pytest.raises(ConfigError, match=r"observe.access_log.*a file that can be written"):
        outlets.use(Observe(access_log=str(tmp_path / "no" / "such")), "config.toml")
    outlets.put([call_record(4)])
    outlets.close()
    deadline = time.monotonic() + 20
    while not path.exists() or not path.read_text():  # of an outlet that is no more in use
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found = [[line["id"] for line in lines(file)] for file in (tmp_path / "calls.1", path, other)]
    assert found == [[call_document(call_record(n))["id"] for n in numbers] for numbers in ((1,), (2,), (3, 4))]
    assert outlets.dropped() == {"access_log": 0}
    assert path.stat().st_mode & 0o777 & ~0o640 == 0


def test_a_full_disk_is_no_fault_of_calls():
    log = AccessLog("/dev/full")
    with pytest.raises(OSError, match="No space"):
        log.write([call_record(1)])
    log.reopen()
    log.close()
