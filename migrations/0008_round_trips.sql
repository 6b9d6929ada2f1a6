-- Fewer round trips for a charge. The two statements of the ledger that each one
-- runs are functions, since between the client and Postgres a trip costs more
-- than most of the statements inside. They decide nothing; the kernel does.

-- +goose Up

-- Locks the accounts in the order of their key, and gives them with their open
-- grants, one row for each grant, or one without a grant. The grants are read by
-- a statement of their own, behind the lock: it sees what the transaction that
-- held the lock before has written.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION ledger_load(ref_part smallint[], ref_account text[])
RETURNS TABLE (
    part smallint, account text, available bigint, held bigint, debt bigint, version bigint, overdraft bigint, chain bytea,
    grant_id text, kind text, credits bigint, remaining bigint, priority integer, expires_at timestamptz, reason text, payment text,
    fingerprint bytea, transfer_version bigint, created_at timestamptz
)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM 1
    FROM accounts a
    JOIN unnest(ref_part, ref_account) AS r (part, account) ON a.part = r.part AND a.account = r.account
    ORDER BY a.part, a.account
    FOR UPDATE OF a;

    RETURN QUERY
    SELECT a.part, a.account, a.available, a.held, a.debt, a.version, a.overdraft, a.chain,
        g.grant_id, g.kind, g.credits, g.remaining, g.priority, g.expires_at, g.reason, g.payment,
        g.fingerprint, g.transfer_version, g.created_at
    FROM unnest(ref_part, ref_account) AS r (part, account)
    JOIN accounts a ON a.part = r.part AND a.account = r.account
    LEFT JOIN grants g ON g.part = a.part AND g.account = a.account AND g.remaining > 0;
END
$$;
-- +goose StatementEnd

-- Writes what a batch has decided about accounts that ledger_load has locked:
-- transfers (t_…), remainders of grants that stand (g_…), balances (a_…). An
-- array of arrays cannot be unnested row by row, so the grants of a transfer
-- come as array literals.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION ledger_save(
    t_part smallint[], t_account text[], t_version bigint[], t_kind text[], t_amount bigint[], t_source text[], t_target text[], t_cause text[],
    t_grant_ids text[], t_grant_amounts text[], t_available bigint[], t_held bigint[], t_debt bigint[], t_actor text[], t_note text[],
    t_posted_at timestamptz[], t_hash bytea[],
    g_part smallint[], g_account text[], g_id text[], g_remaining bigint[],
    a_part smallint[], a_account text[], a_available bigint[], a_held bigint[], a_debt bigint[], a_version bigint[], a_chain bytea[]
)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    INSERT INTO transfers (part, account, version, kind, amount, source, target, cause, grant_ids, grant_amounts,
        available_after, held_after, debt_after, actor, note, posted_at, hash)
    SELECT t.part, t.account, t.version, t.kind, t.amount, t.source, t.target, t.cause, t.grant_ids::text[], t.grant_amounts::bigint[],
        t.available, t.held, t.debt, t.actor, t.note, t.posted_at, t.hash
    FROM unnest(t_part, t_account, t_version, t_kind, t_amount, t_source, t_target, t_cause, t_grant_ids, t_grant_amounts,
        t_available, t_held, t_debt, t_actor, t_note, t_posted_at, t_hash)
        AS t (part, account, version, kind, amount, source, target, cause, grant_ids, grant_amounts,
        available, held, debt, actor, note, posted_at, hash);

    IF cardinality(g_id) > 0 THEN
        UPDATE grants g
        SET remaining = r.remaining
        FROM unnest(g_part, g_account, g_id, g_remaining) AS r (part, account, grant_id, remaining)
        WHERE g.part = r.part AND g.account = r.account AND g.grant_id = r.grant_id;
    END IF;

    UPDATE accounts a
    SET available = r.available, held = r.held, debt = r.debt, version = r.version, chain = r.chain
    FROM unnest(a_part, a_account, a_available, a_held, a_debt, a_version, a_chain) AS r (part, account, available, held, debt, version, chain)
    WHERE a.part = r.part AND a.account = r.account;
END
$$;
-- +goose StatementEnd

-- Rises with every change of a meter, so that who has read the meter before can
-- tell whether it still stands so.
ALTER TABLE meters ADD COLUMN revision integer NOT NULL DEFAULT 1;

-- As for usage (0005): a writer holds by the account's lock what these held, and
-- verify finds what somebody else breaks. They were a third of what it cost to
-- write a reservation.
ALTER TABLE reservations
    DROP CONSTRAINT reservations_account,
    DROP CONSTRAINT reservations_hold,
    DROP CONSTRAINT reservations_end,
    DROP CONSTRAINT reservations_rate;
