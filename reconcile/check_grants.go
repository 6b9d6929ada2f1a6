package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
)

// expiryLate is how long after its expiry a grant may still have credits: they go
// with the next operation, or with the sweeper.
const expiryLate = time.Hour

// sqlGrantChanges adds up what is new in each account's journal, by grant, over
// transfers_pkey. Late is what was spent of a grant that had expired.
const sqlGrantChanges = `
	SELECT k.account, c.grant_id, sum(c.change) AS change, max(t.posted_at) AS last_posted,
		coalesce(-sum(c.change) FILTER (WHERE c.change < 0 AND t.kind IN ('usage', 'hold', 'capture', 'adjustment') AND t.posted_at >= g.expires_at), 0) AS late,
		coalesce(max(t.cause) FILTER (WHERE c.change < 0 AND t.kind IN ('usage', 'hold', 'capture', 'adjustment') AND t.posted_at >= g.expires_at), '') AS late_cause
	FROM unnest($1::smallint[], $2::text[], $3::bigint[]) AS k (part, account, since)
	JOIN transfers t ON t.part = k.part AND t.account = k.account AND t.version > k.since
	CROSS JOIN LATERAL unnest(t.grant_ids, t.grant_amounts) AS c (grant_id, change)
	LEFT JOIN grants g ON g.part = k.part AND g.account = k.account AND g.grant_id = c.grant_id
	GROUP BY k.account, c.grant_id`

// sqlGrantRows reads grants over grants_pkey: the open ones, those that are asked
// for, and all of an account that is read whole. Fits tells whether the grant's own
// transfer gave as many credits; what was bought is compared with Stripe elsewhere.
const sqlGrantRows = `
	SELECT g.account, g.grant_id, g.credits, g.remaining, g.expires_at, g.created_at,
		g.kind = 'purchase' OR EXISTS (
			SELECT FROM transfers t
			WHERE t.part = g.part AND t.account = g.account AND t.version = g.transfer_version AND (
				(t.kind IN ('grant', 'adjustment') AND t.amount = g.credits)
				OR (t.kind IN ('unhold', 'void') AND EXISTS (
					SELECT FROM unnest(t.grant_ids, t.grant_amounts) AS c (grant_id, change) WHERE c.grant_id = g.grant_id AND c.change = g.credits)))) AS fits
	FROM unnest($1::smallint[], $2::text[], $3::bigint[]) AS k (part, account, since)
	JOIN grants g ON g.part = k.part AND g.account = k.account
	WHERE k.since = 0 OR g.remaining > 0 OR g.grant_id IN (SELECT x.grant_id FROM unnest($4::text[], $5::text[]) AS x (account, grant_id) WHERE x.account = k.account)`

// grantChange is what the journal does to one grant.
type grantChange struct {
	Account    string        `db:"account"`
	GrantID    string        `db:"grant_id"`
	Change     credit.Amount `db:"change"`
	LastPosted time.Time     `db:"last_posted"`
	Late       credit.Amount `db:"late"`
	LateCause  string        `db:"late_cause"`
}

// grantRow is a grant as its row says.
type grantRow struct {
	Account   string        `db:"account"`
	GrantID   string        `db:"grant_id"`
	Credits   credit.Amount `db:"credits"`
	Remaining credit.Amount `db:"remaining"`
	ExpiresAt *time.Time    `db:"expires_at"`
	CreatedAt time.Time     `db:"created_at"`
	Fits      bool          `db:"fits"`
}

// grantBook is what one account's journal and rows say of its grants.
type grantBook struct {
	journal map[string]credit.Amount // what must remain
	changes map[string]grantChange
	rows    map[string]grantRow
}

// ledgerGrants is the check ledger.grants.
func (r *Reconciler) ledgerGrants(ctx context.Context, s scope) (result, error) {
	out, err := r.walk(ctx, s, walker{name: "ledger.grants", grants: true, look: r.lookAtGrants})
	if err != nil {
		return out, err
	}
	overdue, err := r.overdueGrants(ctx, s)
	out.found = append(out.found, overdue...)
	return out, err
}

func (r *Reconciler) lookAtGrants(ctx context.Context, tx *sqlx.Tx, _ scope, batch []watched) ([]verdict, error) {
	read, err := readGrantBooks(ctx, tx, batch)
	if err != nil {
		return nil, err
	}
	verdicts := make([]verdict, len(batch))
	for i, a := range batch {
		b := read[i]
		left := map[string]credit.Amount{}
		for _, id := range slices.Sorted(maps.Keys(b.journal)) {
			if b.journal[id] != 0 {
				left[id] = b.journal[id]
			}
		}
		text, err := encode(left)
		if err != nil {
			return nil, err
		}
		verdicts[i].remainders = text
		if verdicts[i].found, err = r.grantFindings(ctx, a, b); err != nil {
			return nil, err
		}
	}
	return verdicts, nil
}

func readGrantBooks(ctx context.Context, tx *sqlx.Tx, batch []watched) ([]grantBook, error) {
	read := make([]grantBook, len(batch))
	for i, a := range batch {
		read[i] = grantBook{journal: map[string]credit.Amount{}, changes: map[string]grantChange{}, rows: map[string]grantRow{}}
		if a.Whole {
			continue
		}
		if err := json.Unmarshal([]byte(a.Remainders), &read[i].journal); err != nil {
			return nil, fmt.Errorf("read what remained of the grants of %s: %w", a.Account, err)
		}
	}
	at := positions(batch)
	parts, accounts, since := keys(batch)
	var changes []grantChange
	if err := tx.SelectContext(ctx, &changes, sqlGrantChanges, parts, accounts, since); err != nil {
		return nil, fmt.Errorf("add grants up: %w", err)
	}
	var owners, ids pg.Texts
	for _, c := range changes {
		b := read[at[c.Account]]
		b.journal[c.GrantID] += c.Change
		b.changes[c.GrantID] = c
		owners, ids = append(owners, c.Account), append(ids, c.GrantID)
	}
	for i, a := range batch {
		for id := range read[i].journal {
			if _, ok := read[i].changes[id]; !ok {
				owners, ids = append(owners, a.Account), append(ids, id)
			}
		}
	}
	var rows []grantRow
	if err := tx.SelectContext(ctx, &rows, sqlGrantRows, parts, accounts, since, owners, ids); err != nil {
		return nil, fmt.Errorf("read grants: %w", err)
	}
	for _, g := range rows {
		read[at[g.Account]].rows[g.GrantID] = g
	}
	return read, nil
}

// grantFindings compares one account's grants with its journal.
func (r *Reconciler) grantFindings(ctx context.Context, a watched, b grantBook) (found []disagreement, err error) {
	known := map[string]bool{}
	for id := range b.rows {
		known[id] = true
	}
	for id := range b.journal {
		known[id] = true
	}
	for _, id := range slices.Sorted(maps.Keys(known)) {
		d, credits := b.compare(a, id)
		if d.Cause == "" {
			continue
		}
		d.Subject, d.Account, d.Unit = "grant/"+a.Account+"/"+id, a.Account, "credits"
		if d, err = r.priced(ctx, d, credits); err != nil {
			return nil, err
		}
		found = append(found, d)
	}
	return found, nil
}

// compare holds one grant's row against the journal; without a Cause they agree.
// Credits are those at risk.
func (b grantBook) compare(a watched, id string) (d disagreement, credits credit.Amount) {
	row, hasRow := b.rows[id]
	must, change := b.journal[id], b.changes[id]
	d = disagreement{HappenedAt: row.CreatedAt, Evidence: map[string]any{"grant": id}}
	switch {
	case !hasRow && must == 0 && !a.Whole: // it has ended, and nothing of it is new
	case !hasRow:
		credits, d.HappenedAt, d.Ours, d.Theirs, d.Cause = must, orCreated(change.LastPosted, a), "no grant", must.String(), "grant_missing"
		d.Explanation = fmt.Sprintf("The journal has credits of grant %s, of which %s must remain, and its row is gone. tallystick deletes no grant.", id, must)
	case row.Remaining != must:
		credits, d.Ours, d.Theirs, d.Cause = must-row.Remaining, row.Remaining.String(), must.String(), "grant_changed_outside"
		d.Explanation = fmt.Sprintf("Grant %s says that %s credits remain, the journal says %s. The row was changed by hand or by another program.", id, row.Remaining, must)
		d.Repair, d.RepairArgs, d.Safe = repairRebuildBalance, map[string]string{"account": a.Account}, true
	case !row.Fits:
		credits, d.Ours, d.Theirs, d.Cause = -row.Credits, row.Credits.String(), "no transfer", "grant_unbacked"
		d.Explanation = fmt.Sprintf("Grant %s says that it gave %s credits, but no transfer of the journal gave as many for it. The row was added or changed by hand or by another program.", id, row.Credits)
	case change.Late > 0:
		credits, d.HappenedAt, d.Ours, d.Theirs, d.Cause = -change.Late, *row.ExpiresAt, change.Late.String(), "0", "spent_after_expiry"
		d.Explanation = fmt.Sprintf("%s credits of grant %s were spent after it had expired at %s, by %s among others. Its expiry was changed since, or credits that were gone were spent.",
			change.Late, id, row.ExpiresAt.UTC().Format(time.RFC3339), change.LateCause)
		d.Evidence = map[string]any{"grant": id, "expires_at": row.ExpiresAt.UTC(), "spent_by": change.LateCause}
	}
	d.Difference = signed(int64(credits))
	return d, credits
}

func orCreated(at time.Time, a watched) time.Time {
	if at.IsZero() {
		return a.CreatedAt
	}
	return at
}

// sqlOverdueGrants relies on the index grants_expiring.
const sqlOverdueGrants = `
	SELECT account, grant_id, credits, remaining, expires_at, created_at, true AS fits
	FROM grants
	WHERE remaining > 0 AND expires_at <= $1 AND ($2 = '' OR account = $2)
	ORDER BY expires_at, account, grant_id
	LIMIT 1000`

// overdueGrants finds grants that have expired and were not taken away.
func (r *Reconciler) overdueGrants(ctx context.Context, s scope) (found []disagreement, err error) {
	var rows []grantRow
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlOverdueGrants, s.now.Add(-expiryLate), s.account)
	})
	if err != nil {
		return nil, fmt.Errorf("look for grants that should have expired: %w", err)
	}
	for _, g := range rows {
		d, err := r.priced(ctx, disagreement{
			Subject: "expiry/" + g.Account + "/" + g.GrantID, Account: g.Account, HappenedAt: *g.ExpiresAt, Unit: "credits", Ours: g.Remaining.String(), Theirs: "0",
			Difference: signed(-int64(g.Remaining)), Cause: "expiry_overdue",
			Explanation: fmt.Sprintf("Grant %s expired at %s, and %s of its credits are still there. They go with the account's next operation; that they are there for so long says that the sweeper does not run, or fails.",
				g.GrantID, g.ExpiresAt.UTC().Format(time.RFC3339), g.Remaining),
			Evidence: map[string]any{"grant": g.GrantID, "expires_at": g.ExpiresAt.UTC()},
		}, g.Remaining)
		if err != nil {
			return nil, err
		}
		found = append(found, d)
	}
	return found, nil
}
