package stripesim_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"

	"tallystick/stripesim"
)

// paid makes a paid invoice of an amount.
func (b *billing) paid(amount int) string {
	b.t.Helper()
	id := b.draft(amount, "")
	b.holds(b.must(http.MethodPost, "/v1/invoices/"+id+"/pay", ""), fmt.Sprintf(`{"status": "paid", "amount_paid": %d}`, amount))
	return id
}

func TestCreditNotesAreRefused(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	draft, open, paid := b.draft(700, ""), b.open(700, ""), b.paid(700)
	elsewhere, other := b.open(700, ""), b.paid(700)
	b.must(http.MethodPost, "/v1/invoices/"+elsewhere+"/pay", "paid_out_of_band=true")
	line := b.invoice(paid)["lines"].(map[string]any)["data"].([]any)[0].(map[string]any)["id"].(string)
	refund := b.make("/v1/refunds", "amount=100&charge="+b.invoice(other)["charge"].(string))
	const of = "lines[0][type]=invoice_line_item&lines[0][invoice_line_item]="
	for _, row := range []struct {
		form, code, param, text string
	}{
		{"amount=5", "parameter_missing", "invoice", "Missing required param: invoice."},
		{"invoice=in_none&amount=5", "resource_missing", "invoice", "No such invoice: 'in_none'"},
		{"invoice=" + open, "parameter_missing", "amount", "One of the following params should be provided for this request: amount or lines."},
		{"invoice=" + open + "&amount=0", "parameter_invalid_integer", "amount", "This value must be greater than or equal to 1."},
		{"invoice=" + open + "&amount=5&reason=whim", "", "reason", "Invalid reason: must be one of duplicate, fraudulent, order_change, or product_unsatisfactory"},
		{"invoice=" + open + "&amount=5&lines[0][type]=custom_line_item", "", "lines", "You may only specify one of these parameters: amount, lines."},
		{"invoice=" + draft + "&amount=5", "", "invoice", "A credit note can only be created for an invoice that is open or paid. This invoice has a status of draft."},
		{"invoice=" + open + "&amount=701", "", "amount", "The credit note amount ($7.01) is greater than the amount remaining on the invoice ($7.00)."},
		{"invoice=" + open + "&amount=5&refund_amount=5", "", "refund_amount", "You can only specify `refund_amount` for a credit note of an invoice that is paid."},
		{"invoice=" + paid + "&amount=701&credit_amount=701", "", "amount", "The credit note amount ($7.01) is greater than the amount of the invoice that is not credited yet ($7.00)."},
		{"invoice=" + paid + "&amount=200", "", "", "The sum of credit amount, refund amount and out of band amount ($0.00) must equal the credit note amount ($2.00)."},
		{"invoice=" + paid + "&amount=200&refund_amount=100&credit_amount=50&out_of_band_amount=49", "", "", "The sum of credit amount, refund amount and out of band amount ($1.99) must equal the credit note amount ($2.00)."},
		{"invoice=" + paid + "&amount=200&refund_amount=201&credit_amount=-1", "parameter_invalid_integer", "credit_amount", "This value must be greater than or equal to 0."},
		{"invoice=" + paid + "&amount=200&refund=re_none", "resource_missing", "refund", "No such refund: 're_none'"},
		{"invoice=" + paid + "&amount=100&refund=" + refund, "", "refund", "The refund " + refund + " is not of the invoice's charge."},
		{"invoice=" + paid + "&amount=100&refund_amount=5&refund=" + refund, "", "refund", "You may only specify one of these parameters: refund, refund_amount."},
		{"invoice=" + elsewhere + "&amount=200&refund_amount=200", "", "refund_amount", "The invoice has no charge to refund: it was paid in another way."},
		{"invoice=" + other + "&amount=601&refund_amount=601", "", "refund_amount", "Refund amount ($6.01) is greater than unrefunded amount on charge ($6.00)"},
		{"invoice=" + paid + "&lines[0][type]=gift", "", "lines[0][type]", "Invalid lines[0][type]: must be one of custom_line_item or invoice_line_item"},
		{"invoice=" + paid + "&lines[0][type]=custom_line_item&lines[0][quantity]=1", "parameter_missing", "lines[0][description]", "Missing required param: lines[0][description]."},
		{"invoice=" + paid + "&lines[0][type]=custom_line_item&lines[0][quantity]=1&lines[0][description]=x", "parameter_missing", "lines[0][unit_amount]", "Missing required param: lines[0][unit_amount]."},
		{"invoice=" + paid + "&lines[0][type]=custom_line_item&lines[0][quantity]=0&lines[0][description]=x&lines[0][unit_amount]=5", "parameter_invalid_integer", "lines[0][quantity]", "This value must be greater than or equal to 1."},
		{"invoice=" + paid + "&" + of + "il_none", "resource_missing", "lines[0][invoice_line_item]", "No such line item: 'il_none'"},
		{"invoice=" + paid + "&" + of + line, "", "lines[0][amount]", "You must specify exactly one of these parameters: amount, quantity."},
		{"invoice=" + paid + "&" + of + line + "&lines[0][quantity]=2", "", "lines[0][quantity]", "The quantity to credit (2) must be at least 1 and at most that of the invoice line item (1)."},
		{"invoice=" + paid + "&" + of + line + "&lines[0][amount]=701", "", "lines[0][amount]", "The amount to credit ($7.01) must be positive and at most what is left of the invoice line item ($7.00)."},
	} {
		b.says(b.call(http.MethodPost, "/v1/credit_notes", row.form), 400, row.code, row.param, row.text)
		b.says(b.call(http.MethodGet, "/v1/credit_notes/preview", row.form), 400, row.code, row.param, row.text)
	}
	b.refused(b.call(http.MethodGet, "/v1/credit_notes/cn_none", ""), 404, "invalid_request_error", "resource_missing", "id")
	if found := b.must(http.MethodGet, "/v1/credit_notes", "")["data"].([]any); len(found) != 0 {
		t.Errorf("%d credit notes stand", len(found))
	}
	b.holds(b.invoice(paid), `{"post_payment_credit_notes_amount": 0}`)
	if found := b.must(http.MethodGet, "/v1/refunds", "")["data"].([]any); len(found) != 1 {
		t.Errorf("%d refunds stand, want the one", len(found))
	}
}

func TestACreditNoteLowersAnOpenInvoice(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	id := b.open(700, "")
	intent := b.invoice(id)["payment_intent"].(string)
	note := b.must(http.MethodPost, "/v1/credit_notes", "invoice="+id+"&amount=300&memo=sorry&reason=duplicate&metadata[a]=b")
	b.holds(note, `{"type": "pre_payment", "status": "issued", "total": 300, "refund": null, "customer_balance_transaction": null, "reason": "duplicate", "memo": "sorry",
		"number": "`+b.invoice(id)["number"].(string)+`-CN-01", "metadata": {"a": "b"}}`)
	b.holds(b.invoice(id), `{"status": "open", "total": 700, "amount_due": 400, "amount_remaining": 400, "pre_payment_credit_notes_amount": 300}`)
	b.holds(b.must(http.MethodGet, "/v1/payment_intents/"+intent, ""), `{"amount": 400}`)
	void := note["id"].(string)
	b.must(http.MethodPost, "/v1/credit_notes/"+void+"/void", "")
	b.holds(b.must(http.MethodGet, "/v1/credit_notes/"+void, ""), `{"status": "void"}`)
	b.holds(b.invoice(id), `{"amount_due": 700, "pre_payment_credit_notes_amount": 0}`)
	b.says(b.call(http.MethodPost, "/v1/credit_notes/"+void+"/void", ""), 400, "", "", "This credit note has already been voided.")
	b.wantRaised(void, "credit_note.created", "credit_note.voided")
	whole := b.must(http.MethodPost, "/v1/credit_notes", "invoice="+id+"&amount=700")["id"].(string)
	b.holds(b.invoice(id), `{"status": "paid", "amount_due": 0, "amount_paid": 0, "amount_remaining": 0, "charge": null}`)
	b.holds(b.must(http.MethodGet, "/v1/payment_intents/"+intent, ""), `{"status": "canceled"}`)
	b.refused(b.call(http.MethodPost, "/v1/credit_notes/"+whole+"/void", ""), 400, "invalid_request_error", "", "")

	left := b.open(700, "")
	b.must(http.MethodPost, "/v1/credit_notes", "invoice="+left+"&amount=650")
	b.holds(b.must(http.MethodPost, "/v1/invoices/"+left+"/pay", "expand[]=charge")["charge"].(map[string]any), `{"amount": 50}`)
	b.says(b.call(http.MethodPost, "/v1/credit_notes", "invoice="+left+"&amount=51&credit_amount=51"), 400, "", "amount",
		"The credit note amount ($0.51) is greater than the amount of the invoice that is not credited yet ($0.50).")
}

func TestACreditNoteGivesMoneyBack(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{RefundEvents: true})
	id := b.paid(700)
	charge := b.invoice(id)["charge"].(string)
	note := b.must(http.MethodPost, "/v1/credit_notes", "invoice="+id+"&amount=300&refund_amount=150&credit_amount=100&out_of_band_amount=50&expand[]=refund&expand[]=customer_balance_transaction")
	b.holds(note, `{"type": "post_payment", "out_of_band_amount": 50}`)
	refund := note["refund"].(map[string]any)
	b.holds(refund, `{"amount": 150, "charge": "`+charge+`", "status": "succeeded"}`)
	b.holds(note["customer_balance_transaction"].(map[string]any), `{"amount": -100, "type": "credit_note", "credit_note": "`+note["id"].(string)+`", "ending_balance": -100}`)
	b.holds(b.invoice(id), `{"status": "paid", "amount_due": 700, "amount_paid": 700, "post_payment_credit_notes_amount": 300}`)
	b.holds(b.must(http.MethodGet, "/v1/charges/"+charge, ""), `{"amount_refunded": 150, "refunded": false}`)
	if found := b.must(http.MethodGet, "/v1/refunds", "charge="+charge)["data"].([]any); len(found) != 1 {
		t.Errorf("the charge has %d refunds, want 1", len(found))
	}
	b.wantRaised(refund["id"].(string), "refund.created")
	if kinds, _ := b.raised(charge); !slices.Contains(kinds, "charge.refunded") {
		t.Errorf("the charge's events are %q", kinds)
	}
	b.says(b.call(http.MethodPost, "/v1/credit_notes/"+note["id"].(string)+"/void", ""), 400, "", "", "You can only void credit notes of open invoices. The invoice of this credit note isn't open.")

	earlier := b.make("/v1/refunds", "amount=200&charge="+charge)
	tied := b.must(http.MethodPost, "/v1/credit_notes", "invoice="+id+"&amount=250&credit_amount=50&refund="+earlier)
	b.holds(tied, `{"refund": "`+earlier+`"}`)
	b.says(b.call(http.MethodPost, "/v1/credit_notes", "invoice="+id+"&amount=100&refund="+earlier), 400, "", "refund",
		"The refund "+earlier+" is already linked to the credit note "+tied["id"].(string)+".")
	next := b.draft(700, "")
	b.holds(b.must(http.MethodPost, "/v1/invoices/"+next+"/finalize", ""), `{"starting_balance": -150, "amount_due": 550}`)
	b.must(http.MethodPost, "/v1/credit_notes/"+tied["id"].(string), "memo=x&metadata[a]=b")
	events := b.wantRaised(tied["id"].(string), "credit_note.created", "credit_note.updated")
	b.holds(events[1]["data"].(map[string]any)["previous_attributes"].(map[string]any), `{"memo": null, "metadata": {"a": null}}`)
	if found := b.must(http.MethodGet, "/v1/credit_notes", "invoice="+id+"&customer="+b.customer+"&created[gte]=1")["data"].([]any); len(found) != 2 {
		t.Errorf("%d credit notes are listed, want 2", len(found))
	}
}

func TestACreditNoteOfLines(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	id := b.make("/v1/invoices", "customer="+b.customer)
	b.make("/v1/invoiceitems", "currency=usd&unit_amount_decimal=33.5&quantity=3&customer="+b.customer+"&invoice="+id)
	b.must(http.MethodPost, "/v1/invoices/"+id+"/finalize", "")
	b.holds(b.invoice(id), `{"total": 101}`)
	line := b.invoice(id)["lines"].(map[string]any)["data"].([]any)[0].(map[string]any)["id"].(string)
	of := "invoice=" + id + "&lines[0][type]=invoice_line_item&lines[0][invoice_line_item]=" + line
	preview := b.must(http.MethodGet, "/v1/credit_notes/preview", of+"&lines[0][quantity]=3")
	b.holds(preview, `{"total": 101}`)
	note := b.must(http.MethodPost, "/v1/credit_notes", of+"&lines[0][quantity]=1&lines[1][type]=custom_line_item&lines[1][description]=gift&lines[1][quantity]=2&lines[1][unit_amount]=4")
	b.holds(note, `{"total": 42}`)
	lines := b.must(http.MethodGet, "/v1/credit_notes/"+note["id"].(string)+"/lines", "")["data"].([]any)
	b.holds(lines[0].(map[string]any), `{"amount": 34, "quantity": 1, "invoice_line_item": "`+line+`", "type": "invoice_line_item", "unit_amount_decimal": "33.5"}`)
	b.holds(lines[1].(map[string]any), `{"amount": 8, "quantity": 2, "description": "gift", "type": "custom_line_item", "unit_amount": 4}`)
	b.says(b.call(http.MethodPost, "/v1/credit_notes", of+"&lines[0][amount]=68"), 400, "", "lines[0][amount]",
		"The amount to credit ($0.68) must be positive and at most what is left of the invoice line item ($0.67).")
	b.says(b.call(http.MethodPost, "/v1/credit_notes", of+"&lines[0][amount]=67"), 400, "", "amount",
		"The credit note amount ($0.67) is greater than the amount remaining on the invoice ($0.59).")
	b.holds(b.must(http.MethodPost, "/v1/credit_notes", of+"&lines[0][amount]=59"), `{"total": 59}`)
	b.holds(b.invoice(id), `{"status": "paid", "pre_payment_credit_notes_amount": 101, "amount_due": 0}`)
}
