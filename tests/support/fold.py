"""The fold of call records (relay/fastpath/fold.pxi) in plain Python."""

from typing import Any

from relay.records import call_day

MEASURE_MAX = 2**41
COST_MAX = 10**16


def fold_calls(records: list[Any], shapes: dict[Any, int], shape_id: Any, last_used: dict[int, int]) -> tuple[Any, ...]:
    rows: list[Any] = []
    sums: dict[Any, list[int]] = {}
    accounts: dict[int, list[int]] = {}
    spend: dict[tuple[int, int], int] = {}
    write_offs: list[tuple[int, int, int]] = []
    used: list[tuple[int, int]] = []
    more: list[tuple[int, Any]] = []
    for record in records:
        if len(record) not in (28, 29) or record[0] < 0 or not 0 <= record[20] <= COST_MAX:
            raise ValueError
        more += [(record[0], field) for field in record[28:]]
        shape = (record[4:12], record[19], record[21])
        if shape not in shapes:
            shapes[shape] = shape_id(record)
        if not all(0 <= measure <= MEASURE_MAX for measure in record[12:19]):
            raise ValueError
        rows += [*record[:2], record[2] or 0, record[3], shapes[shape], *record[12:19], record[20], *record[22:26]]
        call_id, account_id, key_id, day = record[0], record[1], record[3], call_day(record[0])
        if account_id is None:
            continue
        group = sums.setdefault((account_id, key_id, record[5], day), [0] * 10)
        for index, value in enumerate((1, record[11] is not None, *record[12:19], record[20])):
            group[index] += value
        if key_id is not None and last_used.get(key_id, -1) < day:
            last_used[key_id] = day
            used.append((day, key_id))
        if record[20]:
            if record[26] < 0:
                raise ValueError
            write_off = min(record[26], record[20])
            if write_off:
                write_offs.append((account_id, write_off, call_id))
            account = accounts.setdefault(account_id, [0, 0])
            account[0] += record[20] - write_off
            account[1] = call_id
            spend[(account_id, day)] = spend.get((account_id, day), 0) + record[20]
    common: list[Any] = []
    full: list[Any] = []
    for (account_id, key_id, model, day), group in sums.items():
        head = [account_id, key_id or 0, day, model or ""]
        calls, failed, read, written, *others, cost = group
        if failed or any(others):
            full += [*head, *group]
        else:
            common += [*head, calls, read, written, cost]
    flat_accounts = [value for account_id, (draw, last) in accounts.items() for value in (account_id, draw, last)]
    flat_spend = [value for (account_id, day), cost in spend.items() for value in (account_id, day, cost)]
    return rows, common, full, flat_accounts, flat_spend, write_offs, used, more
