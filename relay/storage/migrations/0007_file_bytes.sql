-- Schema 7. How large stored files are: limits.files_bytes bounds them per account. 0: not known (older ones), or no file.

BEGIN IMMEDIATE;

PRAGMA user_version = 7;

ALTER TABLE objects ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;

COMMIT;
