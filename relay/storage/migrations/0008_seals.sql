-- Schema 8. A chain of digests over what is only ever added, and which organisations an account has belonged to.
-- The step of that number in seals.py follows, in the same transaction: it seals what is there, and commits.

BEGIN IMMEDIATE;

-- One row per transaction that added to these tables: SHA-256 of the digest before it and of the rows between `from` and
-- `to` (both included; `to` below `from`: none). Entries with their entry_lots.
CREATE TABLE seals (
    id INTEGER PRIMARY KEY,
    entries_from INTEGER NOT NULL,
    entries_to INTEGER NOT NULL,
    lots_from INTEGER NOT NULL,
    lots_to INTEGER NOT NULL,
    shapes_from INTEGER NOT NULL,
    shapes_to INTEGER NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32)
) STRICT;
CREATE TRIGGER seals_are_not_changed BEFORE UPDATE ON seals
BEGIN SELECT RAISE(ABORT, 'seals are append-only'); END;
CREATE TRIGGER seals_are_not_deleted BEFORE DELETE ON seals
BEGIN SELECT RAISE(ABORT, 'seals are append-only'); END;
CREATE TRIGGER seals_are_not_replaced BEFORE INSERT ON seals
WHEN EXISTS (SELECT 1 FROM seals WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'seals are append-only'); END;

CREATE TRIGGER lots_are_not_changed
BEFORE UPDATE OF id, account_id, kind, granted_nano, expires_ms, created_ms ON lots
BEGIN SELECT RAISE(ABORT, 'of a lot only is_open changes'); END;
CREATE TRIGGER shapes_are_not_changed BEFORE UPDATE ON shapes
BEGIN SELECT RAISE(ABORT, 'shapes are append-only'); END;
CREATE TRIGGER shapes_are_not_deleted BEFORE DELETE ON shapes
BEGIN SELECT RAISE(ABORT, 'shapes are append-only'); END;

-- Organisations that an account has left; 0: none. Calls of that time say so.
CREATE TABLE memberships (
    account_id INTEGER NOT NULL,
    organisation_id INTEGER NOT NULL,
    PRIMARY KEY (account_id, organisation_id)
) STRICT, WITHOUT ROWID;
INSERT INTO memberships
SELECT DISTINCT account_id, coalesce(organisation_id, 0) FROM calls WHERE account_id IS NOT NULL;

PRAGMA user_version = 8;
