-- The auditor's own records.

-- +goose Up

CREATE TABLE reconcile_runs (
    run_id      text        NOT NULL,
    check_name  text        NOT NULL,
    slot        timestamptz NOT NULL, -- the scheduled time, or the time of the request
    cause       text        NOT NULL,
    window_from timestamptz NOT NULL,
    window_to   timestamptz NOT NULL,
    account     text        NOT NULL, -- '' for all
    state       text        NOT NULL,
    lease_until timestamptz NOT NULL, -- a run that is still running then was abandoned
    compared    bigint      NOT NULL,
    found       integer     NOT NULL,
    fresh       integer     NOT NULL,
    resolved    integer     NOT NULL,
    error       text        NOT NULL,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz,
    CONSTRAINT reconcile_runs_pkey PRIMARY KEY (run_id),
    CONSTRAINT reconcile_runs_once UNIQUE (check_name, slot), -- two processes never run one slot twice
    CONSTRAINT reconcile_runs_cause CHECK (cause IN ('schedule', 'request')),
    CONSTRAINT reconcile_runs_state CHECK (state IN ('running', 'succeeded', 'failed')),
    CONSTRAINT reconcile_runs_window CHECK (window_from <= window_to)
);
CREATE INDEX reconcile_runs_by_time ON reconcile_runs (started_at, run_id);

-- One row per disagreement: seen again it is updated, gone it is resolved, back
-- it is reopened.
CREATE TABLE findings (
    finding_id  text        NOT NULL,
    check_name  text        NOT NULL,
    subject     text        NOT NULL,
    account     text        NOT NULL, -- '' when it concerns none
    happened_at timestamptz NOT NULL, -- when the disagreement arose, as far as is known
    severity    text        NOT NULL,
    ours        text        NOT NULL,
    theirs      text        NOT NULL,
    difference  text        NOT NULL, -- theirs less ours
    unit        text        NOT NULL,
    money       bigint,               -- at risk, in minor units; NULL when no price is known
    currency    text        NOT NULL,
    cause       text        NOT NULL,
    explanation text        NOT NULL,
    evidence    jsonb       NOT NULL,
    deadline    timestamptz,
    repair      text        NOT NULL, -- '' when there is none
    repair_args jsonb       NOT NULL,
    safe        boolean     NOT NULL,
    state       text        NOT NULL,
    times_open  integer     NOT NULL,
    first_seen  timestamptz NOT NULL,
    opened_at   timestamptz NOT NULL, -- when it was found or came back
    last_seen   timestamptz NOT NULL,
    resolved_at timestamptz,
    notified_at timestamptz,          -- NULL while a mail about it is owed
    cleared_at  timestamptz,          -- when an all-clear counted it
    run_id      text        NOT NULL,
    CONSTRAINT findings_pkey PRIMARY KEY (finding_id),
    CONSTRAINT findings_subject UNIQUE (check_name, subject),
    CONSTRAINT findings_severity CHECK (severity IN ('low', 'medium', 'high', 'critical')),
    CONSTRAINT findings_state CHECK (state IN ('open', 'acknowledged', 'snoozed', 'resolved'))
);
CREATE INDEX findings_by_state ON findings (state, last_seen);

-- Journal of repairs: one per finding and opening, insert only.
CREATE TABLE repairs (
    finding_id text        NOT NULL,
    times_open integer     NOT NULL,
    action     text        NOT NULL,
    result     text        NOT NULL,
    actor      text        NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT repairs_pkey PRIMARY KEY (finding_id, times_open),
    CONSTRAINT repairs_finding FOREIGN KEY (finding_id) REFERENCES findings (finding_id)
);

GRANT SELECT, INSERT, UPDATE ON reconcile_runs, findings TO tallystick_service;
GRANT SELECT, INSERT ON repairs TO tallystick_service;
