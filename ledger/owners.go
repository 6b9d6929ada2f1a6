package ledger

import (
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
)

// sqlAccountsOfCustomers relies on stripe_customers_pkey.
const sqlAccountsOfCustomers = `SELECT customer, part, account FROM stripe_customers WHERE customer = ANY ($1::text[])`

// AccountsOfCustomers gives the accounts that Stripe customers are tied to; who is
// tied to none is absent.
func AccountsOfCustomers(ctx context.Context, tx *sqlx.Tx, customers []string) (map[string]Ref, error) {
	owners := make(map[string]Ref, len(customers))
	if len(customers) == 0 {
		return owners, nil
	}
	var rows []struct {
		Customer string `db:"customer"`
		Part     int16  `db:"part"`
		Account  string `db:"account"`
	}
	if err := tx.SelectContext(ctx, &rows, sqlAccountsOfCustomers, pg.Texts(customers)); err != nil {
		return nil, fmt.Errorf("find the accounts of customers: %w", err)
	}
	for _, r := range rows {
		owners[r.Customer] = Ref{Part: r.Part, Account: r.Account}
	}
	return owners, nil
}
