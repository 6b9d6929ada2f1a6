package meter

import (
	"context"
)

// SettleDoubt ends a reservation that is in doubt: it captures all that was
// reserved, or releases it, and gives the state in which it is then. One that has
// ended, or was not in doubt, stays as it is.
func (m *Meter) SettleDoubt(ctx context.Context, account, id string, capture bool, by string) (state string, err error) {
	if !idForm.MatchString(id) || !accountForm.MatchString(account) {
		return "", errNoReservation
	}
	e, err := m.end(ctx, whose{id: id, account: account, by: by}, func(ctx context.Context, e *ending) error {
		switch {
		case e.row.State != stateInDoubt:
			return nil
		case capture:
			return e.capture(ctx, e.row.whole())
		}
		return e.release(ctx)
	})
	if err != nil {
		return "", err
	}
	return e.row.State, nil
}
