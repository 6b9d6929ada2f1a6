-- A group of charges in one round trip: what it was decided on is compared and
-- what was decided is written by one statement.

-- +goose Up

-- False: something is not as the caller knows it, and nothing was written. It
-- looks first whether a usage of these (u_…, and x_… that were refused as new ones)
-- is known already, and whether the meters (m_…) stand as known; whoever records one of these after that look
-- changes its account, and that is compared behind its lock.
--
-- Accounts (a_…) are locked, compared (w_…) and changed by one statement, in the
-- order of their key. Where only some are as known, there is something to take
-- back: an error, TS001. The insert of transfers is that of ledger_save; a call of
-- it would cost a lone charge more than the insert.
-- +goose StatementBegin
CREATE FUNCTION meter_save(
    m_meter text[], m_revision integer[], look boolean, x_part smallint[], x_account text[], x_id text[],
    a_part smallint[], a_account text[], w_available bigint[], w_held bigint[], w_debt bigint[], w_version bigint[], w_overdraft bigint[], w_chain bytea[],
    a_available bigint[], a_held bigint[], a_debt bigint[], a_version bigint[], a_chain bytea[],
    g_part smallint[], g_account text[], g_id text[], w_remaining bigint[], g_remaining bigint[],
    t_part smallint[], t_account text[], t_version bigint[], t_kind text[], t_amount bigint[], t_source text[], t_target text[], t_cause text[],
    t_grant_ids text[], t_grant_amounts text[], t_available bigint[], t_held bigint[], t_debt bigint[], t_actor text[], t_note text[],
    t_posted_at timestamptz[], t_hash bytea[],
    u_part smallint[], u_account text[], u_id text[], u_meter text[], u_quantity bigint[], u_credits bigint[], u_rate integer[], u_staged bigint[],
    u_dimensions text[], u_occurred_at timestamptz[], u_recorded_at timestamptz, u_fingerprint bytea[], u_version bigint[],
    u_available bigint[], u_held bigint[], u_debt bigint[]
)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    changed integer;
BEGIN
    IF look AND (EXISTS (
        SELECT FROM unnest(u_part || x_part, u_account || x_account, u_id || x_id) AS k (part, account, usage_id)
        CROSS JOIN LATERAL ( -- the limit, which changes nothing, keeps Postgres from reading the index whole
            SELECT FROM transfers t
            WHERE t.part = k.part AND (t.account || '') = k.account AND t.cause = k.usage_id AND t.kind = 'usage'
            LIMIT 1
        ) t
    ) OR cardinality(m_meter) <> (
        SELECT count(*) FROM unnest(m_meter, m_revision) AS w (meter, revision) JOIN meters m ON m.meter = w.meter AND m.revision = w.revision
    )) THEN
        RETURN false;
    END IF;

    UPDATE accounts a
    SET available = r.available, held = r.held, debt = r.debt, version = r.version, chain = r.chain
    FROM unnest(a_part, a_account, w_available, w_held, w_debt, w_version, w_overdraft, w_chain, a_available, a_held, a_debt, a_version, a_chain)
        AS r (part, account, was_available, was_held, was_debt, was_version, was_overdraft, was_chain, available, held, debt, version, chain)
    WHERE a.part = r.part AND a.account = r.account AND a.version = r.was_version AND a.chain = r.was_chain
        AND a.available = r.was_available AND a.held = r.was_held AND a.debt = r.was_debt AND a.overdraft = r.was_overdraft;
    GET DIAGNOSTICS changed = ROW_COUNT;
    IF changed = 0 AND cardinality(a_part) > 0 THEN
        RETURN false;
    ELSIF changed <> cardinality(a_part) THEN
        RAISE EXCEPTION 'some of the accounts are not as they were known' USING ERRCODE = 'TS001';
    END IF;

    IF cardinality(g_id) > 0 THEN
        UPDATE grants g
        SET remaining = r.remaining
        FROM unnest(g_part, g_account, g_id, w_remaining, g_remaining) AS r (part, account, grant_id, was_remaining, remaining)
        WHERE g.part = r.part AND g.account = r.account AND g.grant_id = r.grant_id AND g.remaining = r.was_remaining;
        GET DIAGNOSTICS changed = ROW_COUNT;
        IF changed <> cardinality(g_id) THEN
            RAISE EXCEPTION 'some of the grants are not as they were known' USING ERRCODE = 'TS001';
        END IF;
    END IF;

    INSERT INTO transfers (part, account, version, kind, amount, source, target, cause, grant_ids, grant_amounts,
        available_after, held_after, debt_after, actor, note, posted_at, hash)
    SELECT t.part, t.account, t.version, t.kind, t.amount, t.source, t.target, t.cause, t.grant_ids::text[], t.grant_amounts::bigint[],
        t.available, t.held, t.debt, t.actor, t.note, t.posted_at, t.hash
    FROM unnest(t_part, t_account, t_version, t_kind, t_amount, t_source, t_target, t_cause, t_grant_ids, t_grant_amounts,
        t_available, t_held, t_debt, t_actor, t_note, t_posted_at, t_hash)
        AS t (part, account, version, kind, amount, source, target, cause, grant_ids, grant_amounts,
        available, held, debt, actor, note, posted_at, hash);

    IF cardinality(u_part) > 0 THEN
        INSERT INTO usage (part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint,
            transfer_version, available_after, held_after, debt_after)
        SELECT u.part, u.account, u.usage_id, u.meter, u.quantity, u.credits, u.rate_version, u.staged, u.dimensions::jsonb, u.occurred_at, u_recorded_at,
            u.fingerprint, u.transfer_version, u.available, u.held, u.debt
        FROM unnest(u_part, u_account, u_id, u_meter, u_quantity, u_credits, u_rate, u_staged, u_dimensions, u_occurred_at, u_fingerprint, u_version,
            u_available, u_held, u_debt)
            AS u (part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, fingerprint, transfer_version,
            available, held, debt);
    END IF;
    RETURN true;
END
$$;
-- +goose StatementEnd

-- Postgres reads the text of every CHECK anew for each statement that writes a
-- row, and these lists of names were most of it. The kernel writes no other names,
-- and verify finds what somebody else writes.
ALTER TABLE transfers DROP CONSTRAINT transfers_kind, DROP CONSTRAINT transfers_books;
