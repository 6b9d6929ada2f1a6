package app

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"
)

// gaugeTime bounds the query behind a scrape.
const gaugeTime = 3 * time.Second

// gauges reads the state of the queues and findings when they are scraped.
type gauges struct {
	app       *App
	depth     *prometheus.Desc
	pool      *prometheus.Desc
	waiting   *prometheus.Desc
	oldest    *prometheus.Desc
	events    *prometheus.Desc
	eventLag  *prometheus.Desc
	payments  *prometheus.Desc
	swept     *prometheus.Desc
	findings  *prometheus.Desc
	money     *prometheus.Desc
	lastCheck *prometheus.Desc
}

func newGauges(a *App) *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tallystick_"+name, help, labels, nil)
	}
	return &gauges{
		app:       a,
		depth:     desc("lane_depth", "Usages that wait to be recorded."),
		pool:      desc("database_connections_in_use", "Connections to Postgres in use."),
		waiting:   desc("deliveries", "Deliveries to Stripe by state, delivered ones left out.", "state"),
		oldest:    desc("delivery_oldest_seconds", "How long the oldest delivery has been due."),
		events:    desc("stripe_events", "Events of the inbox that are not applied, by state.", "state"),
		eventLag:  desc("stripe_event_oldest_seconds", "How long the oldest event has been waiting."),
		payments:  desc("payments", "Payments that somebody must look at: parked, to be reviewed because they failed after their credits were granted, or with an open dispute.", "state"),
		swept:     desc("stripe_sweep_timestamp_seconds", "Up to when Stripe's list of events was swept for missed ones."),
		findings:  desc("findings", "Findings that are not resolved, by severity.", "severity"),
		money:     desc("findings_money_minor_units", "Money at risk in findings that are not resolved, in minor units.", "severity", "currency"),
		lastCheck: desc("check_last_success_timestamp_seconds", "When each check last succeeded; silence is a finding.", "check"),
	}
}

// Describe is prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(g, ch) }

// sqlGauges gives one row per gauge; the queues' parts rely on their partial indexes.
const sqlGauges = `
	SELECT 'delivery' AS gauge, state AS a, '' AS b, count(*) AS n FROM deliveries WHERE state <> 'delivered' GROUP BY state
	UNION ALL
	SELECT 'oldest', '', '', coalesce(extract(epoch FROM $1 - min(next_try_at)), 0)::bigint FROM deliveries
		WHERE state IN ('pending', 'sending', 'ambiguous') AND next_try_at <= $1
	UNION ALL
	SELECT 'event', state, '', count(*) FROM stripe_events WHERE state IN ('pending', 'flagged', 'failed') GROUP BY state
	UNION ALL
	SELECT 'lag', '', '', coalesce(extract(epoch FROM $1 - min(received_at)), 0)::bigint FROM stripe_events WHERE state = 'pending'
	UNION ALL
	SELECT 'payment', 'parked', '', count(*) FROM payments WHERE state = 'parked'
	UNION ALL
	SELECT 'payment', 'review', '', count(*) FROM payments WHERE review <> ''
	UNION ALL
	SELECT 'payment', 'disputed', '', count(DISTINCT payment_id) FROM disputes WHERE closed_at IS NULL
	UNION ALL
	SELECT 'swept', '', '', extract(epoch FROM swept_to)::bigint FROM stripe_sweeps WHERE swept_to IS NOT NULL
	UNION ALL
	SELECT 'finding', severity, '', count(*) FROM findings WHERE state <> 'resolved' GROUP BY severity
	UNION ALL
	SELECT 'money', severity, currency, sum(money)::bigint FROM findings WHERE state <> 'resolved' AND money IS NOT NULL GROUP BY severity, currency
	UNION ALL
	SELECT 'check', check_name, '', max(extract(epoch FROM finished_at))::bigint FROM reconcile_runs WHERE state = 'succeeded' GROUP BY check_name`

// Collect is prometheus.Collector. A database that is away leaves its gauges out.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, n int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	send(g.depth, int64(g.app.Meter.Depth()))
	send(g.pool, int64(g.app.DB.Stats().InUse))
	ctx, cancel := context.WithTimeout(context.Background(), gaugeTime) //nolint:forbidigo // a scrape hands no context in
	defer cancel()
	var rows []struct {
		Gauge string `db:"gauge"`
		A     string `db:"a"`
		B     string `db:"b"`
		N     int64  `db:"n"`
	}
	err := g.app.DB.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlGauges, g.app.options.Now())
	})
	if err != nil {
		return
	}
	for _, r := range rows {
		switch r.Gauge {
		case "delivery":
			send(g.waiting, r.N, r.A)
		case "oldest":
			send(g.oldest, r.N)
		case "event":
			send(g.events, r.N, r.A)
		case "lag":
			send(g.eventLag, r.N)
		case "payment":
			send(g.payments, r.N, r.A)
		case "swept":
			send(g.swept, r.N)
		case "finding":
			send(g.findings, r.N, r.A)
		case "money":
			send(g.money, r.N, r.A, r.B)
		case "check":
			send(g.lastCheck, r.N, r.A)
		}
	}
}
