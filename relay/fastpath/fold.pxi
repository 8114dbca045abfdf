# The store's fold: a group of call records into rows of `calls` and the sums that follow from them.
#
# It runs in the writer's thread for every record, so its cost counts in the cost of a call: 0.5 us here, 2 us in Python
# (benchmarks/writer.py). Values are checked on the way, so that no sum of a group can overflow; a record that does not
# pass makes the whole group fail, and the caller finds out which one it is.
#
# Oracle: tests/support/fold.py.

cimport cython

cdef int64_t FOLD_MEASURE_MAX = <int64_t>1 << 41   # the cache writes of a record are the sum of two numbers of usage
cdef int64_t FOLD_IDS_PER_DAY = <int64_t>86400000 << 20
cdef Py_ssize_t FOLD_FIELDS = 28


@cython.final
@cython.no_gc      # holds numbers and texts only: no cycles, and groups of thousands do not start collections
@cython.freelist(512)
cdef class FoldSums:
    # Sums over the calls of one account, key, model and day.
    cdef object account_id, key_id, model
    cdef int64_t day, calls, failed, cost
    cdef int64_t measures[7]   # input, output, cache read, cache write, images, video seconds, web searches


@cython.final
@cython.no_gc
@cython.freelist(512)
cdef class FoldAccount:
    # What one account's calls of a group take from its lots, and cost on the first of their days.
    cdef object account_id, call_id
    cdef int64_t draw, day, spend


def fold_calls(list records, dict shapes, object shape_id, dict last_used):
    """Returns (rows, common, full, accounts, spend, write_offs, used, more).

    rows: values of the rows of `calls`, one behind the other (17 each); 0 for no organisation.
    common, full: values of rollup rows, 8 each (account, key, day, model, calls, input, output, cost) where all else is
    zero, otherwise 14 each in the order of the table.
    accounts: values (account, to draw from lots, last call id), 3 each; spend: (account, day, cost), 3 each;
    write_offs: list of tuples (account, amount, call id); used: list of tuples (day, key id) for keys not used that day;
    more: list of (call id, the record's 29th field), of those that have one.

    shapes maps (fields 4 to 11, usage source, rate card) to ids; shape_id(record) gives the id of one that is not in it.
    last_used (key id -> day) is brought up to date. Raises TypeError, ValueError, OverflowError, IndexError.
    """
    cdef list rows = [], common = [], full = [], accounts = [], spend = [], write_offs = [], used = [], more = []
    cdef dict sums_by_key = {}, accounts_by_id = {}, other_days = {}
    cdef tuple record, shape
    cdef object account_id, key_id, call_id, model, found, fold_key
    cdef FoldSums sums
    cdef FoldAccount account
    cdef int64_t number, day, cost, value, write_off, rest
    cdef int64_t measures[7]
    cdef int index

    for record in records:
        call_id = record[0]
        if len(record) != FOLD_FIELDS:
            if len(record) != FOLD_FIELDS + 1:
                raise ValueError("a call record has 28 fields, or 29")
            more.append((call_id, record[28]))
        number = call_id
        if number < 0:
            raise ValueError("a call id is not below zero")
        account_id = record[1]
        key_id = record[3]
        cost = record[20]
        if not 0 <= cost <= COST_MAX:
            raise ValueError("a cost out of range")
        shape = (record[4:12], record[19], record[21])
        found = shapes.get(shape)
        if found is None:
            found = shape_id(record)
            shapes[shape] = found
        rows.append(call_id)
        rows.append(account_id)
        rows.append(0 if record[2] is None else record[2])
        rows.append(key_id)
        rows.append(found)
        for index in range(7):
            rows.append(record[12 + index])
            value = record[12 + index]
            if not 0 <= value <= FOLD_MEASURE_MAX:
                raise ValueError("a measure out of range")
            measures[index] = value
        rows.append(record[20])
        rows.append(record[22])
        rows.append(record[23])
        rows.append(record[24])
        rows.append(record[25])
        if account_id is None:
            continue

        day = number // FOLD_IDS_PER_DAY
        model = record[5]
        fold_key = (account_id, key_id, model, day)
        found = sums_by_key.get(fold_key)
        if found is None:
            sums = FoldSums.__new__(FoldSums)
            sums.account_id = account_id
            sums.key_id = 0 if key_id is None else key_id
            sums.model = "" if model is None else model
            sums.day = day
            sums.calls = sums.failed = sums.cost = 0
            memset(sums.measures, 0, sizeof(sums.measures))
            sums_by_key[fold_key] = sums
        else:
            sums = <FoldSums>found
        sums.calls += 1
        sums.failed += record[11] is not None
        for index in range(7):
            sums.measures[index] += measures[index]
        sums.cost += cost

        if key_id is not None:
            found = last_used.get(key_id)
            if found is None or <int64_t>found < day:
                last_used[key_id] = day
                used.append((day, key_id))

        if cost:
            write_off = record[26]
            if write_off < 0:
                raise ValueError("a write-off is not below zero")
            if write_off:
                write_off = min(write_off, cost)
                write_offs.append((account_id, write_off, call_id))
            found = accounts_by_id.get(account_id)
            if found is None:
                account = FoldAccount.__new__(FoldAccount)
                account.account_id = account_id
                account.draw = account.spend = 0
                account.day = day
                accounts_by_id[account_id] = account
            else:
                account = <FoldAccount>found
            account.draw += cost - write_off
            account.call_id = call_id
            if account.day == day:
                account.spend += cost
            else:
                fold_key = (account_id, day)
                other_days[fold_key] = other_days.get(fold_key, 0) + cost

    for sums in sums_by_key.values():
        rest = sums.failed
        for index in range(2, 7):
            rest |= sums.measures[index]
        if rest == 0:
            common += (sums.account_id, sums.key_id, sums.day, sums.model, sums.calls, sums.measures[0],
                       sums.measures[1], sums.cost)
        else:
            full += (sums.account_id, sums.key_id, sums.day, sums.model, sums.calls, sums.failed, sums.measures[0],
                     sums.measures[1], sums.measures[2], sums.measures[3], sums.measures[4], sums.measures[5],
                     sums.measures[6], sums.cost)
    for account in accounts_by_id.values():
        accounts += (account.account_id, account.draw, account.call_id)
        spend += (account.account_id, account.day, account.spend)
    for fold_key, found in other_days.items():
        spend += (fold_key[0], fold_key[1], found)
    return rows, common, full, accounts, spend, write_offs, used, more
