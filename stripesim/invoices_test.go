package stripesim_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// billing is a user who bills one customer.
type billing struct {
	*user
	customer string
}

func newBilling(t *testing.T, switches stripesim.Switches) *billing {
	t.Helper()
	b := &billing{user: newUser(t, stripesim.Options{Switches: switches})}
	b.customer = b.make("/v1/customers", "name=Acme&email=acme@example.com")
	return b
}

// draft makes a draft with one line of an amount.
func (b *billing) draft(amount int, form string) string {
	b.t.Helper()
	id := b.make("/v1/invoices", "customer="+b.customer+"&"+form)
	b.make("/v1/invoiceitems", fmt.Sprintf("customer=%s&invoice=%s&amount=%d&currency=usd", b.customer, id, amount))
	return id
}

// open makes a finalized invoice of an amount.
func (b *billing) open(amount int, form string) string {
	b.t.Helper()
	id := b.draft(amount, form)
	b.must(http.MethodPost, "/v1/invoices/"+id+"/finalize", "")
	return id
}

func (b *billing) invoice(id string) map[string]any {
	b.t.Helper()
	return b.must(http.MethodGet, "/v1/invoices/"+id, "")
}

// holds wants members of an object to be as the JSON says.
func (b *billing) holds(o map[string]any, want string) {
	b.t.Helper()
	var members map[string]any
	d := json.NewDecoder(strings.NewReader(want))
	d.UseNumber()
	if err := d.Decode(&members); err != nil {
		b.t.Fatal(err)
	}
	for name, v := range members {
		if got, wanted := fmt.Sprint(o[name]), fmt.Sprint(v); got != wanted {
			b.t.Errorf("%s is %s, want %s", name, got, wanted)
		}
	}
}

// raised gives the events that tell of an object, the oldest first.
func (b *billing) raised(id string) (kinds []string, events []map[string]any) {
	b.t.Helper()
	data := b.must(http.MethodGet, "/v1/events", "limit=100")["data"].([]any)
	for _, raw := range slices.Backward(data) {
		event := raw.(map[string]any)
		if event["data"].(map[string]any)["object"].(map[string]any)["id"] == id {
			kinds, events = append(kinds, event["type"].(string)), append(events, event)
		}
	}
	return kinds, events
}

func (b *billing) wantRaised(id string, want ...string) []map[string]any {
	b.t.Helper()
	kinds, events := b.raised(id)
	if !slices.Equal(kinds, want) {
		b.t.Errorf("the events of %s are %q, want %q", id, kinds, want)
	}
	return events
}

// says wants a refusal with exactly this message.
func (b *billing) says(a reply, status int, code, param, message string) {
	b.t.Helper()
	b.refused(a, status, "invalid_request_error", code, param)
	if e, _ := a.Body["error"].(map[string]any); e["message"] != message {
		b.t.Errorf("the message is %q, want %q", e["message"], message)
	}
}

func TestInvoicesAreRefusedAsStripeRefusesThem(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	other := b.make("/v1/customers", "")
	gone := b.make("/v1/customers", "")
	b.must(http.MethodDelete, "/v1/customers/"+gone, "")
	draft, open, paid := b.draft(100, ""), b.open(100, ""), b.open(100, "")
	b.must(http.MethodPost, "/v1/invoices/"+paid+"/pay", "")
	void, lost := b.open(100, ""), b.open(100, "")
	b.must(http.MethodPost, "/v1/invoices/"+void+"/void", "")
	b.must(http.MethodPost, "/v1/invoices/"+lost+"/mark_uncollectible", "")
	const notOpen = "You can only pass in open invoices. This invoice isn't open."
	const final = "Finalized invoices can't be updated in this way"
	const finalized = "This invoice is already finalized, you can't re-finalize a non-draft invoice."
	for _, row := range []struct {
		method, path, form string
		status             int
		code, param, text  string
	}{
		{"POST", "", "", 400, "parameter_missing", "customer", "Missing required param: customer."},
		{"POST", "", "customer=cus_none", 400, "resource_missing", "customer", "No such customer: 'cus_none'"},
		{"POST", "", "customer=" + gone, 400, "resource_missing", "customer", "No such customer: '" + gone + "'"},
		{"POST", "", "customer=" + other + "&colour=red", 400, "parameter_unknown", "colour", "Received unknown parameter: colour"},
		{"POST", "", "customer=" + other + "&subscription=sub_none", 400, "resource_missing", "subscription", "No such subscription: 'sub_none'"},
		{"POST", "", "customer=" + other + "&collection_method=send_invoice", 400, "", "", "If invoice collection method is 'send_invoice', you must specify 'due_date' or 'days_until_due'."},
		{"POST", "", "customer=" + other + "&days_until_due=3", 400, "", "", "You can only specify 'due_date' or 'days_until_due' if invoice collection method is 'send_invoice'."},
		{"POST", "", "customer=" + other + "&collection_method=send_invoice&days_until_due=3&due_date=9999999999", 400, "", "", "You may only specify one of these parameters: days_until_due, due_date."},
		{"POST", "", "customer=" + other + "&collection_method=beg", 400, "", "collection_method", "Invalid collection_method: must be one of charge_automatically or send_invoice"},
		{"POST", "", "customer=" + other + "&pending_invoice_items_behavior=some", 400, "", "pending_invoice_items_behavior", "Invalid pending_invoice_items_behavior: must be one of include or exclude"},
		{"GET", "", "status=late", 400, "", "status", "Invalid status: must be one of draft, open, void, paid, or uncollectible"},
		{"GET", "/in_none", "", 404, "resource_missing", "invoice", "No such invoice: 'in_none'"},
		{"GET", "/in_none/lines", "", 404, "resource_missing", "invoice", "No such invoice: 'in_none'"},
		{"DELETE", "/in_none", "", 404, "resource_missing", "invoice", "No such invoice: 'in_none'"},
		{"POST", "/in_none", "", 404, "resource_missing", "id", "No such invoice: 'in_none'"},
		{"POST", "/in_none/pay", "", 404, "resource_missing", "id", "No such invoice: 'in_none'"},
		{"POST", "/" + draft, "collection_method=send_invoice", 400, "", "", "If invoice collection method is 'send_invoice', you must specify 'due_date' or 'days_until_due'."},
		{"POST", "/" + open, "description=late", 400, "", "description", final},
		{"POST", "/" + paid, "footer=late", 400, "", "footer", final},
		{"POST", "/" + draft + "/void", "", 400, "", "", notOpen},
		{"POST", "/" + draft + "/mark_uncollectible", "", 400, "", "", notOpen},
		{"POST", "/" + draft + "/send", "", 400, "", "", "You can only manually send an invoice if its collection method is 'send_invoice'."},
		{"DELETE", "/" + open, "", 400, "", "", "You can only delete draft invoices."},
		{"POST", "/" + open + "/finalize", "", 400, "", "", finalized},
		{"POST", "/" + paid + "/finalize", "", 400, "", "", finalized},
		{"POST", "/" + paid + "/pay", "", 400, "", "", "Invoice is already paid"},
		{"POST", "/" + paid + "/void", "", 400, "", "", "Invoices with `paid` payments cannot be voided."},
		{"POST", "/" + paid + "/mark_uncollectible", "", 400, "", "", notOpen},
		{"POST", "/" + void + "/pay", "", 400, "", "", "Voided invoices cannot be paid."},
		{"POST", "/" + void + "/void", "", 400, "", "", notOpen},
		{"POST", "/" + lost + "/mark_uncollectible", "", 400, "", "", "This invoice has already been marked uncollectible."},
		{"GET", "/upcoming", "", 400, "parameter_missing", "customer", "Missing required param: customer."},
		{"GET", "/upcoming", "customer=cus_none", 400, "resource_missing", "customer", "No such customer: 'cus_none'"},
		{"GET", "/upcoming", "subscription=sub_none", 400, "resource_missing", "subscription", "No such subscription: 'sub_none'"},
		{"GET", "/upcoming/lines", "customer=" + other, 404, "invoice_upcoming_none", "", "No upcoming invoices for customer: " + other},
	} {
		b.says(b.call(row.method, "/v1/invoices"+row.path, row.form), row.status, row.code, row.param, row.text)
	}
	b.holds(b.invoice(draft), `{"status": "draft", "description": null}`)
	b.holds(b.invoice(open), `{"status": "open", "description": null}`)
}

func TestAnInvoiceLivesByHand(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	prefix := b.must(http.MethodGet, "/v1/customers/"+b.customer, "")["invoice_prefix"].(string)
	id := b.draft(2500, "description=Work&metadata[a]=b")
	b.holds(b.invoice(id), `{"status": "draft", "auto_advance": false, "number": null, "amount_due": 2500, "total": 2500, "attempted": false, "billing_reason": "manual",
		"ending_balance": null, "effective_at": null, "next_payment_attempt": null, "collection_method": "charge_automatically", "currency": "usd", "customer_name": "Acme",
		"customer_email": "acme@example.com", "payment_intent": null, "hosted_invoice_url": null, "description": "Work", "metadata": {"a": "b"}}`)
	b.must(http.MethodPost, "/v1/invoices/"+id+"/finalize", "")
	open := b.invoice(id)
	b.holds(open, `{"status": "open", "number": "`+prefix+`-0001", "amount_due": 2500, "amount_remaining": 2500, "attempted": false, "attempt_count": 0, "ending_balance": 0, "charge": null}`)
	intent := open["payment_intent"].(string)
	b.holds(b.must(http.MethodGet, "/v1/payment_intents/"+intent, ""), `{"amount": 2500, "status": "requires_payment_method", "invoice": "`+id+`"}`)

	a := b.call(http.MethodPost, "/v1/invoices/"+id+"/pay", "payment_method=pm_card_chargeDeclined")
	b.refused(a, http.StatusPaymentRequired, "card_error", "card_declined", "")
	b.holds(b.invoice(id), `{"status": "open", "attempted": true, "attempt_count": 1, "paid": false, "next_payment_attempt": null}`)
	paid := b.must(http.MethodPost, "/v1/invoices/"+id+"/pay", "expand[]=charge")
	b.holds(paid, `{"status": "paid", "paid": true, "amount_paid": 2500, "amount_remaining": 0, "attempt_count": 1, "payment_intent": "`+intent+`", "paid_out_of_band": false}`)
	b.holds(paid["charge"].(map[string]any), `{"amount": 2500, "paid": true, "invoice": "`+id+`"}`)
	if paid["status_transitions"].(map[string]any)["paid_at"] == nil {
		t.Error("a paid invoice does not say when")
	}
	events := b.wantRaised(id, "invoice.created", "invoice.updated", "invoice.finalized", "invoice.updated", "invoice.updated", "invoice.payment_failed",
		"invoice.updated", "invoice.paid", "invoice.payment_succeeded")
	previous := func(i int) map[string]any {
		p, _ := events[i]["data"].(map[string]any)["previous_attributes"].(map[string]any)
		return p
	}
	b.holds(previous(1), `{"total": 0, "subtotal": 0, "amount_due": 0}`)
	b.holds(previous(3), `{"status": "draft", "number": null}`)
	b.holds(previous(4), `{"attempted": false, "attempt_count": 0, "charge": null}`) // that of the card that was declined
	b.holds(previous(6), `{"status": "open", "paid": false, "amount_paid": 0, "amount_remaining": 2500}`)
	for _, i := range []int{0, 2, 5, 7, 8} {
		if previous(i) != nil {
			t.Errorf("%s has previous_attributes %v", events[i]["type"], previous(i))
		}
	}
	b.must(http.MethodPost, "/v1/invoices/"+id, "metadata[a]=&metadata[c]=d&auto_advance=true")
	b.holds(b.invoice(id), `{"metadata": {"c": "d"}, "auto_advance": false}`)
	second := b.draft(100, "")
	b.holds(b.must(http.MethodPost, "/v1/invoices/"+second+"/pay", ""), `{"status": "paid", "number": "`+prefix+`-0002", "amount_paid": 100, "attempt_count": 1}`)
}

func TestAnInvoiceEndsUnpaid(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	void := b.open(900, "")
	b.must(http.MethodPost, "/v1/invoices/"+void+"/void", "")
	o := b.invoice(void)
	b.holds(o, `{"status": "void", "paid": false, "auto_advance": false, "amount_due": 900}`)
	b.holds(b.must(http.MethodGet, "/v1/payment_intents/"+o["payment_intent"].(string), ""), `{"status": "canceled", "cancellation_reason": "void_invoice"}`)
	b.wantRaised(void, "invoice.created", "invoice.updated", "invoice.finalized", "invoice.updated", "invoice.updated", "invoice.voided")

	lost := b.open(900, "")
	b.must(http.MethodPost, "/v1/invoices/"+lost+"/mark_uncollectible", "")
	b.holds(b.invoice(lost), `{"status": "uncollectible", "amount_remaining": 900}`)
	b.holds(b.must(http.MethodPost, "/v1/invoices/"+lost+"/pay", ""), `{"status": "paid", "amount_paid": 900}`)

	elsewhere := b.open(900, "")
	b.holds(b.must(http.MethodPost, "/v1/invoices/"+elsewhere+"/pay", "paid_out_of_band=true"), `{"status": "paid", "paid_out_of_band": true, "attempted": false, "charge": null, "amount_paid": 900}`)
	if kinds, _ := b.raised(elsewhere); slices.Contains(kinds, "invoice.payment_succeeded") || !slices.Contains(kinds, "invoice.paid") {
		t.Errorf("the events of one paid out of band are %q", kinds)
	}

	gone := b.draft(900, "")
	item := b.must(http.MethodGet, "/v1/invoiceitems", "invoice="+gone)["data"].([]any)[0].(map[string]any)["id"].(string)
	b.holds(b.must(http.MethodDelete, "/v1/invoices/"+gone, ""), `{"id": "`+gone+`", "object": "invoice", "deleted": true}`)
	b.refused(b.call(http.MethodGet, "/v1/invoices/"+gone, ""), 404, "invalid_request_error", "resource_missing", "invoice")
	b.refused(b.call(http.MethodGet, "/v1/invoiceitems/"+item, ""), 404, "invalid_request_error", "resource_missing", "id")
	b.wantRaised(gone, "invoice.created", "invoice.updated", "invoice.deleted")
}

func TestAnInvoiceIsSent(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	id := b.draft(900, "collection_method=send_invoice&days_until_due=30")
	draft := b.invoice(id)
	created, _ := draft["created"].(json.Number).Int64()
	b.holds(draft, fmt.Sprintf(`{"due_date": %d}`, created+30*86400))
	b.holds(b.must(http.MethodPost, "/v1/invoices/"+id+"/send", ""), `{"status": "open", "attempted": false}`)
	if kinds, _ := b.raised(id); kinds[len(kinds)-1] != "invoice.sent" {
		t.Errorf("the events of a sent invoice are %q", kinds)
	}
	if found := b.must(http.MethodGet, "/v1/invoices", fmt.Sprintf("due_date[gte]=%d&collection_method=send_invoice&status=open", created+30*86400))["data"].([]any); len(found) != 1 {
		t.Errorf("%d invoices are due at that moment or later, want 1", len(found))
	}
	if found := b.must(http.MethodGet, "/v1/invoices", fmt.Sprintf("due_date[gt]=%d", created+30*86400))["data"].([]any); len(found) != 0 {
		t.Errorf("%d invoices are due later, want none", len(found))
	}
	intent := b.invoice(id)["payment_intent"].(string)
	b.must(http.MethodPost, "/v1/payment_intents/"+intent+"/confirm", "payment_method=pm_card_visa")
	b.holds(b.invoice(id), `{"status": "paid", "amount_paid": 900, "attempt_count": 1}`)
	b.says(b.call(http.MethodPost, "/v1/invoices/"+id+"/send", ""), 400, "", "", "This invoice cannot be sent right now. Please contact us via https://support.stripe.com/contact with details, so we can help.")
}

func TestAnInvoiceAdvancesByItself(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	id := b.draft(900, "auto_advance=true")
	o := b.invoice(id)
	created, _ := o["created"].(json.Number).Int64()
	b.holds(o, fmt.Sprintf(`{"next_payment_attempt": %d}`, created+3600))
	sent := b.draft(900, "auto_advance=true&collection_method=send_invoice&days_until_due=1")
	still := b.draft(900, "auto_advance=true")
	b.must(http.MethodPost, "/v1/invoices/"+still, "auto_advance=false")
	b.Advance(time.Duration(created+3590)*time.Second - time.Duration(b.Now().UnixNano()))
	b.holds(b.invoice(id), `{"status": "draft"}`)
	b.Advance(12 * time.Second)
	b.holds(b.invoice(id), `{"status": "paid", "attempt_count": 1, "next_payment_attempt": null}`)
	b.holds(b.invoice(id)["status_transitions"].(map[string]any), fmt.Sprintf(`{"finalized_at": %d, "paid_at": %d}`, created+3600, created+3600))
	b.holds(b.invoice(sent), `{"status": "open", "attempted": false}`)
	b.holds(b.invoice(still), `{"status": "draft", "next_payment_attempt": null}`)
	b.wantRaised(id, "invoice.created", "invoice.updated", "invoice.finalized", "invoice.updated", "invoice.updated", "invoice.paid", "invoice.payment_succeeded")
}

func TestAFailedPaymentIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{InvoiceGraceSeconds: -1, InvoiceRetries: 2, InvoiceRetrySeconds: 1000})
	id := b.draft(900, "auto_advance=false&default_payment_method=pm_card_chargeDeclined")
	b.must(http.MethodPost, "/v1/invoices/"+id, "auto_advance=true")
	b.Advance(time.Second)
	b.holds(b.invoice(id), `{"status": "open", "attempt_count": 1}`)
	if b.invoice(id)["next_payment_attempt"] == nil {
		t.Error("no further try is planned")
	}
	b.refused(b.call(http.MethodPost, "/v1/invoices/"+id+"/pay", ""), http.StatusPaymentRequired, "card_error", "card_declined", "")
	b.holds(b.invoice(id), `{"attempt_count": 1}`)
	b.Advance(1001 * time.Second)
	b.holds(b.invoice(id), `{"status": "open", "attempt_count": 2}`)
	b.Advance(1001 * time.Second)
	b.holds(b.invoice(id), `{"status": "open", "attempt_count": 3, "next_payment_attempt": null}`)
	b.Advance(100 * time.Hour)
	b.holds(b.invoice(id), `{"attempt_count": 3}`)
	b.must(http.MethodPost, "/v1/invoices/"+id, "default_payment_method=pm_card_visa")
	b.holds(b.must(http.MethodPost, "/v1/invoices/"+id+"/pay", ""), `{"status": "paid", "attempt_count": 3}`)
}

func TestAnInvoiceWaitsForItsWebhook(t *testing.T) {
	t.Parallel()
	for _, waits := range []bool{false, true} {
		b := newBilling(t, stripesim.Switches{InvoiceWaitsForWebhook: waits})
		b.make("/v1/webhook_endpoints", "url=http://127.0.0.1:1/none&enabled_events[]=invoice.created")
		id := b.draft(900, "auto_advance=true")
		b.holds(b.invoice(id), `{"webhooks_delivered_at": null}`)
		b.Advance(71 * time.Hour)
		b.holds(b.invoice(id), fmt.Sprintf(`{"status": %q}`, map[bool]string{false: "paid", true: "draft"}[waits]))
		b.Advance(time.Hour + time.Second)
		b.holds(b.invoice(id), `{"status": "paid"}`)
	}
}

func TestInvoicesSurviveARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := stripesim.NewServer(stripesim.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	post := func(s http.Handler, path, form string) map[string]any {
		t.Helper()
		w := newAnswer()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(form))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer sk_test_x")
		s.ServeHTTP(w, r)
		var body map[string]any
		if err := json.Unmarshal(w.body, &body); err != nil || w.status != http.StatusOK {
			t.Fatalf("%s was answered %d %s", path, w.status, w.body)
		}
		return body
	}
	customer := post(first, "/v1/customers", "balance=-100")["id"].(string)
	id := post(first, "/v1/invoices", "auto_advance=true&customer="+customer)["id"].(string)
	for range 12 {
		post(first, "/v1/invoiceitems", "amount=100&currency=usd&customer="+customer+"&invoice="+id)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	u := newUser(t, stripesim.Options{Dir: dir})
	b := &billing{user: u, customer: customer}
	b.holds(b.invoice(id), `{"status": "draft", "amount_due": 1100}`)
	b.Advance(2 * time.Hour)
	b.holds(b.invoice(id), `{"status": "paid", "total": 1200, "amount_paid": 1100, "starting_balance": -100, "ending_balance": 0}`)
	b.holds(b.invoice(id)["lines"].(map[string]any), `{"has_more": true}`)
	note := b.must(http.MethodPost, "/v1/credit_notes", "invoice="+id+"&amount=1200&credit_amount=100&refund_amount=1100")
	b.holds(note, `{"amount": 1200, "type": "post_payment"}`)
}

// answerTaker is a response writer that keeps what it gets.
type answerTaker struct {
	header http.Header
	status int
	body   []byte
}

func newAnswer() *answerTaker { return &answerTaker{header: http.Header{}, status: http.StatusOK} }

// Header is http.ResponseWriter.
func (w *answerTaker) Header() http.Header { return w.header }

// WriteHeader is http.ResponseWriter.
func (w *answerTaker) WriteHeader(status int) { w.status = status }

// Write is http.ResponseWriter.
func (w *answerTaker) Write(p []byte) (int, error) {
	w.body = append(w.body, p...)
	return len(p), nil
}
