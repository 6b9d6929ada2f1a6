package mutants

// edit is exact text of a file, found there once, and what a mutant has in its place.
type edit struct{ file, old, planted string }

// mutant is a bug, and by what the auditor must tell of it.
type mutant struct {
	name         string
	check, cause string
	edits        []edit
}

func one(name, check, cause, file, old, planted string) mutant {
	return mutant{name, check, cause, []edit{{file, old, planted}}}
}

// mutants are the bugs, by the package that has them.
var mutants = [][]mutant{ledgerMutants, meterMutants, webhookMutants, outboxMutants}

var ledgerMutants = []mutant{
	one("grants' remainders are never lowered", "ledger.grants", "grant_changed_outside",
		"ledger/batch.go", "if g.Remaining != stored {", "if g.Remaining > stored {"),
	one("the note is left out of the hash", "ledger.chain", "journal_row_changed",
		"ledger/chain.go", "	b = appendText(b, t.Note)\n", ""),
	one("hashes are not chained", "ledger.chain", "journal_row_changed",
		"ledger/chain.go", "	b = append(b, previous...)\n", ""),
	one("a debt is not booked", "ledger.balances", "balance_changed_outside",
		"ledger/kernel.go", "d.s.Debt -= by //", "_ = by //"),
	one("a transfer moves what is available by a millionth less", "ledger.balances", "balance_changed_outside",
		"ledger/kernel.go", "d.s.Available += by", "d.s.Available += by - by%2 - 1"),
	one("a release gives back one credit too much", "ledger.holds", "hold_stuck",
		"ledger/hold.go", "alive, amount := make([]Part, 0, len(parts)), bare\n", "alive, amount := make([]Part, 0, len(parts)), bare\n\tif kind == KindUnhold && taken == 0 {\n\t\tamount += 1_000_000\n\t}\n"),
	one("a capture takes the whole hold", "ledger.usage", "usage_amount_changed",
		"ledger/hold.go", "held = min(d.op.Amount, d.op.Hold.Credits)", "held = d.op.Hold.Credits"),
	one("grants never expire", "ledger.grants", "expiry_overdue",
		"ledger/kernel.go", "return g.ExpiresAt != nil && !g.ExpiresAt.After(at)", "return g.ExpiresAt != nil && !g.ExpiresAt.After(at.Add(-8760*time.Hour))"),
	one("a void gives nothing back", "ledger.usage", "wrong_void",
		"ledger/kernel.go", "d.giveBack(KindVoid, 0)", "d.giveBack(KindVoid, d.op.Amount)"),
}

var meterMutants = []mutant{
	one("usage is charged twice its price", "ledger.usage", "usage_amount_changed",
		"meter/record.go", "Kind: ledger.KindUsage, Cause: u.id, Amount: credits,", "Kind: ledger.KindUsage, Cause: u.id, Amount: 2 * credits,"),
	one("the rate of another model is taken", "ledger.usage", "wrong_price",
		"meter/definition.go", "if matches(r.Match, dimensions) {", "if !matches(r.Match, dimensions) {"),
	one("usage names a rate that is not in force yet", "ledger.usage", "rate_missing",
		"meter/record.go", "Credits: credits, RateVersion: d.RateVersion,", "Credits: credits, RateVersion: d.RateVersion + 1,"),
	one("usage is charged and not recorded", "ledger.usage", "transfer_without_usage",
		"meter/record.go", "	g.recorded = append(g.recorded, &r.record)\n", ""),
	one("a capture is charged half", "ledger.usage", "usage_amount_changed",
		"meter/ending.go", "Kind: ledger.KindCapture, Cause: r.ID, Amount: credits,", "Kind: ledger.KindCapture, Cause: r.ID, Amount: credits / 2,"),
	one("reservations never expire", "ledger.holds", "hold_stuck",
		"meter/ending.go", "if e.row.State == stateOpen && !e.row.ExpiresAt.After(e.now) {", "if e.row.State == stateOpen && !e.row.ExpiresAt.Add(8760*time.Hour).After(e.now) {"),
	one("a capture is not billed at Stripe", "usage.totals", "never_staged",
		"meter/ending.go", "		u.Staged = units\n", "		u.Staged = 0 * units\n"),
	one("a void does not tell Stripe", "usage.totals", "sent_twice",
		"meter/void.go", "if u.Staged == 0 {", "if u.Staged >= 0 {"),
}

var webhookMutants = []mutant{
	one("a purchase is granted twice", "credits.payments", "granted_twice",
		"webhooks/settle.go", "	m.granted = true\n", `	again := *g
	again.ID, again.Remaining, again.TransferVersion = g.ID+"-again", 0, 0
	op.Cause, op.Grant = again.ID, &again
	if _, err := s.batch.Apply(m.ref, op); err != nil {
		return err
	}
	m.granted = true
`),
	one("a product's credits go before its price's", "credits.payments", "wrong_amount",
		"webhooks/facts.go", `if metadata["credits"] == "" {`, `if item.ProductMetadata["credits"] != "" {`),
	{"the customer's account goes before the one that is named", "credits.payments", "wrong_account", []edit{
		{"webhooks/settle.go", `case m.facts.account != "":`, `case m.facts.account != "" && !tied:`},
		{"webhooks/settle.go", `m.row.State != stateGranted && m.facts.account == "" && m.facts.customer != ""`, `m.row.State != stateGranted && m.facts.customer != ""`},
	}},
	one("a refund in part takes all", "credits.refunds", "refund_took_too_much",
		"webhooks/returns.go", "money = min(money+r.money, paid)", "money = min(money+r.money*paid, paid)"),
	one("a refund that failed is not given back", "credits.refunds", "refund_failed",
		"webhooks/returns.go", `if r.Status == "succeeded" || r.Status == "pending" {`, `if r.Status != "canceled" {`),
	one("disputes are never taken back", "credits.disputes", "dispute_missed",
		"webhooks/returns.go", "for _, d := range disputes {", "for _, d := range disputes[:0] {"),
	one("a dispute that was won is not given back", "credits.disputes", "dispute_not_given_back",
		"webhooks/returns.go", "			back += m.Money\n", "			back += 0\n"),
	one("what is taken back is kept and not posted", "credits.refunds", "refund_missed",
		"webhooks/settle.go", "			if _, err := s.batch.Apply(m.ref, op); err != nil {\n				return err\n			}\n		}\n	}\n	return nil\n}", "			_ = op\n		}\n	}\n	return nil\n}"),
	one("events are done without effect", "credits.payments", "event_not_applied",
		"webhooks/worker.go", "h.settle(ctx, tx, due)", "h.settle(ctx, tx, due[:0])"),
	one("the inbox drops events of disputes", "credits.disputes", "dispute_missed",
		"webhooks/inbox.go", "case !handled:", `case !handled || len(e.Type) > 14 && e.Type[:14] == "charge.dispute":`),
	one("what was missed is not fetched", "credits.payments", "webhook_missed",
		"webhooks/sweep.go", "		if dry {\n", "		if !dry {\n"),
}

var outboxMutants = []mutant{
	one("half of the usage is staged", "usage.totals", "never_staged",
		"outbox/stage.go", "bySlot[s].quantity.Add(u.Quantity)", "bySlot[s].quantity.Add(u.Quantity / 2)"),
	one("late usage joins what was sent", "usage.totals", "unknown",
		"outbox/stage.go", "			if !l.pending {\n				sequence++\n			}\n", "			_ = l.pending\n"),
	one("late usage is dropped", "usage.totals", "never_staged",
		"outbox/stage.go", "		sequence := 0\n", "		sequence := 0\n		if s.bucket.Add(2 * o.Bucket).Before(now) {\n			s.quantity = 0\n		}\n"),
	one("each try has an identifier of its own", "usage.totals", "sent_by_somebody_else",
		"outbox/usage.go", "Identifier: d.Identifier, Value:", "Identifier: d.Identifier + strconv.Itoa(d.Attempts), Value:"),
	one("usage is delivered and not sent", "usage.totals", "lost_at_stripe",
		"outbox/usage.go", "	limiter := o.events\n", "	if d.Quantity > 0 {\n		return Result{Outcome: OutcomeDelivered}\n	}\n	limiter := o.events\n"),
	one("an unknown outcome counts as delivered", "usage.totals", "lost_at_stripe",
		"outbox/usage.go", `return "ambiguous", jitter(`, `return "delivered", jitter(`),
	one("usage goes to another account's customer", "usage.totals", "wrong_customer",
		"outbox/claim.go", "WHERE c.part = d.part AND c.account = d.account ORDER BY c.position LIMIT 1", "WHERE c.account <> d.account ORDER BY c.position LIMIT 1"),
	one("usage is sent with the time of sending", "usage.totals", "wrong_period",
		"outbox/claim.go", "d.Stamp = &d.Bucket", "d.Stamp = &now"),
	one("a correction corrects nothing", "usage.totals", "sent_twice",
		"outbox/takeback.go", "last.Sequence+1, -u.Quantity,", "last.Sequence+1, 0*u.Quantity,"),
	one("a correction never goes", "usage.totals", "void_not_at_stripe",
		"outbox/claim.go", "d.quantity >= 0 OR d.quantity + (", "d.quantity >= 0 OR d.quantity * (1 + abs(d.quantity)) + ("),
	one("what is withdrawn is withdrawn twice", "usage.totals", "never_staged",
		"outbox/takeback.go", "SET quantity = quantity - $6, usages", "SET quantity = quantity - 2 * $6, usages"),
}
