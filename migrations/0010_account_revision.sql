-- By which a writer can tell that nobody has changed an account since it was read.

-- +goose Up

-- Rises with every change of what is said about the account; its balance has a
-- version of its own. A constant default: the table is not rewritten, and a
-- process of the version before, which knows no such column, goes on writing.
ALTER TABLE accounts ADD COLUMN revision integer NOT NULL DEFAULT 1;
