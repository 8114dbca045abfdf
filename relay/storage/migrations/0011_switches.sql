-- Schema 11. What an operator has switched off, by kind and name: a channel is not chosen while it has a row here.

BEGIN IMMEDIATE;

PRAGMA user_version = 11;

CREATE TABLE switches (
    kind TEXT NOT NULL CHECK (length(kind) BETWEEN 1 AND 40),
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    off_ms INTEGER NOT NULL, -- when it was switched off
    message TEXT NOT NULL CHECK (length(message) <= 500), -- what callers are told
    by TEXT NOT NULL CHECK (length(by) <= 200), -- who did it
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

COMMIT;
