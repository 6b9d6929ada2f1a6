package meter

import (
	"context"
	"math"
	"net/http"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/web"
)

// readMeter gives one meter, or errNoMeter.
func readMeter(ctx context.Context, tx *sqlx.Tx, name string) (*definition, error) {
	meters, err := readMeters(ctx, tx, []string{name})
	if err != nil {
		return nil, err
	}
	if d := meters[name]; d != nil {
		return d, nil
	}
	return nil, errNoMeter
}

func (m *Meter) handleGetMeter(w http.ResponseWriter, r *http.Request) error {
	var d *definition
	err := m.db.Read(r.Context(), func(tx *sqlx.Tx) (err error) {
		d, err = readMeter(r.Context(), tx, r.PathValue("meter"))
		return err
	})
	if err != nil {
		return err
	}
	return d.answer(w, http.StatusOK)
}

// sqlListRates pages backwards over meter_rates_pkey.
const sqlListRates = `
	SELECT version AS rate_version, credits_per_unit, rates, created_at
	FROM meter_rates
	WHERE meter = $1 AND version < $2
	ORDER BY version DESC
	LIMIT $3`

// rateRow is one version of a meter's rates.
type rateRow struct {
	Version        int           `db:"rate_version"`
	CreditsPerUnit credit.Amount `db:"credits_per_unit"`
	RatesJSON      string        `db:"rates"`
	CreatedAt      time.Time     `db:"created_at"`
}

func (row rateRow) wire(meter string) (api.RateVersion, error) {
	d := definition{Meter: meter, CreditsPerUnit: row.CreditsPerUnit, RatesJSON: row.RatesJSON}
	if err := d.decode(); err != nil {
		return api.RateVersion{}, err
	}
	w := d.wire()
	return api.RateVersion{Version: row.Version, CreditsPerUnit: w.CreditsPerUnit, Rates: w.Rates, CreatedAt: row.CreatedAt.UTC()}, nil
}

func (m *Meter) handleListRates(w http.ResponseWriter, r *http.Request) error {
	below := math.MaxInt32
	limit, err := web.Page(r, &below)
	if err != nil {
		return err
	}
	name := r.PathValue("meter")
	var rows []rateRow
	err = m.db.Read(r.Context(), func(tx *sqlx.Tx) error {
		rows = nil
		if _, err := readMeter(r.Context(), tx, name); err != nil {
			return err
		}
		return tx.SelectContext(r.Context(), &rows, sqlListRates, name, below, limit+1)
	})
	if err != nil {
		return err
	}
	versions := make([]api.RateVersion, len(rows))
	for i, row := range rows {
		if versions[i], err = row.wire(name); err != nil {
			return err
		}
	}
	return web.JSON(w, http.StatusOK, web.Paged(versions, limit, func(v api.RateVersion) any { return v.Version }))
}
