-- A usage is looked up by its key before it is charged. An index that starts
-- with part and account serves that lookup, too, and before the table has been
-- analyzed costs the planner the same: it then reads everything the account
-- ever used, for every id. So the index for reading by time is on an expression,
-- which the lookup by key cannot match; whoever reads by time names it.

-- +goose Up
DROP INDEX usage_by_account;
CREATE INDEX usage_by_account ON usage (part, (account || ''), occurred_at);
