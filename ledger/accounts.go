package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/pg"
)

// Refusals about accounts.
var (
	ErrCustomerTaken  = &fault.Error{Kind: fault.KindConflict, Code: "customer_taken", Public: "a Stripe customer belongs to another account; take it away there first"}
	ErrOverdraftInUse = &fault.Error{Kind: fault.KindConflict, Code: "overdraft_in_use", Public: "the account is overdrawn by more than the new overdraft; let it be paid back first"}
)

// Account is a customer of the AI product.
type Account struct {
	Ref
	Name       string
	Overdraft  credit.Amount
	LowBalance *credit.Amount // below it the account counts as low; nil: never
	InDoubt    *InDoubt       // nil: a reservation in doubt waits for somebody
	Metadata   string         // a JSON object
	Customers  []string       // Stripe customers; usage goes to the first
	Balance    Balance
	Disputes   int // open ones; they flag the account
	CreatedAt  time.Time
	UpdatedAt  time.Time
}

// InDoubt is what becomes of an account's reservation that stays in doubt.
type InDoubt struct {
	Action  string // release or capture
	Seconds int    // after which
}

// sqlPutAccount relies on accounts_pkey; the conflict locks the row. The insert
// tells by xmax whether the row is new.
const sqlPutAccount = `
	INSERT INTO accounts AS a (part, account, name, overdraft, low_balance, metadata, in_doubt_action, in_doubt_seconds,
		available, held, debt, version, chain, created_at, updated_at)
	VALUES ($1, $2, $3, $4, $5, $6, $8, $9, 0, 0, 0, 0, '', $7, $7)
	ON CONFLICT (part, account) DO UPDATE
	SET name = excluded.name, overdraft = excluded.overdraft, low_balance = excluded.low_balance, metadata = excluded.metadata,
		in_doubt_action = excluded.in_doubt_action, in_doubt_seconds = excluded.in_doubt_seconds, updated_at = excluded.updated_at
	RETURNING a.created_at = $7 AND a.version = 0`

// PutAccount makes the account or replaces what is said about it; its balance is
// not touched. It tells whether the account is new.
func PutAccount(ctx context.Context, tx *sqlx.Tx, a Account, now time.Time) (created bool, err error) {
	var action *string
	var seconds *int
	if a.InDoubt != nil {
		action, seconds = &a.InDoubt.Action, &a.InDoubt.Seconds
	}
	err = tx.GetContext(ctx, &created, sqlPutAccount, a.Part, a.Account, a.Name, a.Overdraft, a.LowBalance, a.Metadata, now, action, seconds)
	if pg.IsCode(err, pg.CodeCheckViolation) {
		return false, ErrOverdraftInUse
	}
	if err != nil {
		return false, fmt.Errorf("put account %s: %w", a.Account, err)
	}
	return created, putCustomers(ctx, tx, a.Ref, a.Customers)
}

// sqlDropCustomers relies on the index stripe_customers_by_account.
const sqlDropCustomers = `
	DELETE FROM stripe_customers
	WHERE part = $1 AND account = $2 AND NOT (customer = ANY ($3::text[]))`

// sqlPutCustomers relies on stripe_customers_pkey: a customer of another account
// is left as it is, and the count of rows tells.
const sqlPutCustomers = `
	INSERT INTO stripe_customers AS c (customer, part, account, position)
	SELECT n.customer, $1, $2, n.position FROM unnest($3::text[]) WITH ORDINALITY AS n (customer, position)
	ON CONFLICT (customer) DO UPDATE SET position = excluded.position
	WHERE c.part = excluded.part AND c.account = excluded.account`

func putCustomers(ctx context.Context, tx *sqlx.Tx, ref Ref, customers []string) error {
	kept := append(pq.StringArray{}, customers...) // none is an empty array: NULL would drop nobody
	if _, err := tx.ExecContext(ctx, sqlDropCustomers, ref.Part, ref.Account, kept); err != nil {
		return fmt.Errorf("take Stripe customers from %s: %w", ref.Account, err)
	}
	if len(customers) == 0 {
		return nil
	}
	result, err := tx.ExecContext(ctx, sqlPutCustomers, ref.Part, ref.Account, kept)
	if err != nil {
		return fmt.Errorf("give Stripe customers to %s: %w", ref.Account, err)
	}
	if n, err := result.RowsAffected(); err != nil || int(n) != len(customers) {
		return ErrCustomerTaken
	}
	return nil
}

type accountRecord struct {
	Part       int16          `db:"part"`
	Account    string         `db:"account"`
	Name       string         `db:"name"`
	Overdraft  credit.Amount  `db:"overdraft"`
	LowBalance *credit.Amount `db:"low_balance"`
	Action     *string        `db:"in_doubt_action"`
	Seconds    *int           `db:"in_doubt_seconds"`
	Metadata   string         `db:"metadata"`
	Customers  pq.StringArray `db:"customers"`
	Disputes   int            `db:"disputes"`
	Balance
	CreatedAt time.Time `db:"created_at"`
	UpdatedAt time.Time `db:"updated_at"`
}

func (r accountRecord) account() Account {
	a := Account{
		Ref: Ref{Part: r.Part, Account: r.Account}, Name: r.Name, Overdraft: r.Overdraft, LowBalance: r.LowBalance, Metadata: r.Metadata,
		Customers: r.Customers, Balance: r.Balance, Disputes: r.Disputes, CreatedAt: r.CreatedAt.UTC(), UpdatedAt: r.UpdatedAt.UTC(),
	}
	if r.Action != nil && r.Seconds != nil {
		a.InDoubt = &InDoubt{Action: *r.Action, Seconds: *r.Seconds}
	}
	return a
}

// sqlReadAccount relies on accounts_pkey, stripe_customers_by_account and
// disputes_open.
const sqlReadAccount = `
	SELECT a.part, a.account, a.name, a.overdraft, a.low_balance, a.in_doubt_action, a.in_doubt_seconds, a.metadata, a.available, a.held, a.debt, a.version, a.created_at, a.updated_at,
		ARRAY(SELECT c.customer FROM stripe_customers c WHERE c.part = a.part AND c.account = a.account ORDER BY c.position) AS customers,
		(SELECT count(*) FROM disputes d WHERE d.part = a.part AND d.account = a.account AND d.closed_at IS NULL) AS disputes
	FROM accounts a
	WHERE a.part = $1 AND a.account = $2`

// ReadAccount gives one account, or ErrNoAccount.
func ReadAccount(ctx context.Context, tx *sqlx.Tx, ref Ref) (Account, error) {
	var r accountRecord
	err := tx.GetContext(ctx, &r, sqlReadAccount, ref.Part, ref.Account)
	if errors.Is(err, sql.ErrNoRows) {
		return Account{}, ErrNoAccount
	}
	if err != nil {
		return Account{}, fmt.Errorf("read account %s: %w", ref.Account, err)
	}
	return r.account(), nil
}

// sqlListAccounts pages over accounts_pkey; the rest is as for sqlReadAccount.
const sqlListAccounts = `
	SELECT a.part, a.account, a.name, a.overdraft, a.low_balance, a.in_doubt_action, a.in_doubt_seconds, a.metadata, a.available, a.held, a.debt, a.version, a.created_at, a.updated_at,
		ARRAY(SELECT c.customer FROM stripe_customers c WHERE c.part = a.part AND c.account = a.account ORDER BY c.position) AS customers,
		(SELECT count(*) FROM disputes d WHERE d.part = a.part AND d.account = a.account AND d.closed_at IS NULL) AS disputes
	FROM accounts a
	WHERE (a.part, a.account) > ($1, $2)
	ORDER BY a.part, a.account
	LIMIT $3`

// ListAccounts gives up to limit accounts after the given one, in the order of
// their keys. The first page comes after Ref{Part: -1}.
func ListAccounts(ctx context.Context, tx *sqlx.Tx, after Ref, limit int) ([]Account, error) {
	var rows []accountRecord
	if err := tx.SelectContext(ctx, &rows, sqlListAccounts, after.Part, after.Account, limit); err != nil {
		return nil, fmt.Errorf("list accounts: %w", err)
	}
	accounts := make([]Account, len(rows))
	for i, r := range rows {
		accounts[i] = r.account()
	}
	return accounts, nil
}

// sqlOpenGrants relies on the index grants_open.
const sqlOpenGrants = `
	SELECT grant_id, kind, credits, remaining, priority, expires_at, reason, payment, fingerprint, transfer_version, created_at
	FROM grants
	WHERE part = $1 AND account = $2 AND remaining > 0`

// ReadGrants gives the open grants of an account in the order of spending.
func ReadGrants(ctx context.Context, tx *sqlx.Tx, ref Ref) ([]Grant, error) {
	var grants []Grant
	if err := tx.SelectContext(ctx, &grants, sqlOpenGrants, ref.Part, ref.Account); err != nil {
		return nil, fmt.Errorf("read grants of %s: %w", ref.Account, err)
	}
	slices.SortFunc(grants, func(a, b Grant) int { return a.before(&b) })
	return grants, nil
}

// sqlReadTransfers pages backwards over transfers_pkey.
const sqlReadTransfers = `
	SELECT version, kind, amount, source, target, cause, grant_ids, grant_amounts, available_after, held_after, debt_after, actor, note, posted_at, hash
	FROM transfers
	WHERE part = $1 AND account = $2 AND version < $3 AND posted_at >= $4 AND posted_at < $5
	ORDER BY version DESC
	LIMIT $6`

// ReadTransfers gives up to limit transfers of an account, newest first, those
// with a version below the given one and posted within [from, to).
func ReadTransfers(ctx context.Context, tx *sqlx.Tx, ref Ref, below int64, from, to time.Time, limit int) ([]Transfer, error) {
	var rows []transferRecord
	if err := tx.SelectContext(ctx, &rows, sqlReadTransfers, ref.Part, ref.Account, below, from, to, limit); err != nil {
		return nil, fmt.Errorf("read transfers of %s: %w", ref.Account, err)
	}
	transfers := make([]Transfer, len(rows))
	for i, r := range rows {
		transfers[i] = r.transfer(ref)
	}
	return transfers, nil
}

type transferRecord struct {
	Version        int64          `db:"version"`
	Kind           Kind           `db:"kind"`
	Amount         credit.Amount  `db:"amount"`
	Source         Book           `db:"source"`
	Target         Book           `db:"target"`
	Cause          string         `db:"cause"`
	GrantIDs       pq.StringArray `db:"grant_ids"`
	GrantAmounts   pq.Int64Array  `db:"grant_amounts"`
	AvailableAfter credit.Amount  `db:"available_after"`
	HeldAfter      credit.Amount  `db:"held_after"`
	DebtAfter      credit.Amount  `db:"debt_after"`
	Actor          string         `db:"actor"`
	Note           string         `db:"note"`
	PostedAt       time.Time      `db:"posted_at"`
	Hash           []byte         `db:"hash"`
}

func (r transferRecord) transfer(ref Ref) Transfer {
	amounts := make([]credit.Amount, len(r.GrantAmounts))
	for i, a := range r.GrantAmounts {
		amounts[i] = credit.Amount(a)
	}
	return Transfer{
		Ref: ref, Version: r.Version, Kind: r.Kind, Amount: r.Amount, Source: r.Source, Target: r.Target, Cause: r.Cause,
		GrantIDs: r.GrantIDs, GrantAmounts: amounts,
		After: Balance{Available: r.AvailableAfter, Held: r.HeldAfter, Debt: r.DebtAfter, Version: r.Version},
		Actor: r.Actor, Note: r.Note, PostedAt: r.PostedAt.UTC(), Hash: r.Hash,
	}
}
