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
	one("grants' remainders are never lowered", "ledger.grants", "?",
		"ledger/batch.go", "if g.Remaining != stored {", "if g.Remaining > stored {"),
	one("the note is left out of the hash", "ledger.chain", "?",
		"ledger/chain.go", "	b = appendText(b, t.Note)\n", ""),
	one("hashes are not chained", "ledger.chain", "?",
		"ledger/chain.go", "	b = append(b, previous...)\n", ""),
	one("a debt is not booked", "ledger.balances", "?",
		"ledger/kernel.go", "d.s.Debt -= by //", "_ = by //"),
	one("a transfer moves what is available by a millionth less", "ledger.balances", "?",
		"ledger/kernel.go", "d.s.Available += by", "d.s.Available += by - by%2 - 1"),
	one("a release gives back one credit too much", "ledger.holds", "?",
		"ledger/hold.go", "alive, amount := make([]Part, 0, len(parts)), bare\n", "alive, amount := make([]Part, 0, len(parts)), bare\n\tif kind == KindUnhold && taken == 0 {\n\t\tamount += 1_000_000\n\t}\n"),
	one("a capture forgets the rest of the hold", "ledger.holds", "?",
		"ledger/hold.go", "if d.op.Hold.Credits > held {", "if d.op.Hold.Credits > held && d.op.Hold == nil {"),
	one("grants never expire", "ledger.grants", "?",
		"ledger/kernel.go", "return g.ExpiresAt != nil && !g.ExpiresAt.After(at)", "return g.ExpiresAt != nil && !g.ExpiresAt.After(at.Add(-8760*time.Hour))"),
	one("a void gives nothing back", "ledger.usage", "?",
		"ledger/kernel.go", "d.giveBack(KindVoid, 0)", "d.giveBack(KindVoid, d.op.Amount)"),
	one("new credits pay no debt", "ledger.grants", "?",
		"ledger/kernel.go", "	repaid := min(d.s.Debt, amount)\n	overdrawn := min(max(-d.s.Available, 0), amount-repaid)\n	if g.TransferVersion == 0 {", "	repaid := min(d.s.Debt, 0)\n	overdrawn := min(max(-d.s.Available, 0), amount-repaid)\n	if g.TransferVersion == 0 {"),
}

var meterMutants = []mutant{
	one("usage is charged twice its price", "ledger.usage", "?",
		"meter/record.go", "Kind: ledger.KindUsage, Cause: u.id, Amount: credits,", "Kind: ledger.KindUsage, Cause: u.id, Amount: 2 * credits,"),
	one("the rate of another model is taken", "ledger.usage", "?",
		"meter/definition.go", "if matches(r.Match, dimensions) {", "if !matches(r.Match, dimensions) {"),
	one("usage names a rate that is not in force yet", "ledger.usage", "?",
		"meter/record.go", "Credits: credits, RateVersion: d.RateVersion,", "Credits: credits, RateVersion: d.RateVersion + 1,"),
	one("usage is charged and not recorded", "ledger.usage", "?",
		"meter/record.go", "	g.recorded = append(g.recorded, &r.record)\n", ""),
	one("a capture is charged half", "ledger.usage", "?",
		"meter/ending.go", "Kind: ledger.KindCapture, Cause: r.ID, Amount: credits,", "Kind: ledger.KindCapture, Cause: r.ID, Amount: credits / 2,"),
	one("reservations never expire", "ledger.holds", "?",
		"meter/ending.go", "if e.row.State == stateOpen && !e.row.ExpiresAt.After(e.now) {", "if e.row.State == stateOpen && !e.row.ExpiresAt.Add(8760*time.Hour).After(e.now) {"),
	one("a capture is not billed at Stripe", "usage.totals", "?",
		"meter/ending.go", "		u.Staged = units\n", ""),
	one("a void does not tell Stripe", "usage.totals", "?",
		"meter/void.go", "if u.Staged == 0 {", "if u.Staged >= 0 {"),
	one("adjustments are not kept", "ledger.balances", "?",
		"meter/grants.go", "	_, err = tx.ExecContext(ctx, sqlInsertAdjustment, ref.Part,", "	_, err = tx.ExecContext(ctx, \"SELECT $1::smallint, $2::text, $3::text, $4::bigint, $5::text, $6::bytea, $7::bigint, $8::timestamptz\", ref.Part,"),
}

var webhookMutants = []mutant{
	one("a purchase is granted twice", "credits.payments", "?",
		"webhooks/settle.go", "	m.granted = true\n", `	again := *g
	again.ID, again.Remaining, again.TransferVersion = g.ID+"-again", 0, 0
	op.Cause, op.Grant = again.ID, &again
	if _, err := s.batch.Apply(m.ref, op); err != nil {
		return err
	}
	m.granted = true
`),
	one("a product's credits go before its price's", "credits.payments", "?",
		"webhooks/facts.go", `if metadata["credits"] == "" {`, `if item.ProductMetadata["credits"] != "" {`),
	one("the customer's account goes before the one that is named", "credits.payments", "?",
		"webhooks/settle.go", `case m.facts.account != "":`, `case m.facts.account != "" && !tied:`),
	one("a refund in part takes all", "credits.refunds", "?",
		"webhooks/returns.go", "money = min(money+r.money, paid)", "money = min(money+r.money*paid, paid)"),
	one("a refund that failed is not given back", "credits.refunds", "?",
		"webhooks/returns.go", `if r.Status == "succeeded" || r.Status == "pending" {`, `if r.Status != "canceled" {`),
	one("disputes are never taken back", "credits.disputes", "?",
		"webhooks/returns.go", "for _, d := range disputes {", "for _, d := range disputes[:0] {"),
	one("a dispute that was won is not given back", "credits.disputes", "?",
		"webhooks/returns.go", "			back += m.Money\n", "			back += 0\n"),
	one("what is taken back is kept and not posted", "credits.refunds", "?",
		"webhooks/settle.go", "			if _, err := s.batch.Apply(m.ref, op); err != nil {\n				return err\n			}\n		}\n	}\n	return nil\n}", "			_ = op\n		}\n	}\n	return nil\n}"),
	one("events are done without effect", "credits.payments", "?",
		"webhooks/worker.go", "h.settle(ctx, tx, due)", "h.settle(ctx, tx, due[:0])"),
	one("the inbox drops events of disputes", "credits.disputes", "?",
		"webhooks/inbox.go", "case !handled:", `case !handled || len(e.Type) > 14 && e.Type[:14] == "charge.dispute":`),
	one("what was missed is not fetched", "webhooks.gaps", "?",
		"webhooks/sweep.go", "		if dry {\n", "		if !dry {\n"),
}

var outboxMutants = []mutant{
	one("half of the usage is staged", "usage.totals", "?",
		"outbox/stage.go", "bySlot[s].quantity.Add(u.Quantity)", "bySlot[s].quantity.Add(u.Quantity / 2)"),
	one("late usage joins what was sent", "usage.totals", "?",
		"outbox/stage.go", "			if !l.pending {\n				sequence++\n			}\n", "			_ = l.pending\n"),
	one("late usage is dropped", "usage.totals", "?",
		"outbox/stage.go", "		sequence := 0\n", "		sequence := 0\n		if s.bucket.Add(2 * o.Bucket).Before(now) {\n			s.quantity = 0\n		}\n"),
	one("each try has an identifier of its own", "usage.totals", "?",
		"outbox/usage.go", "Identifier: d.Identifier, Value:", "Identifier: d.Identifier + strconv.Itoa(d.Attempts), Value:"),
	one("usage is delivered and not sent", "usage.totals", "?",
		"outbox/usage.go", "	limiter := o.events\n", "	if d.Quantity > 0 {\n		return Result{Outcome: OutcomeDelivered}\n	}\n	limiter := o.events\n"),
	one("an unknown outcome counts as delivered", "usage.totals", "?",
		"outbox/usage.go", `return "ambiguous", jitter(`, `return "delivered", jitter(`),
	one("usage goes to the last customer", "usage.totals", "?",
		"outbox/claim.go", "ORDER BY c.position LIMIT 1", "ORDER BY c.position DESC LIMIT 1"),
	one("usage is sent with the time of sending", "usage.totals", "?",
		"outbox/claim.go", "d.Stamp = &d.Bucket", "d.Stamp = &now"),
	one("a correction corrects nothing", "usage.totals", "?",
		"outbox/takeback.go", "last.Sequence+1, -u.Quantity,", "last.Sequence+1, 0*u.Quantity,"),
	one("a correction never goes", "usage.totals", "?",
		"outbox/claim.go", "d.quantity >= 0 OR d.quantity + (", "d.quantity >= 0 OR d.quantity * (1 + abs(d.quantity)) + ("),
	one("what is withdrawn is withdrawn twice", "usage.totals", "?",
		"outbox/takeback.go", "SET quantity = quantity - $6, usages", "SET quantity = quantity - 2 * $6, usages"),
}
