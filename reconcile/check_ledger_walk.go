package reconcile

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
)

// walkBatch is how many accounts are looked at in one snapshot. What is in memory
// at a time does not grow with the number of accounts.
const walkBatch = 500

// watched is an account that one of the ledger's checks has to look at, with what
// the check knows of it.
type watched struct {
	Part      int16         `db:"part"`
	Account   string        `db:"account"`
	Available credit.Amount `db:"available"`
	Held      credit.Amount `db:"held"`
	Debt      credit.Amount `db:"debt"`
	Version   int64         `db:"version"`
	Chain     []byte        `db:"chain"`
	CreatedAt time.Time     `db:"created_at"`

	Seen          int64         `db:"seen"` // the version that the check last agreed with
	SeenChain     []byte        `db:"seen_chain"`
	SeenAvailable credit.Amount `db:"seen_available"`
	SeenHeld      credit.Amount `db:"seen_held"`
	SeenDebt      credit.Amount `db:"seen_debt"`
	Remainders    string        `db:"remainders"`
	Whole         bool          `db:"whole"` // all of its journal is to be read, not only what is new
}

// since is the version after which the journal is to be read.
func (w watched) since() int64 {
	if w.Whole {
		return 0
	}
	return w.Seen
}

// sqlWalk walks accounts_pkey with a probe of reconcile_marks_pkey each, and
// gives those that have changed since the check agreed, that did not agree, or
// whose turn to be read whole has come. $6 and $7 ask whether open grants and live
// reservations still fit the balance, by grants_open and reservations_live.
const sqlWalk = `
	SELECT a.part, a.account, a.available, a.held, a.debt, a.version, a.chain, a.created_at,
		coalesce(m.version, 0) AS seen, coalesce(m.chain, '') AS seen_chain, coalesce(m.available, 0) AS seen_available, coalesce(m.held, 0) AS seen_held,
		coalesce(m.debt, 0) AS seen_debt, coalesce(m.remainders, '{}') AS remainders,
		$4 <> '' OR m.whole_at IS NULL OR m.whole_at < ($5::timestamptz[])[a.part + 1] AS whole
	FROM accounts a
	LEFT JOIN reconcile_marks m ON m.part = a.part AND m.check_name = $1 AND m.account = a.account
	WHERE (a.part, a.account) > ($2, $3) AND ($4 = '' OR a.account = $4)
		AND ($4 <> '' OR m.whole_at IS NULL OR m.whole_at < ($5::timestamptz[])[a.part + 1] OR m.version <> a.version OR m.chain <> a.chain
			OR (m.available, m.held, m.debt) IS DISTINCT FROM (a.available, a.held, a.debt)
			OR ($6 AND greatest(a.available, 0) <> (
				SELECT coalesce(sum(g.remaining), 0) FROM grants g WHERE g.part = a.part AND g.account = a.account AND g.remaining > 0))
			OR ($7 AND a.held <> (
				SELECT coalesce(sum(r.credits), 0) FROM reservations r WHERE r.part = a.part AND r.account = a.account AND r.state IN ('open', 'in_doubt'))))
	ORDER BY a.part, a.account
	LIMIT $8`

// verdict is what a check says of one account.
type verdict struct {
	found      []disagreement
	remainders string // of the open grants, for the mark; "" for none
}

// walker is a check of the ledger: it looks at a batch of accounts in one snapshot
// and gives a verdict for each, in their order.
type walker struct {
	name           string
	grants, holds  bool // look at an account also when these do not fit its balance
	look           func(ctx context.Context, tx *sqlx.Tx, s scope, batch []watched) ([]verdict, error)
	withoutJournal bool // what it finds does not rest on the journal: it stands even where that was tampered with
}

// walk takes a check over all accounts that have something new for it.
func (r *Reconciler) walk(ctx context.Context, s scope, w walker) (result, error) {
	out := result{timeless: true}
	due := wholeDue(s.now)
	for part, account := int16(-1), ""; ; {
		var batch []watched
		var verdicts []verdict
		err := r.DB.Read(ctx, func(tx *sqlx.Tx) (err error) {
			batch, verdicts = nil, nil
			// A month that is archived while it is read would be gone from both sides.
			if err := pg.Hold(ctx, tx, "usage"); err != nil {
				return err
			}
			if err := unhurried(ctx, tx); err != nil {
				return err
			}
			if err = tx.SelectContext(ctx, &batch, sqlWalk, w.name, part, account, s.account, due, w.grants, w.holds, walkBatch); err != nil || len(batch) == 0 {
				return err
			}
			verdicts, err = w.look(ctx, tx, s, batch)
			return err
		})
		if err != nil {
			return out, fmt.Errorf("read accounts after %q: %w", account, err)
		}
		if len(batch) == 0 {
			return out, nil
		}
		found, err := r.judge(ctx, s, w, batch, verdicts)
		if err != nil {
			return out, err
		}
		out.found = append(out.found, found...)
		out.compared += int64(len(batch))
		last := batch[len(batch)-1]
		part, account = last.Part, last.Account
	}
}

// judge keeps the marks of a batch and gives what was found. What was found in a
// journal that was tampered with is left to ledger.chain: one defect is one
// finding, and no repair may be made from such a journal.
func (r *Reconciler) judge(ctx context.Context, s scope, w walker, batch []watched, verdicts []verdict) (found []disagreement, err error) {
	var tampered []watched
	for i, a := range batch {
		if len(verdicts[i].found) == 0 {
			continue
		}
		if !w.withoutJournal {
			broken, err := r.isTampered(ctx, a)
			if err != nil {
				return nil, err
			}
			if broken {
				tampered = append(tampered, a)
				continue
			}
		}
		found = append(found, verdicts[i].found...)
	}
	if s.dry {
		return found, nil
	}
	return found, r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		if err := s.fence(ctx, tx); err != nil {
			return err
		}
		if err := markAgreed(ctx, tx, s, w.name, batch, verdicts); err != nil {
			return err
		}
		if err := markDisputed(ctx, tx, w.name, batch, verdicts); err != nil {
			return err
		}
		return markDisputed(ctx, tx, "ledger.chain", tampered, nil)
	})
}

// sqlMarkAgreed relies on reconcile_marks_pkey.
const sqlMarkAgreed = `
	INSERT INTO reconcile_marks AS m (part, check_name, account, version, chain, available, held, debt, remainders, whole_at)
	SELECT k.part, $1, k.account, k.version, k.chain, k.available, k.held, k.debt, k.remainders::jsonb, CASE WHEN k.whole <> 0 THEN $10::timestamptz ELSE '-infinity' END
	FROM unnest($2::smallint[], $3::text[], $4::bigint[], $5::bytea[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[], $11::smallint[])
		AS k (part, account, version, chain, available, held, debt, remainders, whole)
	ON CONFLICT (part, check_name, account) DO UPDATE
	SET version = excluded.version, chain = excluded.chain, available = excluded.available, held = excluded.held, debt = excluded.debt,
		remainders = excluded.remainders, whole_at = greatest(m.whole_at, excluded.whole_at)`

// markAgreed keeps how far the check agreed with each account that it has found
// nothing about.
func markAgreed(ctx context.Context, tx *sqlx.Tx, s scope, check string, batch []watched, verdicts []verdict) error {
	var parts, whole pg.Smallints
	var accounts, remainders pg.Texts
	var versions, available, held, debt pg.Bigints
	var chains pg.Byteas
	for i, a := range batch {
		if len(verdicts[i].found) > 0 {
			continue
		}
		isWhole := int16(0)
		if a.Whole {
			isWhole = 1
		}
		text := verdicts[i].remainders
		if text == "" {
			text = "{}"
		}
		parts, accounts, versions, chains = append(parts, a.Part), append(accounts, a.Account), append(versions, a.Version), append(chains, a.Chain)
		available, held, debt = append(available, int64(a.Available)), append(held, int64(a.Held)), append(debt, int64(a.Debt))
		remainders, whole = append(remainders, text), append(whole, isWhole)
	}
	if len(parts) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, sqlMarkAgreed, check, parts, accounts, versions, chains, available, held, debt, remainders, s.now, whole)
	if err != nil {
		return fmt.Errorf("mark what %s agreed with: %w", check, err)
	}
	return nil
}

// sqlMarkDisputed relies on reconcile_marks_pkey. What the check once agreed with
// stays known: it may be what shows the change.
const sqlMarkDisputed = `
	INSERT INTO reconcile_marks AS m (part, check_name, account, version, chain, available, held, debt, remainders, whole_at)
	SELECT k.part, $1, k.account, 0, '', 0, 0, 0, '{}', '-infinity'
	FROM unnest($2::smallint[], $3::text[]) AS k (part, account)
	ON CONFLICT (part, check_name, account) DO UPDATE SET whole_at = '-infinity'`

// markDisputed makes the check read the accounts whole at its next run: those
// about which something was found, or all where there are no verdicts.
func markDisputed(ctx context.Context, tx *sqlx.Tx, check string, batch []watched, verdicts []verdict) error {
	var parts pg.Smallints
	var accounts pg.Texts
	for i, a := range batch {
		if verdicts == nil || len(verdicts[i].found) > 0 {
			parts, accounts = append(parts, a.Part), append(accounts, a.Account)
		}
	}
	if len(parts) == 0 {
		return nil
	}
	if _, err := tx.ExecContext(ctx, sqlMarkDisputed, check, parts, accounts); err != nil {
		return fmt.Errorf("mark what %s does not agree with: %w", check, err)
	}
	return nil
}

// wholeDue gives for each part the latest moment at which its turn came to be read
// whole. Every part has one turn a day, spread over the day: a run every hour reads
// a twenty-fourth of all accounts whole, and a row that somebody changed behind the
// marks is found within a day and the time between two runs.
func wholeDue(now time.Time) pg.Times {
	const day, parts = 24 * time.Hour, 256
	due := make(pg.Times, parts)
	midnight := now.UTC().Truncate(day)
	for part := range due {
		due[part] = midnight.Add(time.Duration(part) * day / parts)
		if due[part].After(now) {
			due[part] = due[part].Add(-day)
		}
	}
	return due
}

// keys are the accounts of a batch as a statement takes them, with the version
// after which each one's journal is to be read.
func keys(batch []watched) (parts pg.Smallints, accounts pg.Texts, since pg.Bigints) {
	for _, a := range batch {
		parts, accounts, since = append(parts, a.Part), append(accounts, a.Account), append(since, a.since())
	}
	return parts, accounts, since
}

// positions tells where each account of a batch is in it.
func positions(batch []watched) map[string]int {
	at := make(map[string]int, len(batch))
	for i, a := range batch {
		at[a.Account] = i
	}
	return at
}

// priced puts the worth of a number of credits into a finding, at the price that
// the account has bought at.
func (r *Reconciler) priced(ctx context.Context, d disagreement, credits credit.Amount) (disagreement, error) {
	price, currency, err := r.creditPrice(ctx, d.Account)
	if err != nil {
		return d, err
	}
	if price != nil {
		d.Money = worth(int64(credits), price, currency)
	}
	return d, nil
}
