-- The auditor's frame: what a check keeps between its runs, leases with a fencing
-- epoch, totals of a run, and the life of a finding with its history.

-- +goose Up

-- One row per check: who runs it now, where it stands, when it last succeeded.
CREATE TABLE reconcile_checks (
    check_name    text        NOT NULL,
    epoch         bigint      NOT NULL, -- rises with each claim; a run of an older one writes nothing any more
    run_id        text        NOT NULL, -- the run that holds the lease, or held it last
    lease_until   timestamptz,          -- NULL: nobody runs it
    progress      jsonb       NOT NULL, -- the check's own: where it goes on
    spec          text        NOT NULL, -- its schedule; '' while none is known
    watched_since timestamptz NOT NULL, -- since when success is expected by that schedule
    last_success  timestamptz,
    CONSTRAINT reconcile_checks_pkey PRIMARY KEY (check_name)
);
INSERT INTO reconcile_checks (check_name, epoch, run_id, progress, spec, watched_since, last_success)
SELECT check_name, 0, '', '{}', '', max(started_at), max(finished_at) FILTER (WHERE state = 'succeeded')
FROM reconcile_runs GROUP BY check_name;

ALTER TABLE reconcile_runs
    ADD COLUMN epoch  bigint NOT NULL DEFAULT 0,
    ADD COLUMN calls  bigint NOT NULL DEFAULT 0,   -- made to Stripe
    ADD COLUMN note   text   NOT NULL DEFAULT '',  -- what was not read, and why
    ADD COLUMN totals jsonb  NOT NULL DEFAULT '{}'; -- money found, by effect and currency, in minor units

ALTER TABLE findings
    ADD COLUMN effect        text NOT NULL DEFAULT 'at_risk',
    ADD COLUMN remains       text NOT NULL DEFAULT '', -- what can still be done after the deadline
    ADD COLUMN least         text NOT NULL DEFAULT '', -- severity below which the check does not want it
    ADD COLUMN snoozed_until timestamptz,
    ADD COLUMN accepted      text NOT NULL DEFAULT '', -- the disagreement that a person resolved as it is
    ADD COLUMN resolved_by   text NOT NULL DEFAULT '', -- '' for one that vanished
    ADD COLUMN told_money    bigint,                   -- as of the last mail
    ADD COLUMN told_severity text NOT NULL DEFAULT '',
    ADD CONSTRAINT findings_effect CHECK (effect IN ('leaked', 'overbilled', 'at_risk')),
    ADD CONSTRAINT findings_snoozed CHECK ((state = 'snoozed') = (snoozed_until IS NOT NULL));
CREATE INDEX findings_opened ON findings (opened_at);
CREATE INDEX findings_resolved ON findings (resolved_at) WHERE resolved_at IS NOT NULL;

-- Journal of findings: who did what when, insert only.
CREATE TABLE finding_history (
    finding_id text        NOT NULL,
    entry_id   text        NOT NULL,
    at         timestamptz NOT NULL,
    actor      text        NOT NULL, -- key:<id>, operator:<name> or system
    action     text        NOT NULL,
    detail     text        NOT NULL,
    CONSTRAINT finding_history_pkey PRIMARY KEY (finding_id, entry_id),
    CONSTRAINT finding_history_finding FOREIGN KEY (finding_id) REFERENCES findings (finding_id),
    CONSTRAINT finding_history_action CHECK (action IN ('found', 'worsened', 'reopened', 'vanished', 'told', 'acknowledged', 'snoozed', 'woke', 'resolved', 'repaired')),
    CONSTRAINT finding_history_detail CHECK (length(detail) <= 4000)
);

-- An incident lasts from the first mail about a mismatch to the all clear; its
-- mails are one thread.
CREATE TABLE incidents (
    incident_id text        NOT NULL,
    opened_at   timestamptz NOT NULL,
    told_at     timestamptz NOT NULL, -- the last mail
    mails       integer     NOT NULL,
    closed_at   timestamptz,
    CONSTRAINT incidents_pkey PRIMARY KEY (incident_id)
);
CREATE UNIQUE INDEX incidents_one_open ON incidents ((closed_at IS NULL)) WHERE closed_at IS NULL;

-- Scheduled mails, once per slot whatever the number of processes.
CREATE TABLE reconcile_posts (
    name      text        NOT NULL, -- digest or weekly
    slot      timestamptz NOT NULL,
    staged_at timestamptz NOT NULL,
    CONSTRAINT reconcile_posts_pkey PRIMARY KEY (name, slot)
);

GRANT SELECT, INSERT, UPDATE ON reconcile_checks, incidents TO tallystick_service;
GRANT SELECT, INSERT ON finding_history, reconcile_posts TO tallystick_service;
