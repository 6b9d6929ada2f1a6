-- Reservations: credits held before the work is done.

-- +goose Up

-- What becomes of a reservation in doubt that nobody settles; NULL: it stays.
ALTER TABLE accounts
    ADD COLUMN in_doubt_seconds integer,
    ADD COLUMN in_doubt_action  text,
    ADD CONSTRAINT accounts_in_doubt CHECK ((in_doubt_seconds IS NULL) = (in_doubt_action IS NULL)),
    ADD CONSTRAINT accounts_in_doubt_action CHECK (in_doubt_action IN ('release', 'capture')),
    ADD CONSTRAINT accounts_in_doubt_seconds CHECK (in_doubt_seconds BETWEEN 1 AND 2592000);

-- The usage that a capture makes is called after its reservation, with a prefix
-- that no caller can choose: "reservation@" and up to 128 characters.
ALTER TABLE usage
    DROP CONSTRAINT usage_id_length,
    ADD CONSTRAINT usage_id_length CHECK (length(usage_id) BETWEEN 8 AND 160);

-- What was asked for and held is insert only; what became of it is a projection
-- of the transfers that name the reservation as their cause.
CREATE TABLE reservations (
    part                smallint    NOT NULL,
    account             text        NOT NULL,
    reservation_id      text        NOT NULL,
    meter               text        NOT NULL,
    quantity            bigint,               -- NULL: asked for in credits
    dimensions          jsonb       NOT NULL,
    rate_version        integer     NOT NULL, -- prices the capture, too
    credits             bigint      NOT NULL, -- held
    grant_ids           text[]      NOT NULL, -- grants that they came out of, in the order of spending,
    grant_amounts       bigint[]    NOT NULL, -- and how much of each; the rest came out of the overdraft
    ttl_seconds         integer     NOT NULL, -- as first asked for
    fingerprint         bytea       NOT NULL, -- SHA-256 of the request's content
    hold_version        bigint      NOT NULL, -- its transfer in the journal
    created_at          timestamptz NOT NULL,
    state               text        NOT NULL,
    expires_at          timestamptz NOT NULL,
    reason              text        NOT NULL, -- of the doubt
    doubted_at          timestamptz,
    captured            bigint      NOT NULL, -- of credits, what became usage,
    returned            bigint      NOT NULL, -- what went back to available,
    expired             bigint      NOT NULL, -- and what belonged to grants that were due by then
    end_version         bigint,               -- last transfer of the ending
    ended_at            timestamptz,
    usage_id            text,                 -- of the capture, also of one after the expiry
    capture_fingerprint bytea,
    CONSTRAINT reservations_pkey PRIMARY KEY (part, account, reservation_id),
    CONSTRAINT reservations_account FOREIGN KEY (part, account) REFERENCES accounts (part, account),
    CONSTRAINT reservations_hold FOREIGN KEY (part, account, hold_version) REFERENCES transfers (part, account, version),
    CONSTRAINT reservations_end FOREIGN KEY (part, account, end_version) REFERENCES transfers (part, account, version),
    CONSTRAINT reservations_rate FOREIGN KEY (meter, rate_version) REFERENCES meter_rates (meter, version),
    CONSTRAINT reservations_id_length CHECK (length(reservation_id) BETWEEN 8 AND 128),
    CONSTRAINT reservations_quantity_positive CHECK (quantity > 0),
    CONSTRAINT reservations_credits_not_negative CHECK (credits >= 0),
    CONSTRAINT reservations_grants_paired CHECK (cardinality(grant_ids) = cardinality(grant_amounts)),
    CONSTRAINT reservations_ttl CHECK (ttl_seconds BETWEEN 1 AND 86400),
    CONSTRAINT reservations_state CHECK (state IN ('open', 'in_doubt', 'captured', 'released', 'expired')),
    CONSTRAINT reservations_reason_length CHECK (length(reason) <= 1000),
    CONSTRAINT reservations_doubted CHECK (state <> 'in_doubt' OR doubted_at IS NOT NULL),
    CONSTRAINT reservations_ended CHECK ((state IN ('open', 'in_doubt')) = (end_version IS NULL) AND (end_version IS NULL) = (ended_at IS NULL)),
    CONSTRAINT reservations_parts_not_negative CHECK (captured >= 0 AND returned >= 0 AND expired >= 0),
    CONSTRAINT reservations_life CHECK (captured + returned + expired = CASE WHEN state IN ('open', 'in_doubt') THEN 0 ELSE credits END),
    CONSTRAINT reservations_usage CHECK (CASE WHEN state = 'captured' THEN usage_id IS NOT NULL ELSE captured = 0 AND (state = 'expired' OR usage_id IS NULL) END),
    CONSTRAINT reservations_usage_said CHECK ((usage_id IS NULL) = (capture_fingerprint IS NULL)),
    CONSTRAINT reservations_fingerprint_length CHECK (length(fingerprint) = 32 AND length(capture_fingerprint) = 32)
) WITH (fillfactor = 80); -- a row is updated once or a few times
-- The routes of one reservation need not name its account.
CREATE INDEX reservations_by_id ON reservations (reservation_id);
CREATE INDEX reservations_live ON reservations (part, account, reservation_id) WHERE state IN ('open', 'in_doubt');
CREATE INDEX reservations_expiring ON reservations (expires_at) WHERE state = 'open';
CREATE INDEX reservations_doubted ON reservations (doubted_at) WHERE state = 'in_doubt';

GRANT SELECT, INSERT ON reservations TO tallystick_service;
GRANT UPDATE (state, expires_at, reason, doubted_at, captured, returned, expired, end_version, ended_at, usage_id, capture_fingerprint)
    ON reservations TO tallystick_service;
