package reconcile_test

import (
	"encoding/csv"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// TestOneMailTellsAllThatIsNew sends one mail about several findings: money and
// deadline first, the same facts in both parts, the findings as a file.
func TestOneMailTellsAllThatIsNew(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "lose", Times: 1})
	a.Use("usage-0002", 5)
	a.Pass(3 * time.Minute)
	a.lose()
	a.Buy(a.Price)
	a.Settled()
	a.vandalise("UPDATE accounts SET available = available + 2500000")
	if found := a.run(); len(found) != 3 {
		t.Fatalf("%d findings, want 3: %+v", len(found), found)
	}
	mails := a.awaitMails(1)
	if len(mails) != 1 {
		t.Fatalf("%d mails, want 1", len(mails))
	}
	m := mails[0]
	if m.Subject != "10.35 USD at risk: 3 billing mismatches" {
		t.Errorf("the subject is %q", m.Subject)
	}
	if !strings.HasPrefix(m.Text, "Approve the repairs before ") {
		t.Errorf("the mail does not begin with what to do by when:\n%s", m.Text)
	}
	at := func(money string) int { return strings.Index(m.Text, "\n"+money+" at risk (") }
	if at("10.00 USD") < 0 || at("10.00 USD") > at("0.25 USD") || at("0.25 USD") > at("0.10 USD") {
		t.Errorf("the dearest finding does not come first:\n%s", m.Text)
	}
	for _, f := range a.findings("") {
		for _, want := range []string{f.MoneyAtRisk.Text, f.Cause, f.Ours, f.Theirs, f.Difference, f.ID} {
			if !strings.Contains(m.Text, want) || !strings.Contains(m.HTML, strings.ReplaceAll(want, "+", "&#43;")) {
				t.Errorf("%q of %s is not in both parts", want, f.Cause)
			}
		}
	}
	attached := a.attachment(m.ID)
	rows, err := csv.NewReader(strings.NewReader(attached)).ReadAll()
	if err != nil || len(rows) != 4 || rows[1][9] != "10.00" {
		t.Errorf("the attached file is %q, %v", attached, err)
	}
}

// attachment reads a mail's first file from the catcher's pages.
func (a *audited) attachment(id string) string {
	a.t.Helper()
	r, err := http.NewRequestWithContext(a.t.Context(), http.MethodGet, a.Info.MailURL+"/mail/"+url.PathEscape(id)+"/attachments/findings.csv", nil)
	if err != nil {
		a.t.Fatal(err)
	}
	response := a.Do(r)
	if response.Status != http.StatusOK {
		a.t.Fatalf("the attachment was answered %d: %s", response.Status, response.Body)
	}
	return string(response.Body)
}

// TestHostileTextStaysText puts markup and formulas where callers may write.
func TestHostileTextStaysText(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.Want(http.StatusCreated, http.MethodPut, "/v1/accounts/@evil", `{"name": "<script>alert(1)</script>"}`, nil)
	a.Want(http.StatusUnprocessableEntity, http.MethodPut, "/v1/accounts/%3Cb%3E", `{}`, nil)
	session := a.Make("/v1/checkout/sessions", url.Values{
		"mode": {"payment"}, "client_reference_id": {"@evil"}, "success_url": {"https://example.com/thanks"},
		"line_items[0][price]": {a.Pack(url.Values{"metadata[credits]": {"<b>many</b>"}})},
	})
	if err := a.Sim.PayCheckout(session, "paid"); err != nil {
		t.Fatal(err)
	}
	a.Settled()
	a.one()
	m := a.awaitMails(1)[0]
	for _, bad := range []string{"<b>many", "<script"} {
		if strings.Contains(m.HTML, bad) {
			t.Errorf("the mail holds %s as markup", bad)
		}
	}
	if file := a.attachment(m.ID); strings.Contains(file, ",@") {
		t.Errorf("a cell begins with a formula: %s", file)
	}
}
