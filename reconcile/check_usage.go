package reconcile

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/stripe"
)

// Bounds of usage.totals.
const (
	stuckAfter     = time.Hour           // a delivery that is under way longer than this is not under way
	stripeTakesFor = 35 * 24 * time.Hour // how old a meter event may be
	narrowCallsMax = 80
	evidenceMax    = 20
	readersMax     = 4 // calls to Stripe at once
)

// usageRun is one run of usage.totals.
type usageRun struct {
	*Reconciler
	s        scope
	t        *tariffs
	out      result
	standing map[string]bool         // pairs with a finding: whether Stripe still bills them
	seen     map[string][2]time.Time // what was compared of those
	recorded map[string]bool         // of those, whether they report usage records
	records  map[string]time.Time    // what was compared of usage records, by the subject without its hour, and since when
	periods  map[string]time.Time    // in which what was found would be billed, by its subject; its begin
}

// usageTotals is the check usage.totals. A run that was asked for a window reads
// all of it; one by schedule reads what has changed, and a share of the rest.
func (r *Reconciler) usageTotals(ctx context.Context, s scope) (result, error) {
	u := &usageRun{Reconciler: r, s: s, seen: map[string][2]time.Time{}, recorded: map[string]bool{}, records: map[string]time.Time{}, periods: map[string]time.Time{}}
	u.out.covered = u.covered
	var err error
	if u.t, err = r.readTariffs(ctx); err != nil {
		return u.out, err
	}
	if u.standing, u.recorded, err = r.readStanding(ctx); err != nil {
		return u.out, err
	}
	if s.asked || s.dry {
		err = u.compareWindow(ctx)
	} else {
		err = u.compareChanged(ctx)
	}
	return u.out, err
}

// covered tells whether the run has looked at what a finding is about.
func (u *usageRun) covered(subject, account string, at time.Time) bool {
	pair := subject[:max(strings.LastIndexByte(subject, '/'), 0)]
	if isRecord(subject) {
		if i := strings.LastIndex(subject, stagedAt); i > len(pair) {
			subject = subject[:i]
		}
		since, ok := u.records[subject]
		return ok && !at.Before(since) || !u.recorded[pair] && !u.s.asked
	}
	if billed, stands := u.standing[pair]; stands && !billed {
		return u.s.covers(account, at) || !u.s.asked // nobody is billed for it any more: that is usage.unbilled's
	}
	window, ok := u.seen[pair]
	return ok && !at.Before(window[0]) && at.Before(window[1])
}

// sqlStandingPairs lists the pairs that have findings.
const sqlStandingPairs = `
	SELECT DISTINCT f.account || '/' || f.unit AS pair,
		EXISTS (SELECT 1 FROM stripe_customers c WHERE c.account = f.account) AND
		EXISTS (SELECT 1 FROM meters m WHERE m.meter = f.unit AND m.stripe_event_name IS NOT NULL) AS billed,
		EXISTS (SELECT 1 FROM meters m WHERE m.meter = f.unit AND m.stripe_price IS NOT NULL) AS recorded
	FROM findings f WHERE f.check_name = 'usage.totals' AND f.state <> 'resolved'`

func (r *Reconciler) readStanding(ctx context.Context) (billed, recorded map[string]bool, err error) {
	var rows []struct {
		Pair     string `db:"pair"`
		Billed   bool   `db:"billed"`
		Recorded bool   `db:"recorded"`
	}
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlStandingPairs)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read what was found before: %w", err)
	}
	billed, recorded = make(map[string]bool, len(rows)), make(map[string]bool, len(rows))
	for _, row := range rows {
		billed[row.Pair], recorded[row.Pair] = row.Billed, row.Recorded
	}
	return billed, recorded, nil
}

// compareChanged compares what has changed since it last agreed.
func (u *usageRun) compareChanged(ctx context.Context) error {
	var p usageProgress
	if err := u.s.progress(&p); err != nil {
		return err
	}
	if err := u.rollUp(ctx, u.s, &p); err != nil {
		return err
	}
	var err error
	if p.Records, err = u.compareRecords(ctx, p.Records, recordItemsMax); err == nil {
		err = u.reread(ctx, p.RanAt)
	}
	for err == nil {
		var pairs []pair
		if pairs, err = u.openPairs(ctx, u.s, u.t, pairsMax); err != nil || len(pairs) == 0 {
			break
		}
		for batch := range slices.Chunk(pairs, pairsRead) {
			slices.SortFunc(batch, comparePairs)
			list, failed := u.compare(ctx, sqlPairHours, batch)
			if err = u.settle(ctx, u.s, list); err == nil {
				err = failed
			}
			if err != nil {
				break
			}
		}
	}
	p.RanAt = u.s.now
	u.out.progress = p
	return u.spent(ctx, err)
}

// compareWindow compares a window, all of it, and keeps nothing.
func (u *usageRun) compareWindow(ctx context.Context) (err error) {
	if _, err = u.compareRecords(ctx, recordKey{Part: -1}, math.MaxInt); err != nil {
		return err
	}
	last := pair{Part: -1}
	for err == nil {
		var pairs []pair
		err = u.DB.Read(ctx, func(tx *sqlx.Tx) error {
			pairs = nil
			return tx.SelectContext(ctx, &pairs, sqlPairsPage, u.s.account, last.Part, last.Account, last.Meter, pairsRead)
		})
		if err != nil || len(pairs) == 0 {
			break
		}
		last = pairs[len(pairs)-1]
		for i := range pairs {
			pairs[i].From, pairs[i].To = u.s.from, u.s.to
		}
		_, err = u.compare(ctx, sqlRawHours, pairs)
	}
	if errors.Is(err, stripe.ErrBudget) {
		u.out.note = fmt.Sprintf("the budget of calls to Stripe was used up at the account %s: ask for less, or wait for the scheduled runs", last.Account)
		err = nil
	}
	return err
}

// sqlWaiting counts what a run has left, over reconcile_pairs_waiting.
const sqlWaiting = `
	SELECT count(*) FROM reconcile_pairs WHERE open_from IS NOT NULL AND open_from < $1 AND (compared_at IS NULL OR compared_at < $2)`

// spent makes a note of a budget that was used up.
func (u *usageRun) spent(ctx context.Context, err error) error {
	if !errors.Is(err, stripe.ErrBudget) {
		return err
	}
	var waiting int64
	err = u.DB.Read(ctx, func(tx *sqlx.Tx) error { return tx.GetContext(ctx, &waiting, sqlWaiting, u.s.to, u.s.now) })
	u.out.note = fmt.Sprintf("the budget of calls to Stripe was used up, on what is dearest: %d pairs of account and meter wait for the next run", waiting)
	return err
}

// reread reads a share of what agreed again, as one total for each pair, and opens
// what agrees no more: at Stripe an event may be cancelled, or sent by others, later.
func (u *usageRun) reread(ctx context.Context, since time.Time) error {
	pairs, err := u.rereadPairs(ctx, u.s, since)
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(pairs, pairsRead) {
		totals := make([]credit.Quantity, len(batch))
		read, failed := u.sideBySide(ctx, batch, func(ctx context.Context, i int, p pair) (err error) {
			totals[i], err = u.totalOf(ctx, p, p.From, p.To)
			return err
		})
		done, differs := []pair{}, []bool{}
		for i, p := range batch {
			if read[i] {
				done, differs = append(done, p), append(differs, !p.alike(credit.Quantity(p.Ours), totals[i]))
				u.note(p)
			}
		}
		if err := u.keepReread(ctx, u.s, done, differs); err != nil {
			return err
		}
		if failed != nil {
			return failed
		}
	}
	return nil
}

// note remembers what was compared, where a finding stands.
func (u *usageRun) note(p pair) {
	key := p.Account + "/" + p.Meter
	if !u.standing[key] {
		return
	}
	window, ok := u.seen[key]
	if !ok {
		window = [2]time.Time{p.From, p.To}
	}
	if p.From.Before(window[0]) {
		window[0] = p.From
	}
	if p.To.After(window[1]) {
		window[1] = p.To
	}
	u.seen[key] = window
}

// sideBySide calls read for each pair, a few at once, and tells for which it has
// succeeded. It begins no more after a failure.
func (u *usageRun) sideBySide(ctx context.Context, pairs []pair, read func(ctx context.Context, i int, p pair) error) (done []bool, err error) {
	done = make([]bool, len(pairs))
	var mu sync.Mutex
	next := 0
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil || next == len(pairs) {
			return 0, false
		}
		next++
		return next - 1, true
	}
	var wg sync.WaitGroup
	for range min(readersMax, len(pairs)) {
		wg.Go(func() {
			for i, ok := take(); ok; i, ok = take() {
				failed := read(ctx, i, pairs[i])
				mu.Lock()
				if done[i] = failed == nil; err == nil {
					err = failed
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return done, err
}

// hourly is a total by its hour, in seconds since 1970.
type hourly struct {
	hour     int64
	quantity credit.Quantity
}

// compare compares pairs by the hour. What it gives was compared, also when it
// fails on another.
func (u *usageRun) compare(ctx context.Context, statement string, pairs []pair) (list []settled, err error) {
	ours := make([][]hourly, len(pairs))
	err = u.hoursOf(ctx, statement, pairs, func(n int, hour int64, quantity credit.Quantity) {
		ours[n] = append(ours[n], hourly{hour, quantity})
	})
	if err != nil {
		return nil, err
	}
	theirs := make([]map[int64]credit.Quantity, len(pairs))
	for i := range pairs {
		pairs[i].meterID = u.t.meterID(pairs[i].EventName)
	}
	read, failed := u.sideBySide(ctx, pairs, func(ctx context.Context, i int, p pair) (err error) {
		theirs[i], err = u.hourlyTotals(ctx, p)
		return err
	})
	for i, p := range pairs {
		if !read[i] {
			continue
		}
		one, err := u.comparePair(ctx, p, ours[i], theirs[i])
		if err != nil {
			return list, err
		}
		list = append(list, one)
		u.note(p)
	}
	return list, failed
}

// comparePair holds both sides' hours against each other.
func (u *usageRun) comparePair(ctx context.Context, p pair, ours []hourly, theirs map[int64]credit.Quantity) (settled, error) {
	base := p.BoundAt.Truncate(time.Hour)
	if back := u.s.now.Add(-rereadBack).Truncate(time.Hour); back.After(base) {
		base = back
	}
	out := settled{pair: p, whole: !p.From.After(base) && !p.To.Before(u.s.to)}
	cut := p.To.Truncate(time.Hour).Unix() // the hour that the window cuts, if any
	for _, o := range ours {
		t := theirs[o.hour]
		delete(theirs, o.hour)
		u.out.compared++
		if p.alike(o.quantity, t) && (o.hour != cut || !p.To.Truncate(time.Hour).Before(p.To)) {
			continue
		}
		if err := u.compareHour(ctx, &out, o.hour, t); err != nil {
			return out, err
		}
	}
	rest := make([]int64, 0, len(theirs))
	for hour, t := range theirs {
		if t != 0 {
			rest = append(rest, hour)
		}
	}
	slices.Sort(rest)
	for _, hour := range rest {
		u.out.compared++
		if err := u.compareHour(ctx, &out, hour, theirs[hour]); err != nil {
			return out, err
		}
	}
	u.out.found = append(u.out.found, pairOff(out.found, u.periods)...)
	return out, nil
}

// compareHour looks closer at an hour in which the sides differ: what is under way
// may explain it. What does not agree stays open.
func (u *usageRun) compareHour(ctx context.Context, out *settled, hour int64, theirs credit.Quantity) error {
	from := time.Unix(hour, 0).UTC()
	to := from.Add(time.Hour)
	if out.To.Before(to) {
		to = out.To
	}
	d, agrees, err := u.usageFinding(ctx, out.pair, from, to, theirs)
	if err != nil || agrees {
		return err
	}
	if out.openFrom.IsZero() || from.Before(out.openFrom) {
		out.openFrom = from
	}
	if end := from.Add(time.Hour); end.After(out.openTo) {
		out.openTo = end
	}
	if d != nil {
		out.found = append(out.found, *d)
	}
	return nil
}

// hourlyTotals reads what Stripe has counted per hour, over all customers of the
// account. The last hour, when the window cuts it, is read as one total.
func (u *usageRun) hourlyTotals(ctx context.Context, p pair) (map[int64]credit.Quantity, error) {
	totals := map[int64]credit.Quantity{}
	if p.meterID == "" {
		return totals, nil
	}
	last := p.To.Truncate(time.Hour)
	for _, customer := range p.Customers {
		if p.From.Before(last) {
			rows, err := u.Stripe.Totals(ctx, p.meterID, customer, p.From, last, true)
			if err != nil {
				return nil, err
			}
			for _, t := range rows {
				totals[t.From.Unix()] += t.Quantity
			}
		}
	}
	if last.Before(p.To) {
		q, err := u.totalOf(ctx, p, last, p.To)
		if err != nil {
			return nil, err
		}
		totals[last.Unix()] += q
	}
	return totals, nil
}

// totalOf is what Stripe has counted of a pair, over all customers of the account.
func (u *usageRun) totalOf(ctx context.Context, p pair, from, to time.Time) (sum credit.Quantity, err error) {
	meter := u.t.meterID(p.EventName)
	for _, customer := range p.Customers {
		if meter == "" {
			break
		}
		p.meterID = meter
		q, err := u.total(ctx, p, customer, from, to)
		if err != nil {
			return 0, err
		}
		sum += q
	}
	return sum, nil
}

func (r *Reconciler) total(ctx context.Context, p pair, customer string, from, to time.Time) (sum credit.Quantity, err error) {
	rows, err := r.Stripe.Totals(ctx, p.meterID, customer, from, to, false)
	for _, t := range rows {
		sum += t.Quantity
	}
	return sum, err
}

// usageFinding narrows a difference down, finds its cause and prices it. It gives
// none when what is under way explains the difference; it agrees when there is no
// difference after all.
func (u *usageRun) usageFinding(ctx context.Context, p pair, from, to time.Time, theirs credit.Quantity) (d *disagreement, agrees bool, err error) {
	whole := span{from: from, to: to, cell: cell{theirs: theirs}}
	if err := u.ourSide(ctx, p, u.s, &whole); err != nil {
		return nil, false, err
	}
	if !whole.agrees() {
		if p, whole, err = u.formerCustomers(ctx, p, whole); err != nil {
			return nil, false, err
		}
	}
	if whole.agrees() {
		return nil, whole.same() && whole.moving() == 0, nil
	}
	spans, err := u.narrow(ctx, p, whole)
	if err != nil || len(spans) == 0 {
		return nil, false, err
	}
	var difference int64
	for _, sp := range spans {
		difference += sp.difference()
	}
	usages, err := u.suspects(ctx, p, spans)
	if err != nil {
		return nil, false, err
	}
	d = &disagreement{
		Subject: strings.Join([]string{p.Account, p.Meter, from.Format("2006-01-02T15Z")}, "/"), Account: p.Account, HappenedAt: from, Unit: p.Meter,
		Ours: whole.ours.String(), Theirs: whole.theirs.String(), Difference: signed(difference),
		Evidence: usageEvidence(p, spans, usages),
	}
	b, err := u.billingOf(ctx, p, from)
	if err != nil {
		return nil, false, err
	}
	if d.Money, err = u.worthOf(ctx, p, b, spans, difference); err != nil {
		return nil, false, err
	}
	if err := u.explain(ctx, d, p, spans, difference); err != nil {
		return nil, false, err
	}
	u.limit(d, b, spans, difference)
	u.periods[d.Subject] = b.from
	if slices.ContainsFunc(spans, func(sp span) bool { return sp.archived }) {
		d.Repair, d.RepairArgs, d.Safe = "", nil, false // Stripe takes nothing that old
	}
	return d, false, nil
}
