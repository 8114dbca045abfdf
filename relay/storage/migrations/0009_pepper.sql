-- Schema 9. Which pepper belongs to this store.

BEGIN IMMEDIATE;

PRAGMA user_version = 9;

-- HMAC under the pepper of a fixed text; NULL until the first start with it.
ALTER TABLE store ADD COLUMN pepper_check BLOB CHECK (length(pepper_check) = 32);

COMMIT;
