package ledger

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/credit"
)

// Batch is a set of locked accounts and what is to be written about them.
type Batch struct {
	states    map[Ref]*State
	stored    map[*Grant]credit.Amount // remainders as they stand in the database
	known     map[*Grant]Ref
	transfers []Transfer
	made      []*Grant
}

type accountRow struct {
	Part    int16  `db:"part"`
	Account string `db:"account"`
	Balance
	Overdraft credit.Amount `db:"overdraft"`
	Chain     []byte        `db:"chain"`
}

// sqlLockAccounts relies on accounts_pkey; rows are locked in the order of the key,
// so that two batches over the same accounts cannot lock each other out.
const sqlLockAccounts = `
	SELECT a.part, a.account, a.available, a.held, a.debt, a.version, a.overdraft, a.chain
	FROM accounts a
	JOIN unnest($1::smallint[], $2::text[]) AS r (part, account) ON a.part = r.part AND a.account = r.account
	ORDER BY a.part, a.account
	FOR UPDATE OF a`

// Load locks the accounts and reads their open grants. Accounts that do not
// exist are absent from the batch.
func Load(ctx context.Context, tx *sqlx.Tx, refs []Ref) (*Batch, error) {
	refs = slices.Clone(refs)
	slices.SortFunc(refs, Ref.Compare)
	refs = slices.Compact(refs)
	parts, accounts := columns(refs)
	var rows []accountRow
	if err := tx.SelectContext(ctx, &rows, sqlLockAccounts, parts, accounts); err != nil {
		return nil, fmt.Errorf("lock accounts: %w", err)
	}
	b := &Batch{states: make(map[Ref]*State, len(rows)), stored: map[*Grant]credit.Amount{}, known: map[*Grant]Ref{}}
	for _, r := range rows {
		ref := Ref{Part: r.Part, Account: r.Account}
		b.states[ref] = &State{Ref: ref, Balance: r.Balance, Overdraft: r.Overdraft, Chain: r.Chain}
	}
	return b, b.loadGrants(ctx, tx, parts, accounts)
}

// sqlOpenGrants relies on the index grants_open. It runs after the lock, so that
// it sees what the transaction that held the lock before has written.
const sqlOpenGrants = `
	SELECT g.part, g.account, g.grant_id, g.kind, g.credits, g.remaining, g.priority, g.expires_at, g.reason, g.payment, g.fingerprint,
		g.transfer_version, g.created_at
	FROM grants g
	JOIN unnest($1::smallint[], $2::text[]) AS r (part, account) ON g.part = r.part AND g.account = r.account
	WHERE g.remaining > 0`

func (b *Batch) loadGrants(ctx context.Context, tx *sqlx.Tx, parts, accounts any) error {
	var rows []struct {
		Part    int16  `db:"part"`
		Account string `db:"account"`
		Grant
	}
	if err := tx.SelectContext(ctx, &rows, sqlOpenGrants, parts, accounts); err != nil {
		return fmt.Errorf("read open grants: %w", err)
	}
	for _, r := range rows {
		ref := Ref{Part: r.Part, Account: r.Account}
		if s := b.states[ref]; s != nil {
			g := r.Grant
			s.Grants = append(s.Grants, &g)
			b.adopt(ref, &g)
		}
	}
	for _, s := range b.states {
		slices.SortFunc(s.Grants, (*Grant).before)
	}
	return nil
}

// adopt remembers a grant that stands in the database, so that Save writes its
// remainder if it changes.
func (b *Batch) adopt(ref Ref, g *Grant) {
	b.stored[g] = g.Remaining
	b.known[g] = ref
}

// State is a locked account, for reading; nil when it does not exist.
func (b *Batch) State(ref Ref) *State { return b.states[ref] }

// Apply decides op for one account and keeps what it posts for Save. A refusal
// changes nothing; an account that is not in the batch is ErrNoAccount.
func (b *Batch) Apply(ref Ref, op Operation) ([]Transfer, error) {
	s := b.states[ref]
	if s == nil {
		return nil, ErrNoAccount
	}
	op.At = op.At.UTC().Truncate(time.Microsecond)
	transfers, err := Decide(s, op)
	if err != nil {
		return nil, err
	}
	b.transfers = append(b.transfers, transfers...)
	for _, g := range s.Made {
		b.known[g] = ref
		b.made = append(b.made, g)
	}
	s.Made = nil
	if op.Grant != nil {
		if _, stands := b.known[op.Grant]; !stands && b.isNew(op) {
			b.known[op.Grant] = ref
			b.made = append(b.made, op.Grant)
		}
	}
	return transfers, nil
}

func (b *Batch) isNew(op Operation) bool {
	return op.Kind == KindPurchase || op.Kind == KindGrant || (op.Kind == KindAdjustment && op.Amount > 0)
}

// sqlGrant relies on grants_pkey.
const sqlGrant = `
	SELECT grant_id, kind, credits, remaining, priority, expires_at, reason, payment, fingerprint, transfer_version, created_at
	FROM grants
	WHERE part = $1 AND account = $2 AND grant_id = $3`

// Grant gives one grant of a locked account, open or not, as an Operation needs
// it; the error is sql.ErrNoRows when there is none.
func (b *Batch) Grant(ctx context.Context, tx *sqlx.Tx, ref Ref, id string) (*Grant, error) {
	for g, at := range b.known {
		if at == ref && g.ID == id {
			return g, nil
		}
	}
	var g Grant
	if err := tx.GetContext(ctx, &g, sqlGrant, ref.Part, ref.Account, id); err != nil {
		return nil, fmt.Errorf("read grant %s of %s: %w", id, ref.Account, err)
	}
	b.adopt(ref, &g)
	return &g, nil
}

// Save writes everything that was applied: transfers, new grants, changed
// remainders, balances. Each is one statement, whatever the size of the batch.
func (b *Batch) Save(ctx context.Context, tx *sqlx.Tx) error {
	if len(b.transfers) == 0 {
		return nil
	}
	if err := b.saveTransfers(ctx, tx); err != nil {
		return err
	}
	if err := b.saveNewGrants(ctx, tx); err != nil {
		return err
	}
	if err := b.saveRemainders(ctx, tx); err != nil {
		return err
	}
	return b.saveBalances(ctx, tx)
}

// sqlInsertTransfers relies on transfers_pkey for L3. An array of arrays cannot be
// unnested row by row, so the grants travel as array literals.
const sqlInsertTransfers = `
	INSERT INTO transfers (part, account, version, kind, amount, source, target, cause, grant_ids, grant_amounts,
		available_after, held_after, debt_after, actor, note, posted_at, hash)
	SELECT part, account, version, kind, amount, source, target, cause, grant_ids::text[], grant_amounts::bigint[],
		available_after, held_after, debt_after, actor, note, posted_at, hash
	FROM unnest($1::smallint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[],
		$11::bigint[], $12::bigint[], $13::bigint[], $14::text[], $15::text[], $16::timestamptz[], $17::bytea[])
		AS t (part, account, version, kind, amount, source, target, cause, grant_ids, grant_amounts,
		available_after, held_after, debt_after, actor, note, posted_at, hash)`

func (b *Batch) saveTransfers(ctx context.Context, tx *sqlx.Tx) error {
	n := len(b.transfers)
	refs, versions := make([]Ref, 0, n), make(pq.Int64Array, 0, n)
	kinds, amounts := make(pq.StringArray, 0, n), make(pq.Int64Array, 0, n)
	sources, targets, causes := make(pq.StringArray, 0, n), make(pq.StringArray, 0, n), make(pq.StringArray, 0, n)
	grantIDs, grantAmounts := make(pq.StringArray, 0, n), make(pq.StringArray, 0, n)
	available, held, debt := make(pq.Int64Array, 0, n), make(pq.Int64Array, 0, n), make(pq.Int64Array, 0, n)
	actors, notes, times, hashes := make(pq.StringArray, 0, n), make(pq.StringArray, 0, n), make(pq.StringArray, 0, n), make(pq.ByteaArray, 0, n)
	for i := range b.transfers {
		t := &b.transfers[i]
		refs, versions = append(refs, t.Ref), append(versions, t.Version)
		kinds, amounts = append(kinds, string(t.Kind)), append(amounts, int64(t.Amount))
		sources, targets, causes = append(sources, string(t.Source)), append(targets, string(t.Target)), append(causes, t.Cause)
		ids, changes := grantLiterals(t)
		grantIDs, grantAmounts = append(grantIDs, ids), append(grantAmounts, changes)
		available, held, debt = append(available, int64(t.After.Available)), append(held, int64(t.After.Held)), append(debt, int64(t.After.Debt))
		actors, notes = append(actors, t.Actor), append(notes, t.Note)
		times, hashes = append(times, t.PostedAt.Format(timeLayout)), append(hashes, t.Hash)
	}
	parts, accounts := columns(refs)
	_, err := tx.ExecContext(ctx, sqlInsertTransfers, parts, accounts, versions, kinds, amounts, sources, targets, causes,
		grantIDs, grantAmounts, available, held, debt, actors, notes, times, hashes)
	if err != nil {
		return fmt.Errorf("insert transfers: %w", err)
	}
	return nil
}

// grantLiterals writes the grants of a transfer as array literals. Ids of grants
// have no character that would end the quotes; they are escaped all the same.
func grantLiterals(t *Transfer) (ids, amounts string) {
	names, changes := append(make([]byte, 0, 64), '{'), append(make([]byte, 0, 32), '{')
	for i, id := range t.GrantIDs {
		if i > 0 {
			names, changes = append(names, ','), append(changes, ',')
		}
		names = append(names, '"')
		for j := range len(id) {
			if id[j] == '"' || id[j] == '\\' {
				names = append(names, '\\')
			}
			names = append(names, id[j])
		}
		names = append(names, '"')
		changes = strconv.AppendInt(changes, int64(t.GrantAmounts[i]), 10)
	}
	return string(append(names, '}')), string(append(changes, '}'))
}

// sqlInsertGrant relies on grants_pkey: the same grant is never made twice.
const sqlInsertGrant = `
	INSERT INTO grants (part, account, grant_id, kind, credits, remaining, priority, expires_at, reason, payment, fingerprint, transfer_version, created_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`

// saveNewGrants writes one by one: grants are rare beside usage.
func (b *Batch) saveNewGrants(ctx context.Context, tx *sqlx.Tx) error {
	for _, g := range b.made {
		ref := b.known[g]
		_, err := tx.ExecContext(ctx, sqlInsertGrant, ref.Part, ref.Account, g.ID, string(g.Kind), g.Credits, g.Remaining, g.Priority,
			g.ExpiresAt, g.Reason, g.Payment, g.Fingerprint, g.TransferVersion, g.CreatedAt)
		if err != nil {
			return fmt.Errorf("insert grant %s of %s: %w", g.ID, ref.Account, err)
		}
	}
	return nil
}

// sqlUpdateRemainders relies on grants_pkey and on the account's lock.
const sqlUpdateRemainders = `
	UPDATE grants g
	SET remaining = r.remaining
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::bigint[]) AS r (part, account, grant_id, remaining)
	WHERE g.part = r.part AND g.account = r.account AND g.grant_id = r.grant_id`

func (b *Batch) saveRemainders(ctx context.Context, tx *sqlx.Tx) error {
	var refs []Ref
	var ids pq.StringArray
	var remainders pq.Int64Array
	for g, stored := range b.stored {
		if g.Remaining != stored {
			refs, ids, remainders = append(refs, b.known[g]), append(ids, g.ID), append(remainders, int64(g.Remaining))
		}
	}
	if len(refs) == 0 {
		return nil
	}
	parts, accounts := columns(refs)
	if _, err := tx.ExecContext(ctx, sqlUpdateRemainders, parts, accounts, ids, remainders); err != nil {
		return fmt.Errorf("update grants' remainders: %w", err)
	}
	return nil
}

// sqlUpdateBalances relies on accounts_pkey and on the lock that Load took.
const sqlUpdateBalances = `
	UPDATE accounts a
	SET available = r.available, held = r.held, debt = r.debt, version = r.version, chain = r.chain
	FROM unnest($1::smallint[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[])
		AS r (part, account, available, held, debt, version, chain)
	WHERE a.part = r.part AND a.account = r.account`

func (b *Batch) saveBalances(ctx context.Context, tx *sqlx.Tx) error {
	last := map[Ref]*State{}
	for i := range b.transfers {
		last[b.transfers[i].Ref] = b.states[b.transfers[i].Ref]
	}
	refs := slices.SortedFunc(maps.Keys(last), Ref.Compare)
	var available, held, debt, versions pq.Int64Array
	var chains pq.ByteaArray
	for _, ref := range refs {
		s := last[ref]
		available, held, debt = append(available, int64(s.Available)), append(held, int64(s.Held)), append(debt, int64(s.Debt))
		versions, chains = append(versions, s.Version), append(chains, s.Chain)
	}
	parts, accounts := columns(refs)
	if _, err := tx.ExecContext(ctx, sqlUpdateBalances, parts, accounts, available, held, debt, versions, chains); err != nil {
		return fmt.Errorf("update balances: %w", err)
	}
	return nil
}

// columns turns Refs into the two arrays that unnest takes.
func columns(refs []Ref) (parts pq.Int64Array, accounts pq.StringArray) {
	parts, accounts = make(pq.Int64Array, len(refs)), make(pq.StringArray, len(refs))
	for i, r := range refs {
		parts[i], accounts[i] = int64(r.Part), r.Account
	}
	return parts, accounts
}
