package ledger

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
)

// Batch is a set of locked accounts and what is to be written about them.
type Batch struct {
	states    map[Ref]*State
	stored    map[*Grant]credit.Amount // remainders as they stand in the database
	known     map[*Grant]Ref
	byID      map[grantKey]*Grant
	clawed    map[*Grant]credit.Amount // what refunds took back, as far as it was asked for
	transfers []Transfer
	made      []*Grant
}

type grantKey struct {
	ref Ref
	id  string
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

// sqlLoad locks like sqlLockAccounts and reads the open grants behind it, in one
// round trip. It relies on accounts_pkey and on the index grants_open.
const sqlLoad = `
	SELECT part, account, available, held, debt, version, overdraft, chain,
		grant_id, kind, credits, remaining, priority, expires_at, reason, payment, fingerprint, transfer_version, created_at
	FROM ledger_load($1::smallint[], $2::text[])`

// loadedRow is an account with one of its open grants; the columns of a grant
// are NULL where it has none.
type loadedRow struct {
	accountRow
	GrantID         *string        `db:"grant_id"`
	Kind            *Kind          `db:"kind"`
	Credits         *credit.Amount `db:"credits"`
	Remaining       *credit.Amount `db:"remaining"`
	Priority        *int           `db:"priority"`
	ExpiresAt       *time.Time     `db:"expires_at"`
	Reason          *string        `db:"reason"`
	Payment         *string        `db:"payment"`
	Fingerprint     []byte         `db:"fingerprint"`
	TransferVersion *int64         `db:"transfer_version"`
	CreatedAt       *time.Time     `db:"created_at"`
}

func (r *loadedRow) grant() *Grant {
	return &Grant{
		ID: *r.GrantID, Kind: *r.Kind, Credits: *r.Credits, Remaining: *r.Remaining, Priority: *r.Priority, ExpiresAt: r.ExpiresAt,
		Reason: *r.Reason, Payment: r.Payment, Fingerprint: r.Fingerprint, TransferVersion: *r.TransferVersion, CreatedAt: *r.CreatedAt,
	}
}

// Load locks the accounts and reads their open grants. Accounts that do not
// exist are absent from the batch.
func Load(ctx context.Context, tx *sqlx.Tx, refs []Ref) (*Batch, error) {
	refs = slices.Clone(refs)
	slices.SortFunc(refs, Ref.Compare)
	refs = slices.Compact(refs)
	parts, accounts := columns(refs)
	var rows []loadedRow
	if err := tx.SelectContext(ctx, &rows, sqlLoad, parts, accounts); err != nil {
		return nil, fmt.Errorf("lock accounts: %w", err)
	}
	b := &Batch{
		states: make(map[Ref]*State, len(refs)), stored: map[*Grant]credit.Amount{}, known: map[*Grant]Ref{}, byID: map[grantKey]*Grant{},
		clawed: map[*Grant]credit.Amount{},
	}
	for i := range rows {
		r := &rows[i]
		ref := Ref{Part: r.Part, Account: r.Account}
		if b.states[ref] == nil {
			b.states[ref] = &State{Ref: ref, Balance: r.Balance, Overdraft: r.Overdraft, Chain: r.Chain}
		}
		if r.GrantID != nil {
			g := r.grant()
			b.states[ref].Grants = append(b.states[ref].Grants, g)
			b.adopt(ref, g)
		}
	}
	for _, s := range b.states {
		slices.SortFunc(s.Grants, (*Grant).before)
	}
	return b, nil
}

// adopt remembers a grant that stands in the database, so that Save writes its
// remainder if it changes.
func (b *Batch) adopt(ref Ref, g *Grant) {
	b.stored[g] = g.Remaining
	b.know(ref, g)
}

func (b *Batch) know(ref Ref, g *Grant) {
	b.known[g] = ref
	b.byID[grantKey{ref, g.ID}] = g
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
		b.know(ref, g)
		b.made = append(b.made, g)
	}
	s.Made = nil
	if op.Grant != nil {
		if _, stands := b.known[op.Grant]; !stands && b.isNew(op) {
			b.know(ref, op.Grant)
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
	if g := b.byID[grantKey{ref, id}]; g != nil {
		return g, nil
	}
	var g Grant
	if err := tx.GetContext(ctx, &g, sqlGrant, ref.Part, ref.Account, id); err != nil {
		return nil, fmt.Errorf("read grant %s of %s: %w", id, ref.Account, err)
	}
	b.adopt(ref, &g)
	return &g, nil
}

// sqlSave relies on transfers_pkey for L3, on grants_pkey and accounts_pkey, and
// on the locks that Load took.
const sqlSave = `
	SELECT ledger_save($1::smallint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[],
		$11::bigint[], $12::bigint[], $13::bigint[], $14::text[], $15::text[], $16::timestamptz[], $17::bytea[],
		$18::smallint[], $19::text[], $20::text[], $21::bigint[],
		$22::smallint[], $23::text[], $24::bigint[], $25::bigint[], $26::bigint[], $27::bigint[], $28::bytea[])`

// Save writes everything that was applied: transfers, changed remainders,
// balances, new grants. But for those it is one statement, whatever the size of
// the batch.
func (b *Batch) Save(ctx context.Context, tx *sqlx.Tx) error {
	if len(b.transfers) == 0 {
		return nil
	}
	arguments := slices.Concat(b.transferColumns(), b.remainderColumns(), b.balanceColumns())
	if _, err := tx.ExecContext(ctx, sqlSave, arguments...); err != nil {
		return fmt.Errorf("write transfers, remainders and balances: %w", err)
	}
	return b.saveNewGrants(ctx, tx)
}

func (b *Batch) transferColumns() []any {
	n := len(b.transfers)
	numbers := func() pg.Bigints { return make(pg.Bigints, n) }
	texts := func() pg.Texts { return make(pg.Texts, n) }
	refs, versions, kinds, amounts := make([]Ref, n), numbers(), texts(), numbers()
	sources, targets, causes, grantIDs, grantAmounts := texts(), texts(), texts(), texts(), texts()
	available, held, debt := numbers(), numbers(), numbers()
	actors, notes, times, hashes := texts(), texts(), make(pg.Times, n), make(pg.Byteas, n)
	for i := range b.transfers {
		t := &b.transfers[i]
		refs[i], versions[i], kinds[i], amounts[i] = t.Ref, t.Version, string(t.Kind), int64(t.Amount)
		sources[i], targets[i], causes[i] = string(t.Source), string(t.Target), t.Cause
		grantIDs[i], grantAmounts[i] = grantLiterals(t)
		available[i], held[i], debt[i] = int64(t.After.Available), int64(t.After.Held), int64(t.After.Debt)
		actors[i], notes[i], times[i], hashes[i] = t.Actor, t.Note, t.PostedAt, t.Hash
	}
	parts, accounts := columns(refs)
	return []any{
		parts, accounts, versions, kinds, amounts, sources, targets, causes, grantIDs, grantAmounts, available, held, debt,
		actors, notes, times, hashes,
	}
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

// sqlInsertGrants relies on grants_pkey: the same grant is never made twice.
const sqlInsertGrants = `
	INSERT INTO grants (part, account, grant_id, kind, credits, remaining, priority, expires_at, reason, payment, fingerprint, transfer_version, created_at)
	SELECT part, account, grant_id, kind, credits, remaining, priority, expires_at, reason, nullif(payment, ''), fingerprint, transfer_version, created_at
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::timestamptz[], $9::text[], $10::text[],
		$11::bytea[], $12::bigint[], $13::timestamptz[])
		AS g (part, account, grant_id, kind, credits, remaining, priority, expires_at, reason, payment, fingerprint, transfer_version, created_at)`

func (b *Batch) saveNewGrants(ctx context.Context, tx *sqlx.Tx) error {
	n := len(b.made)
	if n == 0 {
		return nil
	}
	refs, ids, kinds, reasons, payments := make([]Ref, n), make(pg.Texts, n), make(pg.Texts, n), make(pg.Texts, n), make(pg.Texts, n)
	credits, remainders, priorities, versions := make(pg.Bigints, n), make(pg.Bigints, n), make(pg.Bigints, n), make(pg.Bigints, n)
	expiries, times, fingerprints := make(pg.Times, n), make(pg.Times, n), make(pg.Byteas, n)
	for i, g := range b.made {
		refs[i], ids[i], kinds[i], reasons[i], fingerprints[i], times[i] = b.known[g], g.ID, string(g.Kind), g.Reason, g.Fingerprint, g.CreatedAt
		credits[i], remainders[i], priorities[i], versions[i] = int64(g.Credits), int64(g.Remaining), int64(g.Priority), g.TransferVersion
		if g.ExpiresAt != nil {
			expiries[i] = *g.ExpiresAt
		}
		if g.Payment != nil {
			payments[i] = *g.Payment
		}
	}
	parts, accounts := columns(refs)
	_, err := tx.ExecContext(ctx, sqlInsertGrants, parts, accounts, ids, kinds, credits, remainders, priorities, expiries, reasons, payments,
		fingerprints, versions, times)
	if err != nil {
		return fmt.Errorf("insert grants: %w", err)
	}
	return nil
}

func (b *Batch) remainderColumns() []any {
	var refs []Ref
	var ids pg.Texts
	var remainders pg.Bigints
	for g, stored := range b.stored {
		if g.Remaining != stored {
			refs, ids, remainders = append(refs, b.known[g]), append(ids, g.ID), append(remainders, int64(g.Remaining))
		}
	}
	parts, accounts := columns(refs)
	return []any{parts, accounts, ids, remainders}
}

func (b *Batch) balanceColumns() []any {
	last := make(map[Ref]*State, len(b.states))
	for i := range b.transfers {
		last[b.transfers[i].Ref] = b.states[b.transfers[i].Ref]
	}
	refs := slices.SortedFunc(maps.Keys(last), Ref.Compare)
	var available, held, debt, versions pg.Bigints
	var chains pg.Byteas
	for _, ref := range refs {
		s := last[ref]
		available, held, debt = append(available, int64(s.Available)), append(held, int64(s.Held)), append(debt, int64(s.Debt))
		versions, chains = append(versions, s.Version), append(chains, s.Chain)
	}
	parts, accounts := columns(refs)
	return []any{parts, accounts, available, held, debt, versions, chains}
}

// columns turns Refs into the two arrays that unnest takes.
func columns(refs []Ref) (parts pg.Smallints, accounts pg.Texts) {
	parts, accounts = make(pg.Smallints, len(refs)), make(pg.Texts, len(refs))
	for i, r := range refs {
		parts[i], accounts[i] = r.Part, r.Account
	}
	return parts, accounts
}
