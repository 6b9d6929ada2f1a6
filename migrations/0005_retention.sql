-- Retention: usage lives in one partition per UTC month of recorded_at, so that
-- an old month can be exported and let go of.
--
-- The guard of every charge moves to the journal, which is never let go of: one
-- usage is one transfer of kind usage. A usage is recorded when its transfer is
-- posted, so whoever knows the transfer knows the partition.

-- +goose Up

-- Rows are moved, which takes as long as there are rows.
SET LOCAL statement_timeout = 0;
LOCK TABLE accounts, transfers, usage IN ACCESS EXCLUSIVE MODE;

-- Both are on an expression for the reason given in 0004: a lookup by cause must
-- not be able to go by transfers_pkey, through all that an account ever did.
CREATE UNIQUE INDEX transfers_usage ON transfers (part, (account || ''), cause) WHERE kind = 'usage';
CREATE INDEX transfers_captures ON transfers (part, (account || ''), cause) WHERE kind = 'capture';

-- What these held, a writer holds by the account's lock; verify finds what
-- somebody else breaks. Each cost a probe and a row lock per usage.
ALTER TABLE transfers DROP CONSTRAINT transfers_account;

ALTER TABLE usage RENAME TO usage_moved;
ALTER INDEX usage_by_account RENAME TO usage_moved_by_account;
ALTER INDEX usage_by_time RENAME TO usage_moved_by_time;
ALTER TABLE usage_moved RENAME CONSTRAINT usage_pkey TO usage_moved_pkey;

CREATE TABLE usage (
    part             smallint    NOT NULL,
    account          text        NOT NULL,
    usage_id         text        NOT NULL,
    meter            text        NOT NULL,
    quantity         bigint      NOT NULL,
    credits          bigint      NOT NULL, -- charged
    rate_version     integer     NOT NULL,
    staged           bigint      NOT NULL, -- quantity staged for Stripe with it; 0 when the meter was not bound
    dimensions       jsonb       NOT NULL,
    occurred_at      timestamptz NOT NULL,
    recorded_at      timestamptz NOT NULL, -- posted_at of its transfer
    fingerprint      bytea       NOT NULL,
    transfer_version bigint      NOT NULL,
    available_after  bigint      NOT NULL, -- the balance in the first answer, which a replay repeats
    held_after       bigint      NOT NULL,
    debt_after       bigint      NOT NULL,
    CONSTRAINT usage_pkey PRIMARY KEY (part, account, usage_id, recorded_at),
    CONSTRAINT usage_id_length CHECK (length(usage_id) BETWEEN 8 AND 160),
    CONSTRAINT usage_quantity_positive CHECK (quantity > 0),
    CONSTRAINT usage_credits_not_negative CHECK (credits >= 0),
    CONSTRAINT usage_staged_not_negative CHECK (staged >= 0),
    CONSTRAINT usage_fingerprint_length CHECK (length(fingerprint) = 32)
) PARTITION BY RANGE (recorded_at);
-- For reading by time; why the expression: 0004. It does not begin with part, by
-- which a plan that was made of an empty month would look usage up.
CREATE INDEX usage_by_account ON usage ((account || ''), occurred_at);
CREATE INDEX usage_by_time ON usage USING brin (occurred_at); -- whole windows, for the auditor: usage arrives nearly in order

-- Catches what comes before its month was made, so that usage never fails for
-- want of a partition. It is empty but for that.
CREATE TABLE usage_default PARTITION OF usage DEFAULT;

-- Months whose rows were exported and let go of.
CREATE TABLE usage_archives (
    month       timestamptz NOT NULL, -- its begin; recorded_at in [month, until)
    until       timestamptz NOT NULL,
    usages      bigint      NOT NULL,
    quantity    numeric     NOT NULL, -- sums over all accounts and meters, in millionths
    credits     numeric     NOT NULL,
    staged      numeric     NOT NULL,
    file        text        NOT NULL, -- the export's name
    sha256      bytea       NOT NULL, -- of the export
    archived_at timestamptz NOT NULL,
    CONSTRAINT usage_archives_pkey PRIMARY KEY (month),
    CONSTRAINT usage_archives_span CHECK (month < until),
    CONSTRAINT usage_archives_hash_length CHECK (length(sha256) = 32)
);

-- What stays of them for good: sums by UTC hour of occurred_at. Usage of one hour
-- may have been recorded in two months; each month has its own sums.
CREATE TABLE usage_hours (
    part           smallint    NOT NULL,
    account        text        NOT NULL,
    month          timestamptz NOT NULL, -- the archive
    hour           timestamptz NOT NULL,
    meter          text        NOT NULL,
    dimensions_key bytea       NOT NULL, -- SHA-256 of dimensions, which may be too long for a key
    bound          boolean     NOT NULL, -- recorded after the meter was bound at Stripe, as the binding was when it was archived
    voided         boolean     NOT NULL, -- taken back since: it was charged, but is no usage
    dimensions     jsonb       NOT NULL,
    usages         bigint      NOT NULL,
    quantity       bigint      NOT NULL,
    credits        bigint      NOT NULL,
    staged         bigint      NOT NULL,
    withdrawn      bigint      NOT NULL, -- of staged, what was taken back with the void
    highest        bigint      NOT NULL, -- quantity, for meters that aggregate by max
    latest         bigint      NOT NULL, -- quantity, for meters that aggregate by last,
    latest_at      timestamptz NOT NULL, -- when it occurred
    latest_version bigint      NOT NULL, -- and its transfer, which decides where several occurred at once
    first_recorded timestamptz NOT NULL,
    last_recorded  timestamptz NOT NULL,
    CONSTRAINT usage_hours_pkey PRIMARY KEY (part, account, month, hour, meter, dimensions_key, bound, voided),
    CONSTRAINT usage_hours_archive FOREIGN KEY (month) REFERENCES usage_archives (month),
    CONSTRAINT usage_hours_sums CHECK (usages > 0 AND quantity > 0 AND credits >= 0 AND staged >= 0 AND withdrawn >= 0 AND (voided OR withdrawn = 0)),
    CONSTRAINT usage_hours_key_length CHECK (length(dimensions_key) = 32)
);
CREATE INDEX usage_hours_by_account ON usage_hours ((account || ''), hour);
CREATE INDEX usage_hours_by_time ON usage_hours USING brin (hour);

-- Makes the partition of a month, and moves into it what the default has caught
-- of it. False: it stands, or the month was archived. The service calls it ahead
-- of time; it owns no table, so this runs with the rights of whoever does.
-- +goose StatementBegin
CREATE FUNCTION make_usage_partition(at timestamptz) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET timezone = 'UTC' AS $$
DECLARE
    first timestamptz := date_trunc('month', at);
    after timestamptz := first + interval '1 month';
    name  text        := 'usage_' || to_char(first, 'YYYY_MM');
BEGIN
    IF to_regclass(name) IS NOT NULL OR EXISTS (SELECT FROM usage_archives a WHERE a.month = first) THEN
        RETURN false;
    END IF;
    LOCK TABLE usage_default IN ACCESS EXCLUSIVE MODE;
    IF to_regclass(name) IS NOT NULL THEN -- somebody was quicker
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE usage INCLUDING CONSTRAINTS)', name);
    EXECUTE format('INSERT INTO %I SELECT * FROM usage_default WHERE recorded_at >= $1 AND recorded_at < $2', name) USING first, after;
    DELETE FROM usage_default WHERE recorded_at >= first AND recorded_at < after;
    EXECUTE format('ALTER TABLE usage ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, first, after);
    RETURN true;
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
DO $$
BEGIN
    -- Nobody's objects may come between those that the function names.
    EXECUTE format('ALTER FUNCTION make_usage_partition SET search_path = %I, pg_temp', current_schema());
END
$$;
-- +goose StatementEnd

SELECT make_usage_partition(m.month)
FROM (
    SELECT DISTINCT date_trunc('month', recorded_at, 'UTC') AS month FROM usage_moved
    UNION
    SELECT date_trunc('month', now(), 'UTC') + make_interval(months => n) FROM generate_series(0, 2) AS n
) m
ORDER BY m.month;

INSERT INTO usage (part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint,
    transfer_version, available_after, held_after, debt_after)
SELECT part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint,
    transfer_version, available_after, held_after, debt_after
FROM usage_moved;
DROP TABLE usage_moved;

-- The partitions themselves are nobody's: rows come and are read by way of usage.
GRANT SELECT, INSERT ON usage TO tallystick_service;
GRANT SELECT ON usage_default, usage_hours, usage_archives TO tallystick_service;
REVOKE ALL ON FUNCTION make_usage_partition FROM PUBLIC;
GRANT EXECUTE ON FUNCTION make_usage_partition TO tallystick_service;
