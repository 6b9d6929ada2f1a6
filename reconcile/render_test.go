package reconcile

import (
	"strings"
	"testing"
	"time"
)

// TestMailsSayTheSameInBothForms and begin with what to do by when.
func TestMailsSayTheSameInBothForms(t *testing.T) {
	t.Parallel()
	r := New(Config{PublicURL: "https://billing.example.com"})
	dl, dl2 := noon.Add(5*time.Hour), noon.Add(20*24*time.Hour)
	m1, m2, m3, before := int64(123456), int64(1000), int64(10), int64(90000)
	fs := []Finding{
		{ID: "fnd_01a20f64-e933-7da1-bf2e-593d32e9ed46", Check: "usage.totals", Subject: "acme/llm.output_tokens/2026-03-01T10Z", Account: "acme-with-a-long-name@example.com", HappenedAt: noon, Severity: "critical", Ours: "1234567.25", Theirs: "734567.25", Difference: "-500000", Unit: "llm.output_tokens", Money: &m1, Currency: "usd", Effect: "leaked", Cause: "lost_at_stripe", Explanation: "Stripe lacks 500000 of llm.output_tokens although it acknowledged the deliveries: it dropped them afterwards.", Deadline: &dl, Remains: "a manual invoice item", Repair: "resend_usage", Evidence: `{"customer":"cus_A79841ef830a36ddf212b5d0"}`, State: "open", ToldMoney: &before, RepairArgs: "{}"},
		{ID: "fnd_2", Check: "credits.payments", Subject: "payment/pi_EF2C3250a73b9b413196af12", Account: "acme", HappenedAt: noon, Severity: "medium", Ours: "0", Theirs: "100", Difference: "+100", Unit: "credits", Money: &m2, Currency: "usd", Effect: "overbilled", Cause: "webhook_missed", Explanation: "Payment pi_EF2C3250a73b9b413196af12 of 10.00 USD was paid, but its event never arrived: no credits were granted.", Deadline: &dl2, Repair: "feed_event", State: "acknowledged", RepairArgs: "{}", Evidence: "{}"},
		{ID: "fnd_3", Check: "ledger.balances", Subject: "account/acme", Account: "acme", HappenedAt: noon, Severity: "low", Ours: "90.5 available", Theirs: "88 available", Difference: "-2.5", Unit: "credits", Money: &m3, Currency: "eur", Effect: "at_risk", Cause: "balance_changed_outside", Explanation: "The balance row says 90.5 available, the 3 transfers of its journal add up to 88 available.", State: "open", RepairArgs: "{}", Evidence: "{}"},
		{ID: "fnd_4", Check: "reconcile.silence", Subject: "silence/usage.totals", HappenedAt: noon, Severity: "high", Ours: "last success 2026-03-01T10:00:00Z", Theirs: "success every 1h0m0s", Difference: "late", Unit: "check", Effect: "at_risk", Cause: "failing", Explanation: "The check usage.totals runs, but fails; mismatches that it would find are not seen. Its last run says: stripe /v1/billing/meters: 503", State: "open", RepairArgs: "{}", Evidence: "{}"},
	}
	letter := letter{Lead: lead(fs, noon), Total: totalMoney(fs[:2]), Of: "recovered", Count: 2, Sums: []sum{{"leaked", "1234.56 USD"}}, Groups: weeklyGroups(reported{opened: fs, recovered: fs[:2]})}
	var weekly Mail
	if err := weekly.render("weekly", letter); err != nil {
		t.Fatal(err)
	}
	told, err := r.findingsMail(fs, noon)
	if err != nil {
		t.Fatal(err)
	}
	cleared, err := r.clearMail(fs, noon)
	if err != nil {
		t.Fatal(err)
	}
	begin := "Approve the repair of 2, look at the other 2 before 1 March 2026, 17:00 UTC (in 5 hours)."
	for _, tc := range []struct {
		mail  Mail
		facts []string
	}{
		{told, []string{
			begin, "0.10 EUR and 1244.56 USD and an unknown amount", "was 900.00 USD", "an unknown amount", "then: a manual invoice item", "https://billing.example.com/v1/findings/fnd_2",
			"https://dashboard.stripe.com/test/payments/pi_EF2C3250a73b9b413196af12", "https://dashboard.stripe.com/test/customers/cus_A79841ef830a36ddf212b5d0", "acknowledged",
		}},
		{cleared, []string{"4 findings", "1244.56 USD", "balance_changed_outside"}},
		{weekly, []string{begin, "leaked", "recovered 10.00 USD", "webhook_missed"}},
	} {
		for _, fact := range tc.facts {
			if !strings.Contains(tc.mail.Text, fact) || !strings.Contains(tc.mail.HTML, fact) {
				t.Errorf("%q is not in both forms of %q:\n%s", fact, tc.mail.Subject, tc.mail.Text)
			}
		}
	}
	if !strings.HasPrefix(told.Text, begin) || strings.Index(told.Text, "critical") > strings.Index(told.Text, "(high)") {
		t.Errorf("the mail does not begin with what matters most:\n%s", told.Text)
	}
}

// TestLinksToStripe have the path of the mode, and show what the finding is about
// before what its evidence names.
func TestLinksToStripe(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		live bool
		f    Finding
		want string
	}{
		{false, Finding{Subject: "payment/pi_123456"}, "https://dashboard.stripe.com/test/payments/pi_123456"},
		{true, Finding{Subject: "payment/pi_123456"}, "https://dashboard.stripe.com/payments/pi_123456"},
		{true, Finding{Subject: "event/evt_123456", Evidence: `{"payment": "pi_123456"}`}, "https://dashboard.stripe.com/events/evt_123456"},
		{true, Finding{Subject: "account/acme", RepairArgs: `{"invoice": "in_123456"}`, Evidence: `{"customer": "cus_123456"}`}, "https://dashboard.stripe.com/invoices/in_123456"},
		{true, Finding{Subject: "account/begin_123456", Evidence: `{"note": "mini_pi_1"}`}, ""},
	} {
		if got := New(Config{Livemode: tc.live}).stripeLink(tc.f); got != tc.want {
			t.Errorf("%+v links to %q, want %q", tc.f, got, tc.want)
		}
	}
}
