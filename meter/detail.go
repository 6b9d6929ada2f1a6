package meter

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/web"
	"tallystick/ledger"
)

// readRecord gives one usage, or errNoUsage. What has not the form of an id is none.
func readRecord(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref, id string) (*record, error) {
	if !idForm.MatchString(strings.TrimPrefix(id, usagePrefix)) {
		return nil, errNoUsage
	}
	known, err := readRecords(ctx, tx, []usageKey{{ref, id}})
	if err != nil {
		return nil, err
	}
	switch u := known[usageKey{ref, id}]; {
	case u == nil:
		return nil, errNoUsage
	case u.lost != nil:
		return nil, u.lost
	default:
		return u, nil
	}
}

// took is what usage took out of grants, in the order of spending. What they lack
// of its credits came out of the overdraft or became debt.
type took struct {
	ids     []string
	amounts []int64
}

// add notes credits out of a grant, each grant once.
func (t *took) add(id string, credits int64) {
	if i := slices.Index(t.ids, id); i >= 0 {
		t.amounts[i] += credits
		return
	}
	t.ids, t.amounts = append(t.ids, id), append(t.amounts, credits)
}

// sqlCharges relies on transfers_pkey. A capture takes up to three transfers, of
// which its usage names the last.
const sqlCharges = `
	SELECT grant_ids, grant_amounts
	FROM transfers
	WHERE part = $1 AND account = $2 AND version BETWEEN $3::bigint - 2 AND $3::bigint AND kind = $4 AND cause = $5
	ORDER BY version`

// readTook finds what a usage took: in its own transfers and, for a capture, in
// the front of the hold.
func readTook(ctx context.Context, tx *sqlx.Tx, u *record) (t took, err error) {
	kind, cause := ledger.KindUsage, u.ID
	if reservation, ok := strings.CutPrefix(u.ID, usagePrefix); ok {
		kind, cause = ledger.KindCapture, reservation
		key := usageKey{u.key().ref, reservation}
		found, err := readReservations(ctx, tx, []usageKey{key})
		if err != nil {
			return t, err
		}
		r := found[key]
		if r == nil {
			return t, fault.ErrBroken.With(fmt.Errorf("usage %s of %s has no reservation", u.ID, u.Account))
		}
		left := int64(r.Captured)
		for i, id := range r.GrantIDs {
			if part := min(left, r.GrantAmounts[i]); part > 0 {
				t.add(id, part)
				left -= part
			}
		}
	}
	var rows []struct {
		IDs     pq.StringArray `db:"grant_ids"`
		Amounts pq.Int64Array  `db:"grant_amounts"`
	}
	if err := tx.SelectContext(ctx, &rows, sqlCharges, u.Part, u.Account, u.TransferVersion, kind, cause); err != nil {
		return t, fmt.Errorf("read what usage %s of %s took: %w", u.ID, u.Account, err)
	}
	for _, row := range rows {
		for i, id := range row.IDs {
			t.add(id, -row.Amounts[i])
		}
	}
	return t, nil
}

func (m *Meter) handleGetUsage(w http.ResponseWriter, r *http.Request) error {
	account, id := r.URL.Query().Get("account"), r.PathValue("id")
	if !accountForm.MatchString(account) {
		var p fault.Problems
		p.Addf("#query/account", accountRule)
		return p.Err(fault.ErrInvalid)
	}
	var answer api.UsageDetail
	err := m.db.Read(r.Context(), func(tx *sqlx.Tx) (err error) {
		answer, err = readDetail(r.Context(), tx, ledger.RefOf(account), id)
		return err
	})
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, answer)
}

func readDetail(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref, id string) (a api.UsageDetail, err error) {
	if _, err := ledger.ReadAccount(ctx, tx, ref); err != nil {
		return a, err
	}
	u, err := readRecord(ctx, tx, ref, id)
	if err != nil {
		return a, err
	}
	if a.Usage, err = u.wire(); err != nil {
		return a, err
	}
	d, err := readDefinitionAt(ctx, tx, u.Meter, u.RateVersion)
	if err != nil {
		return a, err
	}
	a.CreditsPerUnit, a.Grants = api.Decimal(d.rate(a.Dimensions).String()), []api.GrantChange{}
	took, err := readTook(ctx, tx, u)
	if err != nil {
		return a, err
	}
	for i, grant := range took.ids {
		a.Grants = append(a.Grants, api.GrantChange{ID: grant, Credits: api.Decimal(credit.Amount(took.amounts[i]).String())})
	}
	v, err := readVoid(ctx, tx, ref, id)
	if err != nil || v == nil {
		return a, err
	}
	void := v.wire(u)
	a.Void = &void
	return a, nil
}
