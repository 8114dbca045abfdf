-- Schema 6. What could not be recorded: records of calls and slots of the journal that make no sense, kept for the operator.

BEGIN IMMEDIATE;

PRAGMA user_version = 6;

-- Nothing of these was charged. content: the record as JSON, or the slot's bytes; of an old slot the texts are gone
-- (retention). call_id and account_id: what it says, 0 where that is no number.
CREATE TABLE set_aside (
    id INTEGER PRIMARY KEY,
    time_ms INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('record', 'slot')),
    reason TEXT NOT NULL CHECK (length(reason) <= 200),
    call_id INTEGER NOT NULL,
    account_id INTEGER NOT NULL,
    content BLOB NOT NULL CHECK (length(content) <= 4096)
) STRICT;
CREATE TRIGGER set_aside_is_not_deleted BEFORE DELETE ON set_aside
BEGIN SELECT RAISE(ABORT, 'what was set aside is kept'); END;

COMMIT;
