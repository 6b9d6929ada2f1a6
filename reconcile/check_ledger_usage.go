package reconcile

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/credit"
)

// sqlCharges compares what is new in each journal about usage with the rows of
// usage. A journal is read over transfers_pkey; a usage is found by its key in the
// one partition of its time. With since = 0 the other direction is read, too, over
// usage_by_account: usage without a transfer. Archived months are compared as sums.
const sqlCharges = `
	WITH k AS (
		SELECT * FROM unnest($1::smallint[], $2::text[], $3::bigint[]) AS k (part, account, since)
	), charged AS (
		SELECT t.part, t.account, CASE t.kind WHEN 'usage' THEN t.cause ELSE 'reservation@' || t.cause END AS usage_id, max(t.version) AS version,
			sum(t.amount) AS credits, max(t.posted_at) AS posted_at
		FROM k
		JOIN transfers t ON t.part = k.part AND t.account = k.account AND t.version > k.since
		WHERE t.kind IN ('usage', 'capture')
		GROUP BY t.part, t.account, t.kind, t.cause
	)
	SELECT c.account, c.usage_id, c.posted_at AS at, c.version, c.credits AS transferred, coalesce(u.credits, 0) AS charged,
		CASE WHEN u.usage_id IS NULL THEN 'no usage' ELSE 'amount' END AS what
	FROM charged c
	LEFT JOIN usage u ON u.part = c.part AND u.account = c.account AND u.usage_id = c.usage_id AND u.recorded_at = c.posted_at
	WHERE (u.usage_id IS NULL AND NOT EXISTS (SELECT FROM usage_archives a WHERE c.posted_at >= a.month AND c.posted_at < a.until))
		OR u.credits <> c.credits OR u.transfer_version <> c.version
	UNION ALL
	SELECT u.account, u.usage_id, u.recorded_at, u.transfer_version, 0, u.credits, 'no transfer'
	FROM k
	JOIN usage u ON u.account || '' = k.account AND u.part = k.part
	WHERE k.since = 0 AND NOT EXISTS (
		SELECT FROM transfers t
		WHERE t.part = u.part AND t.account = u.account AND t.version = u.transfer_version
			AND ((t.kind = 'usage' AND t.cause = u.usage_id) OR (t.kind = 'capture' AND 'reservation@' || t.cause = u.usage_id)))
	ORDER BY 1, 2
	LIMIT 1000`

// charge is a usage about which journal and row disagree.
type charge struct {
	Account     string        `db:"account"`
	UsageID     string        `db:"usage_id"`
	At          time.Time     `db:"at"`
	Version     int64         `db:"version"`
	Transferred credit.Amount `db:"transferred"`
	Charged     credit.Amount `db:"charged"`
	What        string        `db:"what"`
}

// sqlPrices works out what each new usage costs by the rates that it names: its
// quantity (one unit for a meter that counts) times the rate of the first entry that
// its dimensions have in whole, else the meter's, rounded to a millionth, halves up.
// A capture may have been asked for in credits: then its quantity was worked out
// from them. The rows are those of sqlCharges, less those it has found.
const sqlPrices = `
	WITH k AS (
		SELECT * FROM unnest($1::smallint[], $2::text[], $3::bigint[]) AS k (part, account, since)
	), charged AS (
		SELECT t.part, t.account, CASE t.kind WHEN 'usage' THEN t.cause ELSE 'reservation@' || t.cause END AS usage_id, sum(t.amount) AS credits, max(t.posted_at) AS posted_at
		FROM k
		JOIN transfers t ON t.part = k.part AND t.account = k.account AND t.version > k.since
		WHERE t.kind IN ('usage', 'capture')
		GROUP BY t.part, t.account, t.kind, t.cause
	), priced AS (
		SELECT u.account, u.usage_id, u.meter, u.rate_version, u.recorded_at, u.credits, u.quantity, m.aggregation, r.rate,
			round(CASE m.aggregation WHEN 'count' THEN r.rate ELSE u.quantity * r.rate / 1000000 END) AS price
		FROM charged c
		JOIN usage u ON u.part = c.part AND u.account = c.account AND u.usage_id = c.usage_id AND u.recorded_at = c.posted_at AND u.credits = c.credits
		LEFT JOIN meters m ON m.meter = u.meter
		LEFT JOIN LATERAL (
			SELECT coalesce((
				SELECT (e.entry ->> 'credits_per_unit')::numeric * 1000000
				FROM jsonb_array_elements(v.rates) WITH ORDINALITY AS e (entry, place)
				WHERE u.dimensions @> (e.entry -> 'match')
				ORDER BY e.place
				LIMIT 1), v.credits_per_unit) AS rate
			FROM meter_rates v
			WHERE v.meter = u.meter AND v.version = u.rate_version
		) r ON true
	), judged AS (
		SELECT *, price IS NULL OR (price <> credits AND NOT (usage_id LIKE 'reservation@%' AND CASE
			WHEN aggregation = 'count' THEN quantity = 1000000
			WHEN rate = 0 THEN quantity = credits
			ELSE quantity = greatest(round(credits * 1000000 / rate::numeric), 1) END)) AS is_wrong
		FROM priced
	)
	SELECT account, meter, rate_version, count(*) AS usages, count(*) FILTER (WHERE is_wrong) AS wrong, min(recorded_at) FILTER (WHERE is_wrong) AS at,
		sum(credits) FILTER (WHERE is_wrong) AS charged, sum(price) FILTER (WHERE is_wrong) AS price,
		(array_agg(usage_id ORDER BY recorded_at, usage_id) FILTER (WHERE is_wrong))[1:20] AS ids
	FROM judged
	GROUP BY account, meter, rate_version
	HAVING bool_or(is_wrong)
	ORDER BY account, meter, rate_version`

// mispriced is usage of one account, meter and rate version that was not charged
// by that rate.
type mispriced struct {
	Account string         `db:"account"`
	Meter   string         `db:"meter"`
	Version int            `db:"rate_version"`
	Usages  int64          `db:"usages"`
	Wrong   int64          `db:"wrong"`
	At      time.Time      `db:"at"`
	Charged credit.Amount  `db:"charged"`
	Price   *credit.Amount `db:"price"` // nil when the rate is unknown
	IDs     pq.StringArray `db:"ids"`
}

// sqlVoided compares what is new in each journal about voids with their rows and with
// what the usage was charged, over transfers_pkey, usage_voids_pkey, transfers_usage
// and transfers_captures; with since = 0 also rows without a transfer.
const sqlVoided = `
	WITH k AS (
		SELECT * FROM unnest($1::smallint[], $2::text[], $3::bigint[]) AS k (part, account, since)
	)
	SELECT account, usage_id, at, transferred, CASE what WHEN 'price' THEN price ELSE charged END AS charged, what
	FROM (
		SELECT m.account, m.cause AS usage_id, m.at, m.returned + m.expired AS transferred, coalesce(v.returned + v.expired, 0) AS charged, p.price,
			CASE WHEN v.usage_id IS NULL THEN 'no void' WHEN (v.returned, v.expired) IS DISTINCT FROM (m.returned, m.expired) THEN 'amount'
				WHEN p.price <> m.returned + m.expired THEN 'price' END AS what
		FROM (
			SELECT t.part, t.account, t.cause, max(t.posted_at) AS at, coalesce(sum(t.amount) FILTER (WHERE t.kind = 'void'), 0) AS returned,
				coalesce(sum(t.amount) FILTER (WHERE t.kind = 'expiry'), 0) AS expired
			FROM k
			JOIN transfers t ON t.part = k.part AND t.account = k.account AND t.version > k.since
			WHERE t.source = 'usage'
			GROUP BY t.part, t.account, t.cause
		) m
		LEFT JOIN usage_voids v ON v.part = m.part AND v.account = m.account AND v.usage_id = m.cause
		CROSS JOIN LATERAL (SELECT coalesce(
			(SELECT sum(u.amount) FROM transfers u WHERE u.kind = 'usage' AND u.part = m.part AND u.account || '' = m.account AND u.cause = m.cause),
			(SELECT sum(u.amount) FROM transfers u WHERE u.kind = 'capture' AND u.part = m.part AND u.account || '' = m.account
				AND 'reservation@' || u.cause = m.cause AND u.cause = substr(m.cause, 13))) AS price) p
	) w
	WHERE what IS NOT NULL
	UNION ALL
	SELECT v.account, v.usage_id, v.voided_at, 0, v.returned + v.expired, 'no transfer'
	FROM k
	JOIN usage_voids v ON v.part = k.part AND v.account = k.account
	WHERE k.since = 0 AND NOT EXISTS (
		SELECT FROM transfers t WHERE t.part = v.part AND t.account = v.account AND t.version = v.transfer_version AND t.kind = 'void' AND t.cause = v.usage_id)
	ORDER BY 1, 2
	LIMIT 1000`

// sqlArchived compares the hours that stay of archived months with the journal, for
// accounts that are read whole, over usage_hours_pkey and transfers_pkey.
const sqlArchived = `
	WITH k AS (
		SELECT k.part, k.account FROM unnest($1::smallint[], $2::text[], $3::bigint[]) AS k (part, account, since)
		WHERE k.since = 0 AND EXISTS (SELECT FROM usage_archives)
	)
	SELECT coalesce(h.account, t.account) AS account, coalesce(h.month, t.month) AS at, coalesce(h.usages, 0) AS usages, coalesce(h.credits, 0) AS charged,
		coalesce(t.usages, 0) AS journal_usages, coalesce(t.credits, 0) AS transferred
	FROM (
		SELECT h.part, h.account, h.month, sum(h.usages) AS usages, sum(h.credits) AS credits
		FROM k JOIN usage_hours h ON h.part = k.part AND h.account = k.account
		GROUP BY h.part, h.account, h.month
	) h
	FULL JOIN (
		SELECT t.part, t.account, a.month, sum(t.amount) AS credits,
			count(*) FILTER (WHERE t.kind = 'usage') + count(DISTINCT t.cause) FILTER (WHERE t.kind = 'capture') AS usages
		FROM k
		JOIN transfers t ON t.part = k.part AND t.account = k.account AND t.kind IN ('usage', 'capture')
		JOIN usage_archives a ON t.posted_at >= a.month AND t.posted_at < a.until
		GROUP BY t.part, t.account, a.month
	) t ON t.part = h.part AND t.account = h.account AND t.month = h.month
	WHERE (h.usages, h.credits) IS DISTINCT FROM (t.usages, t.credits)
	ORDER BY 1, 2`

type archiveDrift struct {
	Account     string        `db:"account"`
	Month       time.Time     `db:"at"`
	Usages      int64         `db:"usages"`
	Charged     credit.Amount `db:"charged"`
	Journal     int64         `db:"journal_usages"`
	Transferred credit.Amount `db:"transferred"`
}

// ledgerUsage is the check ledger.usage.
func (r *Reconciler) ledgerUsage(ctx context.Context, s scope) (result, error) {
	return r.walk(ctx, s, walker{name: "ledger.usage", look: r.lookAtUsage})
}

func (r *Reconciler) lookAtUsage(ctx context.Context, tx *sqlx.Tx, _ scope, batch []watched) ([]verdict, error) {
	parts, accounts, since := keys(batch)
	var charges, voids []charge
	var wrong []mispriced
	var archives []archiveDrift
	for _, q := range []struct {
		dst   any
		query string
	}{{&charges, sqlCharges}, {&wrong, sqlPrices}, {&voids, sqlVoided}, {&archives, sqlArchived}} {
		if err := tx.SelectContext(ctx, q.dst, q.query, parts, accounts, since); err != nil {
			return nil, fmt.Errorf("compare usage with the journal: %w", err)
		}
	}
	verdicts, at := make([]verdict, len(batch)), positions(batch)
	add := func(d disagreement, credits credit.Amount) error {
		d.Difference = signed(int64(credits))
		d, err := r.priced(ctx, d, credits)
		v := &verdicts[at[d.Account]]
		v.found = append(v.found, d)
		return err
	}
	for _, c := range charges {
		if err := add(c.finding()); err != nil {
			return nil, err
		}
	}
	for _, m := range wrong {
		if err := add(m.finding()); err != nil {
			return nil, err
		}
	}
	for _, c := range voids {
		if err := add(c.voidFinding()); err != nil {
			return nil, err
		}
	}
	for _, a := range archives {
		if err := add(a.finding()); err != nil {
			return nil, err
		}
	}
	return verdicts, nil
}

// finding says what is wrong with a charge; theirs is the journal.
func (c charge) finding() (disagreement, credit.Amount) {
	d := disagreement{
		Subject: "usage/" + c.Account + "/" + c.UsageID, Account: c.Account, HappenedAt: c.At, Unit: "credits", Ours: c.Charged.String(), Theirs: c.Transferred.String(),
		Evidence: map[string]any{"usage": c.UsageID, "transfer": c.Version},
	}
	switch c.What {
	case "no usage":
		d.Cause, d.Ours = "transfer_without_usage", "no usage"
		d.Explanation = fmt.Sprintf("Transfer %d took %s credits for usage %s, and there is no such usage: its row was deleted, or was never written.", c.Version, c.Transferred, c.UsageID)
	case "no transfer":
		d.Cause, d.Theirs = "usage_without_transfer", "no transfer"
		d.Explanation = fmt.Sprintf("Usage %s says that it was charged %s credits, and no transfer of the journal took them: its row was added or changed by hand, or the charge was never posted.", c.UsageID, c.Charged)
	default:
		d.Cause = "usage_amount_changed"
		d.Explanation = fmt.Sprintf("Usage %s says that it was charged %s credits, its transfer %d took %s. Its row was changed by hand or by another program.", c.UsageID, c.Charged, c.Version, c.Transferred)
	}
	return d, c.Transferred - c.Charged
}

// finding says what usage should have cost; theirs is the price by the rate.
func (m mispriced) finding() (disagreement, credit.Amount) {
	version := strconv.Itoa(m.Version)
	d := disagreement{
		Subject: "price/" + m.Account + "/" + m.Meter + "@" + version, Account: m.Account, HappenedAt: m.At, Unit: "credits", Ours: m.Charged.String(), Theirs: "unknown",
		Evidence: map[string]any{"meter": m.Meter, "rate_version": m.Version, "usages": m.Wrong, "of": m.Usages, "usage": []string(m.IDs)},
	}
	if m.Price == nil {
		d.Cause = "rate_missing"
		d.Explanation = fmt.Sprintf("%d usages of %s were charged by version %s of its rates, and there is no such version: its row was deleted.", m.Wrong, m.Meter, version)
		return d, -m.Charged
	}
	d.Theirs = m.Price.String()
	if m.Wrong == m.Usages && m.Usages > 1 {
		d.Cause = "rate_changed"
		d.Explanation = fmt.Sprintf("All %d usages of %s that were charged by version %s of its rates were charged %s credits, and cost %s by what that version says now. A version never changes: its row was changed by hand or by another program.",
			m.Wrong, m.Meter, version, m.Charged, *m.Price)
	} else {
		d.Cause = "wrong_price"
		d.Explanation = fmt.Sprintf("%d of %d usages of %s were charged %s credits, and cost %s by version %s of its rates: the usage or the rate was changed by hand, or the price was worked out wrongly.",
			m.Wrong, m.Usages, m.Meter, m.Charged, *m.Price, version)
	}
	return d, *m.Price - m.Charged
}

// voidFinding says what is wrong with a void; theirs is the journal.
func (c charge) voidFinding() (disagreement, credit.Amount) {
	d := disagreement{
		Subject: "void/" + c.Account + "/" + c.UsageID, Account: c.Account, HappenedAt: c.At, Unit: "credits", Ours: c.Charged.String(), Theirs: c.Transferred.String(),
		Evidence: map[string]any{"usage": c.UsageID},
	}
	d.Cause = "wrong_void"
	switch c.What {
	case "no void":
		d.Ours = "no void"
		d.Explanation = fmt.Sprintf("%s credits of usage %s were given back, and nothing says that it was voided: the void's row was deleted, or was never written.", c.Transferred, c.UsageID)
	case "no transfer":
		d.Theirs = "no transfer"
		d.Explanation = fmt.Sprintf("Usage %s is said to be voided with %s credits, and no transfer of the journal gave them back.", c.UsageID, c.Charged)
	case "price":
		d.Ours, d.Theirs = c.Transferred.String(), c.Charged.String()
		d.Explanation = fmt.Sprintf("Usage %s was charged %s credits, and its void gave back %s.", c.UsageID, c.Charged, c.Transferred)
		return d, c.Charged - c.Transferred
	default:
		d.Explanation = fmt.Sprintf("The void of usage %s says that %s credits went back, the journal says %s.", c.UsageID, c.Charged, c.Transferred)
	}
	return d, c.Transferred - c.Charged
}

// finding says what is wrong with an archived month; theirs is the journal.
func (a archiveDrift) finding() (disagreement, credit.Amount) {
	month := a.Month.UTC().Format("2006-01")
	return disagreement{
		Subject: "archive/" + a.Account + "/" + month, Account: a.Account, HappenedAt: a.Month, Unit: "credits", Cause: "archive_changed",
		Ours: fmt.Sprintf("%d usages, %s", a.Usages, a.Charged), Theirs: fmt.Sprintf("%d usages, %s", a.Journal, a.Transferred),
		Explanation: fmt.Sprintf("Of the archived month %s there are hours of %d usages charged %s credits, the journal has %d at %s. The hours were changed by hand or by another program; the export has every row.",
			month, a.Usages, a.Charged, a.Journal, a.Transferred),
		Evidence: map[string]any{"month": month},
	}, a.Transferred - a.Charged
}
