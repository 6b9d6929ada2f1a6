package reconcile_test

import (
	"fmt"
	"net/http"
	"time"
)

// A day passes after what is changed behind the marks: then every journal has been
// read whole once more.
const aDay = 25 * time.Hour

// tamper changes the journal behind all that guards it.
func (a *audited) tamper(statement string) {
	a.t.Helper()
	a.vandalise(statement)
	a.Sim.Advance(aDay)
}

// measured makes a meter that Stripe does not bill, and uses it once: 3 credits
// for 2 units of the large model, 0.5 a unit else.
func (a *audited) measured(ids ...string) {
	a.t.Helper()
	a.Want(http.StatusCreated, http.MethodPut, "/v1/meters/tokens",
		`{"credits_per_unit": "0.5", "rates": [{"match": {"model": "large"}, "credits_per_unit": "1.5"}]}`, nil)
	for _, id := range ids {
		a.Want(http.StatusCreated, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": %q, "account": "acme", "meter": "tokens", "quantity": 2, "dimensions": {"model": "large", "region": "eu"}}`, id), nil)
	}
}

// reserve holds credits for an unbilled meter.
func (a *audited) reserve(id, credits string) {
	a.t.Helper()
	a.Want(http.StatusCreated, http.MethodPost, "/v1/reservations", fmt.Sprintf(`{"id": %q, "account": "acme", "meter": "tokens", "credits": %q, "ttl_seconds": 86400}`, id, credits), nil)
}

// ledgerDefects has one entry per cause of the ledger's checks.
var ledgerDefects = []defect{
	{
		"balance_changed_outside", func(a *audited) { a.vandalise("UPDATE accounts SET available = available + 2500000") },
		"ledger.balances", "95.5 available", "93 available", "-2.5", "0.25 USD", "rebuild_balance", true, false,
	},
	{
		"grant_changed_outside", func(a *audited) { a.vandalise("UPDATE grants SET remaining = remaining - 2500000") },
		"ledger.grants", "90.5", "93", "+2.5", "0.25 USD", "rebuild_balance", true, false,
	},
	{
		"grant_missing", func(a *audited) {
			a.Grant("grant-0001", 20)
			a.vandalise("DELETE FROM grants WHERE grant_id = 'grant-0001'")
		}, "ledger.grants", "no grant", "20", "+20", "2.00 USD", "", false, false,
	},
	{
		"grant_unbacked", func(a *audited) {
			a.Grant("grant-0001", 20)
			a.vandalise("UPDATE grants SET credits = 30000000 WHERE grant_id = 'grant-0001'")
		}, "ledger.grants", "30", "no transfer", "-30", "3.00 USD", "", false, false,
	},
	{
		"spent_after_expiry", func(a *audited) {
			a.tamper("UPDATE grants SET expires_at = created_at")
			a.Await("the expiry", func() bool { return a.Available("acme") == "0" })
		}, "ledger.grants", "7", "0", "-7", "0.70 USD", "", false, false,
	},
	{
		"expiry_overdue", func(a *audited) {
			a.vandalise("ALTER TABLE transfers ADD CONSTRAINT planted CHECK (kind <> 'expiry') NOT VALID")
			a.vandalise("UPDATE grants SET expires_at = $1", a.Clock.Now().Add(time.Minute))
			a.Sim.Advance(2 * time.Hour)
		}, "ledger.grants", "93", "0", "-93", "9.30 USD", "", false, false,
	},
	{
		"transfer_without_usage", func(a *audited) {
			a.measured("usage-0002")
			a.vandalise("DELETE FROM usage WHERE usage_id = 'usage-0002'")
		}, "ledger.usage", "no usage", "3", "+3", "0.30 USD", "", false, false,
	},
	{
		"usage_without_transfer", func(a *audited) {
			a.measured("usage-0002")
			a.tamper("INSERT INTO usage SELECT part, account, 'usage-0003', meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint, " +
				"transfer_version + 100, available_after, held_after, debt_after FROM usage WHERE usage_id = 'usage-0002'")
		}, "ledger.usage", "3", "no transfer", "-3", "0.30 USD", "", false, false,
	},
	{
		"usage_amount_changed", func(a *audited) {
			a.measured("usage-0002")
			a.vandalise("UPDATE usage SET credits = 5000000 WHERE usage_id = 'usage-0002'")
		}, "ledger.usage", "5", "3", "-2", "0.20 USD", "", false, false,
	},
	{
		"wrong_price", func(a *audited) {
			a.measured("usage-0002", "usage-0003")
			a.vandalise("UPDATE usage SET quantity = 3000000 WHERE usage_id = 'usage-0003'")
		}, "ledger.usage", "3", "4.5", "+1.5", "0.15 USD", "", false, false,
	},
	{
		"rate_changed", func(a *audited) {
			a.measured("usage-0002", "usage-0003")
			a.vandalise(`UPDATE meter_rates SET rates = '[{"match": {"model": "large"}, "credits_per_unit": "1.25"}]' WHERE meter = 'tokens'`)
		}, "ledger.usage", "6", "5", "-1", "0.10 USD", "", false, false,
	},
	{
		"rate_missing", func(a *audited) {
			a.measured("usage-0002")
			a.vandalise("DELETE FROM meter_rates WHERE meter = 'tokens'")
		}, "ledger.usage", "3", "unknown", "-3", "0.30 USD", "", false, false,
	},
	{
		"wrong_void", func(a *audited) {
			a.measured("usage-0002")
			a.void("usage-0002")
			a.vandalise("UPDATE usage_voids SET returned = 2000000")
		}, "ledger.usage", "2", "3", "+1", "0.10 USD", "", false, false,
	},
	{
		"archive_changed", func(a *audited) {
			a.archived(1)
			a.vandalise("UPDATE usage_hours SET credits = credits + 3000000")
		}, "ledger.usage", "1 usages, 10", "1 usages, 7", "-3", "0.30 USD", "", false, false,
	},
	{
		"reservation_changed_outside", func(a *audited) {
			a.measured()
			a.reserve("resv-0001", "4")
			a.reserve("resv-0002", "2.5")
			a.vandalise("UPDATE reservations SET state = 'released', returned = credits, end_version = hold_version, ended_at = now() WHERE reservation_id = 'resv-0002'")
		}, "ledger.holds", "released, 0 captured, 2.5 returned", "2.5 held", "-2.5", "0.25 USD", "", false, false,
	},
	{
		"reservation_missing", func(a *audited) {
			a.measured()
			a.reserve("resv-0001", "4")
			a.reserve("resv-0002", "2.5")
			a.vandalise("DELETE FROM reservations WHERE reservation_id = 'resv-0002'")
		}, "ledger.holds", "no reservation", "2.5 held", "+2.5", "0.25 USD", "", false, false,
	},
	{
		"reservation_unbacked", func(a *audited) {
			a.measured()
			a.reserve("resv-0001", "4")
			a.vandalise(`INSERT INTO reservations SELECT part, account, 'resv-0002', meter, quantity, dimensions, rate_version, 2500000, '{}', '{}', ttl_seconds, fingerprint, hold_version,
				created_at, state, expires_at, reason, doubted_at, captured, returned, expired, end_version, ended_at, usage_id, capture_fingerprint FROM reservations`)
		}, "ledger.holds", "open, 2.5 held", "0 held", "-2.5", "0.25 USD", "", false, false,
	},
	{
		"hold_stuck", func(a *audited) {
			a.measured()
			a.reserve("resv-0001", "4")
			a.vandalise("ALTER TABLE transfers ADD CONSTRAINT planted CHECK (kind <> 'unhold') NOT VALID")
			a.vandalise("UPDATE reservations SET expires_at = $1", a.Clock.Now().Add(time.Minute))
			a.Sim.Advance(20 * time.Minute)
		}, "ledger.holds", "4 held", "0 held", "-4", "0.40 USD", "", false, false,
	},
	{
		"in_doubt", func(a *audited) {
			a.measured()
			a.reserve("resv-0001", "4")
			a.Want(http.StatusOK, http.MethodPost, "/v1/reservations/resv-0001/doubt", `{"reason": "the provider did not answer"}`, nil)
		}, "ledger.holds", "4 held", "unknown", "0", "0.40 USD", "settle_reservation", false, false,
	},
	{
		"journal_row_changed", func(a *audited) {
			a.Use("usage-0002", 5)
			a.Pass(3 * time.Minute)
			a.run()
			a.tamper("UPDATE transfers SET amount = 6000000 WHERE cause = 'usage-0001'")
		}, "ledger.chain", "transfer 2", "the chain of hashes", "-1", "0.10 USD", "", false, false,
	},
	{
		"journal_row_missing", func(a *audited) {
			a.Use("usage-0002", 5)
			a.Pass(3 * time.Minute)
			a.run()
			a.tamper("DELETE FROM transfers WHERE cause = 'usage-0001'")
		}, "ledger.chain", "transfer 2", "the chain of hashes", "+7", "0.70 USD", "", false, false,
	},
	{
		"journal_row_inserted", func(a *audited) {
			a.vandalise(`INSERT INTO transfers SELECT part, account, 3, 'grant', 50000000, 'grants', 'available', 'free-money', '{}', '{}', 143000000, 0, 0, actor, note, posted_at, hash
				FROM transfers WHERE version = 2`)
			a.vandalise("UPDATE accounts SET available = 143000000, version = 3")
		}, "ledger.chain", "transfer 3", "the chain of hashes", "-50", "5.00 USD", "", false, false,
	},
	{
		"account_chain_changed", func(a *audited) { a.vandalise(`UPDATE accounts SET chain = '\x00'`) },
		"ledger.chain", "transfer 2", "the chain of hashes", "0", "", "", false, false,
	},
	{
		"account_missing", func(a *audited) {
			a.Want(http.StatusCreated, http.MethodPut, "/v1/accounts/other", `{}`, nil)
			a.run()
			a.vandalise("DELETE FROM accounts WHERE account = 'other'")
		}, "ledger.chain", "no account", "0 available", "0", "0.00 USD", "", false, false,
	},
	{
		// As if every hash had been made anew: what the auditor has seen is another chain.
		"journal_rewritten", func(a *audited) {
			a.vandalise(`UPDATE reconcile_marks SET chain = '\x00' WHERE check_name = 'ledger.chain'`)
		}, "ledger.chain", "transfer 2", "the chain of hashes", "0", "", "", false, false,
	},
}
