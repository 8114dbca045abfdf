-- Schema 13. What was written off, per key and day: caps count what was charged. The entries of write-offs name their
-- calls, but records of calls are deleted by retention, and these sums stay, like `rollups` and `spend`.

BEGIN IMMEDIATE;

PRAGMA user_version = 13;

CREATE TABLE written_off (
    account_id INTEGER NOT NULL,
    key_id INTEGER NOT NULL, -- 0: of a call whose record was deleted before this table was there
    day INTEGER NOT NULL, -- on which the call began
    amount_nano INTEGER NOT NULL,
    PRIMARY KEY (account_id, key_id, day)
) STRICT, WITHOUT ROWID;

INSERT INTO written_off
SELECT entries.account_id, coalesce(calls.key_id, 0), call_id / 90596966400000, sum(amount_nano)
FROM entries LEFT JOIN calls ON calls.id = call_id
WHERE kind = 'write_off'
GROUP BY 1, 2, 3;

COMMIT;
