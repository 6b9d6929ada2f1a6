package meter

import (
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/internal/web"
	"tallystick/ledger"
)

// window is the widest that a statement or total can ask for, in days.
const windowDaysDefault = 30

var farFuture = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

func (m *Meter) handleTransfers(w http.ResponseWriter, r *http.Request) error {
	below := int64(math.MaxInt64)
	limit, err := web.Page(r, &below)
	if err != nil {
		return err
	}
	var p fault.Problems
	from, to := web.Time(r, &p, "from", time.Time{}), web.Time(r, &p, "to", farFuture)
	if err := p.Err(fault.ErrInvalid); err != nil {
		return err
	}
	ref := ledger.RefOf(r.PathValue("account"))
	var rows []ledger.Transfer
	err = m.db.Read(r.Context(), func(tx *sqlx.Tx) error {
		if _, err := ledger.ReadAccount(r.Context(), tx, ref); err != nil {
			return err
		}
		rows, err = ledger.ReadTransfers(r.Context(), tx, ref, below, from, to, limit+1)
		return err
	})
	if err != nil {
		return err
	}
	lines := make([]api.Transfer, len(rows))
	for i, t := range rows {
		if lines[i] = wireTransfer(t); byToken(r.Context()) {
			lines[i].Actor, lines[i].Note = "", "" // the operator's own
		}
	}
	page := web.Paged(lines, limit, func(t api.Transfer) any { return t.Version })
	if strings.Contains(r.Header.Get("Accept"), "text/csv") {
		return writeStatement(w, page)
	}
	return web.JSON(w, http.StatusOK, page)
}

func wireTransfer(t ledger.Transfer) api.Transfer {
	signed := credit.Amount(0)
	if t.Target == ledger.BookAvailable {
		signed = t.Amount
	} else if t.Source == ledger.BookAvailable {
		signed = -t.Amount
	}
	line := api.Transfer{
		Version: t.Version, Kind: string(t.Kind), Credits: api.Decimal(signed.String()), Amount: api.Decimal(t.Amount.String()),
		Source: string(t.Source), Target: string(t.Target), Cause: t.Cause, Grants: []api.GrantChange{}, Balance: wireBalance(t.After),
		Actor: t.Actor, Note: t.Note, PostedAt: t.PostedAt, ChainHash: hex.EncodeToString(t.Hash),
	}
	for i, id := range t.GrantIDs {
		line.Grants = append(line.Grants, api.GrantChange{ID: id, Credits: api.Decimal(t.GrantAmounts[i].String())})
	}
	return line
}

// writeStatement answers as CSV. The cursor of the next page is in a header.
func writeStatement(w http.ResponseWriter, page web.List[api.Transfer]) error {
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	if page.NextCursor != nil {
		w.Header().Set("X-Next-Cursor", *page.NextCursor)
	}
	out := csv.NewWriter(w)
	_ = out.Write([]string{"version", "posted_at", "kind", "credits", "cause", "available", "held", "debt", "actor", "note"})
	for _, t := range page.Data {
		_ = out.Write([]string{
			strconv.FormatInt(t.Version, 10), t.PostedAt.Format(time.RFC3339Nano), t.Kind, string(t.Credits), web.Cell(t.Cause),
			string(t.Balance.Available), string(t.Balance.Held), string(t.Balance.Debt), web.Cell(t.Actor), web.Cell(t.Note),
		})
	}
	out.Flush()
	return nil // the status is sent; a client that went away is nobody's mistake
}

// sqlUsageTotals relies on the indexes usage_by_account, usage_voids_pkey and
// usage_hours_by_account. What is voided does not count. Each meter is summed up
// as it aggregates; where lines are not grouped by meter, the meters' sums are
// added. What is not grouped by is NULL in every row. Of archived usage the hours
// count that begin within the time.
const sqlUsageTotals = `
	SELECT CASE WHEN $5 THEN t.meter END AS meter, t.slot, t.dimensions, sum(t.quantity) AS quantity, sum(t.credits) AS credits, sum(t.count)::bigint AS count
	FROM (
		SELECT u.meter,
			CASE WHEN $6 = 'hour' THEN date_trunc('hour', u.at) WHEN $6 = 'day' THEN date_trunc('day', u.at) END AS slot,
			(SELECT jsonb_object_agg(name, coalesce(u.dimensions ->> name, '')) FROM unnest($7::text[]) AS name)::text AS dimensions,
			CASE m.aggregation
				WHEN 'count' THEN sum(u.usages) * 1000000
				WHEN 'max' THEN max(u.highest)
				WHEN 'last' THEN (array_agg(u.latest ORDER BY u.at DESC, u.version DESC) FILTER (WHERE m.aggregation = 'last'))[1]
				ELSE sum(u.quantity) END AS quantity,
			sum(u.credits) AS credits, sum(u.usages) AS count
		FROM (
			SELECT u.meter, u.occurred_at AS at, u.transfer_version AS version, u.dimensions, u.quantity, u.quantity AS highest, u.quantity AS latest,
				u.credits, 1 AS usages
			FROM usage u
			LEFT JOIN usage_voids v ON v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id
			WHERE u.part = $1 AND u.account || '' = $2 AND u.occurred_at >= $3 AND u.occurred_at < $4 AND ($8 = '' OR u.meter = $8) AND v.usage_id IS NULL
			UNION ALL
			SELECT h.meter, h.latest_at, h.latest_version, h.dimensions, h.quantity, h.highest, h.latest, h.credits, h.usages
			FROM usage_hours h
			WHERE h.part = $1 AND h.account || '' = $2 AND h.hour >= $3 AND h.hour < $4 AND ($8 = '' OR h.meter = $8) AND NOT h.voided
		) u
		JOIN meters m ON m.meter = u.meter
		GROUP BY u.meter, m.aggregation, 2, 3
	) t
	GROUP BY 1, 2, 3
	ORDER BY 2, 1, 3
	LIMIT $9`

// totalsMax bounds the lines of an answer.
const totalsMax = 10_000

var errTooManyTotals = &fault.Error{Kind: fault.KindUnprocessed, Code: "too_many_lines", Public: fmt.Sprintf("the answer would have more than %d lines; ask for less time or group by less", totalsMax)}

// grouping is a parsed group_by.
type grouping struct {
	meter      bool
	slot       string // hour, day or ""
	dimensions pq.StringArray
}

func parseGrouping(r *http.Request, p *fault.Problems) grouping {
	g := grouping{dimensions: pq.StringArray{}}
	text := r.URL.Query().Get("group_by")
	if text == "" {
		g.meter = true
		return g
	}
	for name := range strings.SplitSeq(text, ",") {
		switch {
		case name == "meter":
			g.meter = true
		case (name == "hour" || name == "day") && g.slot == "":
			g.slot = name
		case name == "hour" || name == "day":
			p.Addf("#query/group_by", "must name hour or day, not both")
		case name == "" || len(name) > nameBytesMax || len(g.dimensions) == dimensionsMax:
			p.Addf("#query/group_by", "must list hour, day, meter or names of dimensions, separated by commas")
		default:
			g.dimensions = append(g.dimensions, name)
		}
	}
	return g
}

func (m *Meter) handleUsageTotals(w http.ResponseWriter, r *http.Request) error {
	var p fault.Problems
	now := m.now()
	to := web.Time(r, &p, "to", now)
	from := web.Time(r, &p, "from", to.AddDate(0, 0, -windowDaysDefault))
	g := parseGrouping(r, &p)
	if !from.Before(to) {
		p.Addf("#query/from", "must be before to")
	}
	if err := p.Err(fault.ErrInvalid); err != nil {
		return err
	}
	ref := ledger.RefOf(r.PathValue("account"))
	var rows []struct {
		Meter      *string         `db:"meter"`
		Slot       *time.Time      `db:"slot"`
		Dimensions *string         `db:"dimensions"`
		Quantity   credit.Quantity `db:"quantity"`
		Credits    credit.Amount   `db:"credits"`
		Count      int64           `db:"count"`
	}
	err := m.db.Read(r.Context(), func(tx *sqlx.Tx) error {
		rows = nil
		if err := pg.Hold(r.Context(), tx, "usage"); err != nil {
			return err
		}
		if _, err := ledger.ReadAccount(r.Context(), tx, ref); err != nil {
			return err
		}
		return tx.SelectContext(r.Context(), &rows, sqlUsageTotals, ref.Part, ref.Account, from, to, g.meter, g.slot, g.dimensions,
			r.URL.Query().Get("meter"), totalsMax+1)
	})
	if err != nil {
		return err
	}
	if len(rows) > totalsMax {
		return errTooManyTotals
	}
	answer := api.UsageTotals{From: from, To: to, Data: []api.UsageTotal{}}
	for _, row := range rows {
		line := api.UsageTotal{From: utc(row.Slot), Quantity: api.Decimal(row.Quantity.String()), Credits: api.Decimal(row.Credits.String()), Count: row.Count}
		if row.Meter != nil {
			line.Meter = *row.Meter
		}
		if row.Dimensions != nil {
			if err := json.Unmarshal([]byte(*row.Dimensions), &line.Group); err != nil {
				return fmt.Errorf("read grouped dimensions: %w", err)
			}
		}
		answer.Data = append(answer.Data, line)
	}
	return web.JSON(w, http.StatusOK, answer)
}
