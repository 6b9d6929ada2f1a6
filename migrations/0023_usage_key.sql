-- Usage is found by the version of its transfer, to which the guard of every
-- charge (transfers_usage) leads. Versions rise: the key's index grows at its end,
-- where one of ids, which come in any order, was written all over.

-- +goose Up

SET LOCAL statement_timeout = 0; -- an index is made of all usage
ALTER TABLE usage DROP CONSTRAINT usage_pkey;
ALTER TABLE usage ADD CONSTRAINT usage_pkey PRIMARY KEY (part, account, transfer_version, recorded_at);
