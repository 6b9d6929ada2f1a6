package meter

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/web"
	"tallystick/ledger"
)

// Bounds of an account.
const (
	nameMax          = 500
	customersMax     = 20
	metadataMax      = 50
	metadataValueMax = 500

	inDoubtSecondsMax = 30 * 24 * 3600
)

var errAccountForm = &fault.Error{Kind: fault.KindUnprocessed, Code: "invalid_value", Public: "the account id in the path " + accountRule}

func validateAccount(account string, q api.AccountRequest) (ledger.Account, error) {
	var p fault.Problems
	if !accountForm.MatchString(account) {
		return ledger.Account{}, errAccountForm
	}
	a := ledger.Account{Ref: ledger.RefOf(account), Name: q.Name, Customers: q.StripeCustomers}
	if len(q.Name) > nameMax {
		p.Addf("/name", "must have at most %d bytes", nameMax)
	}
	a.Overdraft = amount(&p, "/overdraft", q.Overdraft)
	if a.Overdraft < 0 {
		p.Addf("/overdraft", "must not be negative")
	}
	if q.LowBalance != nil {
		low := amount(&p, "/low_balance", *q.LowBalance)
		a.LowBalance = &low
	}
	a.InDoubt = inDoubt(&p, q.InDoubtAfter)
	if len(q.StripeCustomers) > customersMax {
		p.Addf("/stripe_customers", "must list at most %d customers", customersMax)
	}
	seen := map[string]bool{}
	for i, c := range q.StripeCustomers {
		if !customerForm.MatchString(c) || seen[c] {
			p.Addf(fmt.Sprintf("/stripe_customers/%d", i), "must be the id of a Stripe customer (cus_…), listed once")
		}
		seen[c] = true
	}
	checkTexts(&p, "/metadata", q.Metadata, metadataMax, metadataValueMax)
	if q.Metadata == nil {
		q.Metadata = map[string]string{}
	}
	metadata, err := json.Marshal(q.Metadata)
	if err != nil {
		return a, fmt.Errorf("encode metadata: %w", err)
	}
	a.Metadata = string(metadata)
	return a, p.Err(fault.ErrUnprocessed)
}

// inDoubt checks the policy for reservations in doubt. Its longest time lets a
// capture still be taken by Stripe, which takes nothing older than 35 days.
func inDoubt(p *fault.Problems, q *api.InDoubtAfter) *ledger.InDoubt {
	if q == nil {
		return nil
	}
	if q.Action != actionRelease && q.Action != actionCapture {
		p.Addf("/in_doubt_after/action", "must be release or capture")
	}
	if q.Seconds < 1 || q.Seconds > inDoubtSecondsMax {
		p.Addf("/in_doubt_after/seconds", "must be from 1 to %d", inDoubtSecondsMax)
	}
	return &ledger.InDoubt{Action: q.Action, Seconds: q.Seconds}
}

// amount parses a decimal that may be left out.
func amount(p *fault.Problems, pointer string, text api.Decimal) credit.Amount {
	if text == "" {
		return 0
	}
	a, err := credit.ParseAmount(string(text))
	if err != nil {
		p.Addf(pointer, "%v", err)
	}
	return a
}

func (m *Meter) handlePutAccount(w http.ResponseWriter, r *http.Request) error {
	var q api.AccountRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	a, err := validateAccount(r.PathValue("account"), q)
	if err != nil {
		return err
	}
	condition, err := preconditionOf(r)
	if err != nil {
		return err
	}
	var created bool
	var answer api.Account
	err = m.db.InTx(r.Context(), func(tx *sqlx.Tx) error {
		if err := condition.holdsFor(r.Context(), tx, a.Ref); err != nil {
			return err
		}
		if created, err = ledger.PutAccount(r.Context(), tx, a, m.now()); err != nil {
			return err
		}
		answer, err = readAccount(r, tx, a.Ref)
		return err
	})
	if err != nil {
		return err
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	w.Header().Set("ETag", answer.ETag)
	return web.JSON(w, status, answer)
}

// holdsFor compares with the account, which stays locked.
func (p precondition) holdsFor(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref) error {
	if len(p) == 0 {
		return nil
	}
	revision, updatedAt, err := ledger.LockAccount(ctx, tx, ref)
	if err != nil {
		return err
	}
	if revision == 0 {
		return p.holds("")
	}
	return p.holds(tag(revision, updatedAt))
}

func readAccount(r *http.Request, tx *sqlx.Tx, ref ledger.Ref) (api.Account, error) {
	a, err := ledger.ReadAccount(r.Context(), tx, ref)
	if err != nil {
		return api.Account{}, err
	}
	grants, err := ledger.ReadGrants(r.Context(), tx, ref)
	if err != nil {
		return api.Account{}, err
	}
	answer, err := wireAccount(a)
	answer.Grants = []api.OpenGrant{}
	for _, g := range grants {
		answer.Grants = append(answer.Grants, api.OpenGrant{
			ID: g.ID, Kind: string(g.Kind), Credits: api.Decimal(g.Credits.String()), Remaining: api.Decimal(g.Remaining.String()),
			Priority: g.Priority, ExpiresAt: utc(g.ExpiresAt), Reason: g.Reason, Payment: g.Payment, CreatedAt: g.CreatedAt.UTC(),
		})
	}
	return answer, err
}

func wireAccount(a ledger.Account) (api.Account, error) {
	answer := api.Account{
		Account: a.Account, Name: a.Name, StripeCustomers: a.Customers, Overdraft: api.Decimal(a.Overdraft.String()),
		Balance: wireBalance(a.Balance), OpenDisputes: a.Disputes, ETag: tag(a.Revision, a.UpdatedAt), CreatedAt: a.CreatedAt, UpdatedAt: a.UpdatedAt,
	}
	if answer.StripeCustomers == nil {
		answer.StripeCustomers = []string{}
	}
	if a.LowBalance != nil {
		low := api.Decimal(a.LowBalance.String())
		answer.LowBalance = &low
		answer.Low = a.Balance.Available < *a.LowBalance
	}
	if a.InDoubt != nil {
		answer.InDoubtAfter = &api.InDoubtAfter{Action: a.InDoubt.Action, Seconds: a.InDoubt.Seconds}
	}
	if err := json.Unmarshal([]byte(a.Metadata), &answer.Metadata); err != nil {
		return answer, fmt.Errorf("read metadata of %s: %w", a.Account, err)
	}
	return answer, nil
}

func (m *Meter) handleGetAccount(w http.ResponseWriter, r *http.Request) error {
	var answer api.Account
	err := m.db.Read(r.Context(), func(tx *sqlx.Tx) (err error) {
		answer, err = readAccount(r, tx, ledger.RefOf(r.PathValue("account")))
		return err
	})
	if err != nil {
		return err
	}
	if byToken(r.Context()) {
		answer = ownAccount(answer)
	}
	w.Header().Set("ETag", answer.ETag)
	return web.JSON(w, http.StatusOK, answer)
}

// ownAccount leaves what an end customer's own page needs: what is kept for the
// operator's use is not for it.
func ownAccount(a api.Account) api.Account {
	a.StripeCustomers, a.Metadata, a.InDoubtAfter, a.LowBalance, a.OpenDisputes = []string{}, map[string]string{}, nil, nil, 0
	for i := range a.Grants {
		a.Grants[i].Reason = ""
	}
	return a
}

func (m *Meter) handleListAccounts(w http.ResponseWriter, r *http.Request) error {
	after := ledger.Ref{Part: -1}
	limit, err := web.Page(r, &after)
	if err != nil {
		return err
	}
	var accounts []ledger.Account
	err = m.db.Read(r.Context(), func(tx *sqlx.Tx) (err error) {
		accounts, err = ledger.ListAccounts(r.Context(), tx, after, limit+1)
		return err
	})
	if err != nil {
		return err
	}
	answers := make([]api.Account, len(accounts))
	for i, a := range accounts {
		if answers[i], err = wireAccount(a); err != nil {
			return err
		}
	}
	return web.JSON(w, http.StatusOK, web.Paged(answers, limit, func(a api.Account) any { return ledger.RefOf(a.Account) }))
}
