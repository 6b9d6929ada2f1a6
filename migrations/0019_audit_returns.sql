-- Finds what was taken back or given back for one refund, dispute or credit note.
-- It holds only the few transfers of those kinds; why the expression: 0004.

-- +goose Up
CREATE INDEX transfers_returns ON transfers (part, (account || ''), cause) WHERE kind IN ('refund', 'refund_failed', 'dispute', 'dispute_won');
