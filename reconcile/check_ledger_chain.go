package reconcile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
)

// row is a transfer as the auditor reads it.
type row struct {
	Part         int16          `db:"part"`
	Account      string         `db:"account"`
	Version      int64          `db:"version"`
	Kind         string         `db:"kind"`
	Amount       credit.Amount  `db:"amount"`
	Source       string         `db:"source"`
	Target       string         `db:"target"`
	Cause        string         `db:"cause"`
	GrantIDs     pq.StringArray `db:"grant_ids"`
	GrantAmounts pq.Int64Array  `db:"grant_amounts"`
	Available    credit.Amount  `db:"available_after"`
	Held         credit.Amount  `db:"held_after"`
	Debt         credit.Amount  `db:"debt_after"`
	Actor        string         `db:"actor"`
	Note         string         `db:"note"`
	PostedAt     time.Time      `db:"posted_at"`
	Hash         []byte         `db:"hash"`
}

// hashOf is the hash that a transfer must have after the one before it, worked out
// from the description of the chain, not by the ledger's code: SHA-256 over the
// hash before and each field with its length in eight bytes before it.
func (t *row) hashOf(before []byte) []byte {
	h := sha256.New()
	h.Write(before)
	text := func(s string) {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(s)))
		h.Write(length[:])
		h.Write([]byte(s))
	}
	number := func(n int64) { text(strconv.FormatInt(n, 10)) }
	number(int64(t.Part))
	text(t.Account)
	number(t.Version)
	text(t.Kind)
	number(int64(t.Amount))
	text(t.Source)
	text(t.Target)
	text(t.Cause)
	number(int64(len(t.GrantIDs)))
	for i, grant := range t.GrantIDs {
		text(grant)
		if i < len(t.GrantAmounts) {
			number(t.GrantAmounts[i])
		}
	}
	number(int64(t.Available))
	number(int64(t.Held))
	number(int64(t.Debt))
	text(t.Actor)
	text(t.Note)
	text(t.PostedAt.UTC().Format("2006-01-02T15:04:05.000000Z"))
	return h.Sum(nil)
}

// wealth is what the account has after the transfer, less what it owes.
func (t *row) wealth() credit.Amount { return t.Available + t.Held - t.Debt }

// effect is what the transfer's amount does to the account's wealth.
func (t *row) effect() (sum credit.Amount) {
	own := func(book string) bool { return book == "available" || book == "held" || book == "debt" }
	if own(t.Target) {
		sum += t.Amount
	}
	if own(t.Source) {
		sum -= t.Amount
	}
	return sum
}

// sqlJournal reads journals in the order of their chain over transfers_pkey, each
// from the version that the check last agreed with.
const sqlJournal = `
	SELECT t.part, t.account, t.version, t.kind, t.amount, t.source, t.target, t.cause, t.grant_ids, t.grant_amounts, t.available_after, t.held_after,
		t.debt_after, t.actor, t.note, t.posted_at, t.hash
	FROM unnest($1::smallint[], $2::text[], $3::bigint[]) AS k (part, account, since)
	JOIN transfers t ON t.part = k.part AND t.account = k.account AND t.version >= k.since
	ORDER BY t.part, t.account, t.version`

// breach is the first place at which a journal is not what it must be.
type breach struct {
	cause   string
	version int64
	at      time.Time
	credits credit.Amount // what it makes of the account's credits, as far as can be told
	text    string
}

// chainReader follows one account's chain, row by row.
type chainReader struct {
	account watched
	before  row // the row before; only its Version is known before the first row is read
	reading bool
	breach  *breach
}

// take looks at the next row.
func (c *chainReader) take(t *row) {
	if c.breach != nil {
		return
	}
	a, isFirst := c.account, !c.reading
	c.reading = true
	switch {
	case t.Version != c.before.Version+1:
		missing := fmt.Sprintf("transfer %d is missing", c.before.Version+1)
		if t.Version > c.before.Version+2 {
			missing = fmt.Sprintf("transfers %d to %d are missing", c.before.Version+1, t.Version-1)
		}
		c.broken("journal_row_missing", t, t.wealth()-t.effect()-c.before.wealth(), missing)
		c.breach.version = c.before.Version + 1
	case isFirst && a.since() > 0:
		// Where the check stopped the last time: not again, but it must be the same row.
		if !bytes.Equal(t.Hash, a.SeenChain) {
			c.broken("journal_rewritten", t, 0, fmt.Sprintf("transfer %d is not the one that the auditor has seen: its hash was %s and is %s", t.Version, short(a.SeenChain), short(t.Hash)))
		}
	case !bytes.Equal(t.hashOf(c.before.Hash), t.Hash):
		off := c.before.wealth() + t.effect() - t.wealth()
		if t.Version > a.Version || bytes.Equal(a.Chain, c.before.Hash) {
			c.broken("journal_row_inserted", t, t.effect(), fmt.Sprintf("transfer %d (%s of %s, cause %s) was not written by tallystick: its hash does not follow from the row before, at which the account's own chain ends", t.Version, t.Kind, t.Amount, t.Cause))
			return
		}
		c.broken("journal_row_changed", t, off, fmt.Sprintf("transfer %d (%s of %s, cause %s) is not what was written: its hash does not fit its content and the row before", t.Version, t.Kind, t.Amount, t.Cause))
	case t.Version == a.Seen && a.Seen > 0 && !bytes.Equal(t.Hash, a.SeenChain):
		c.broken("journal_rewritten", t, 0, fmt.Sprintf("the chain is whole in itself, but transfer %d is not the one that the auditor has seen: its hash was %s and is %s", t.Version, short(a.SeenChain), short(t.Hash)))
	}
	c.before = *t
}

// end looks at what the account's row says of the end of the chain.
func (c *chainReader) end() *breach {
	a, last := c.account, c.before
	switch {
	case c.breach != nil:
	case last.Version < a.Version || last.Version < a.Seen:
		c.broken("journal_row_missing", &last, a.Available+a.Held-a.Debt-last.wealth(), fmt.Sprintf("the journal ends with transfer %d, the account is at %d and was seen at %d", last.Version, a.Version, a.Seen))
		c.breach.version = last.Version + 1
	case last.Version > a.Version:
		c.broken("account_chain_changed", &last, last.wealth()-(a.Available+a.Held-a.Debt), fmt.Sprintf("the journal goes on to transfer %d, the account's row says that %d is the last", last.Version, a.Version))
	case !bytes.Equal(last.Hash, a.Chain):
		c.broken("account_chain_changed", &last, 0, fmt.Sprintf("the account's row has the hash %s, its last transfer %d has %s", short(a.Chain), last.Version, short(last.Hash)))
	}
	return c.breach
}

func (c *chainReader) broken(cause string, t *row, credits credit.Amount, text string) {
	at := t.PostedAt
	if at.IsZero() {
		at = c.account.CreatedAt
	}
	c.breach = &breach{cause: cause, version: t.Version, at: at, credits: credits, text: text}
}

func short(hash []byte) string {
	if len(hash) == 0 {
		return "none"
	}
	return hex.EncodeToString(hash[:min(len(hash), 8)])
}

// readChains follows the chains of a batch, one row in memory at a time.
func readChains(ctx context.Context, tx *sqlx.Tx, batch []watched) ([]*breach, error) {
	readers := make([]chainReader, len(batch))
	for i, a := range batch {
		readers[i].account = a
		readers[i].before = row{Version: max(a.since()-1, 0), Available: a.SeenAvailable, Held: a.SeenHeld, Debt: a.SeenDebt}
	}
	at := positions(batch)
	parts, accounts, since := keys(batch)
	rows, err := tx.QueryxContext(ctx, sqlJournal, parts, accounts, since)
	if err != nil {
		return nil, fmt.Errorf("read journals: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var t row
		if err := rows.StructScan(&t); err != nil {
			return nil, fmt.Errorf("read a transfer: %w", err)
		}
		readers[at[t.Account]].take(&t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read journals: %w", err)
	}
	breaches := make([]*breach, len(batch))
	for i := range readers {
		breaches[i] = readers[i].end()
	}
	return breaches, nil
}

// isTampered tells whether an account's whole journal is not what was written.
func (r *Reconciler) isTampered(ctx context.Context, a watched) (broken bool, err error) {
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		// The account as it is now: it may have moved on since the batch was read.
		var now []watched
		if err := tx.SelectContext(ctx, &now, sqlWalk, "ledger.chain", a.Part-1, "", a.Account, pg.Times{}, false, false, 1); err != nil || len(now) == 0 {
			return err
		}
		breaches, err := readChains(ctx, tx, now)
		broken = err == nil && breaches[0] != nil
		return err
	})
	if err != nil {
		return false, fmt.Errorf("read the journal of %s: %w", a.Account, err)
	}
	return broken, nil
}

// sqlLostAccounts finds accounts that the auditor knows and that are gone, over
// reconcile_marks and accounts_pkey.
const sqlLostAccounts = `
	SELECT m.account, m.available, m.held, m.debt, m.version
	FROM reconcile_marks m
	WHERE m.check_name = 'ledger.chain' AND ($1 = '' OR m.account = $1)
		AND NOT EXISTS (SELECT FROM accounts a WHERE a.part = m.part AND a.account = m.account)
	ORDER BY m.account`

// ledgerChain is the check ledger.chain.
func (r *Reconciler) ledgerChain(ctx context.Context, s scope) (result, error) {
	out, err := r.walk(ctx, s, walker{name: "ledger.chain", withoutJournal: true, look: func(ctx context.Context, tx *sqlx.Tx, _ scope, batch []watched) ([]verdict, error) {
		breaches, err := readChains(ctx, tx, batch)
		if err != nil {
			return nil, err
		}
		verdicts := make([]verdict, len(batch))
		for i, b := range breaches {
			if b == nil {
				continue
			}
			d, err := r.chainFinding(ctx, batch[i], b)
			if err != nil {
				return nil, err
			}
			verdicts[i].found = []disagreement{d}
		}
		return verdicts, nil
	}})
	if err != nil {
		return out, err
	}
	lost, err := r.lostAccounts(ctx, s)
	out.found = append(out.found, lost...)
	return out, err
}

func (r *Reconciler) chainFinding(ctx context.Context, a watched, b *breach) (disagreement, error) {
	d := disagreement{
		Subject: "journal/" + a.Account, Account: a.Account, HappenedAt: b.at, Unit: "credits", Ours: "transfer " + strconv.FormatInt(b.version, 10),
		Theirs: "the chain of hashes", Difference: signed(-int64(b.credits)), Cause: b.cause,
		Explanation: fmt.Sprintf("The journal of %s is not what tallystick wrote: %s. What comes after it cannot be trusted, and no balance is to be rebuilt from it: "+
			"compare with a backup, and find out who can write to the database as its owner.", a.Account, b.text),
		Evidence: map[string]any{"version": b.version, "account_version": a.Version, "seen_version": a.Seen},
	}
	if b.credits == 0 {
		return d, nil // who, when or why was changed: no credits
	}
	return r.priced(ctx, d, b.credits)
}

func (r *Reconciler) lostAccounts(ctx context.Context, s scope) (found []disagreement, err error) {
	var lost []struct {
		Account   string        `db:"account"`
		Available credit.Amount `db:"available"`
		Held      credit.Amount `db:"held"`
		Debt      credit.Amount `db:"debt"`
		Version   int64         `db:"version"`
	}
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		lost = nil
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &lost, sqlLostAccounts, s.account)
	})
	if err != nil {
		return nil, fmt.Errorf("look for accounts that are gone: %w", err)
	}
	for _, a := range lost {
		d := disagreement{
			Subject: "journal/" + a.Account, Account: a.Account, HappenedAt: s.now, Unit: "credits", Ours: "no account", Theirs: books(a.Available, a.Held, a.Debt),
			Difference: signed(int64(a.Available + a.Held - a.Debt)), Cause: "account_missing",
			Explanation: fmt.Sprintf("The account %s was there with %s and %d transfers, and its row is gone. tallystick deletes no account: it was done by hand or by another program.",
				a.Account, books(a.Available, a.Held, a.Debt), a.Version),
			Evidence: map[string]any{"seen_version": a.Version},
		}
		d, err := r.priced(ctx, d, a.Available+a.Held-a.Debt)
		if err != nil {
			return nil, err
		}
		found = append(found, d)
	}
	return found, nil
}
