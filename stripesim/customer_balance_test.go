package stripesim_test

import (
	"net/http"
	"testing"

	"tallystick/stripesim"
)

func TestTheBalanceIsAppliedWhenAnInvoiceIsFinalized(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, balance string
		amount        int
		want, after   string
		kind          string
	}{
		{"a credit that suffices", "-1000", 700, `{"status": "paid", "amount_due": 0, "amount_paid": 0, "starting_balance": -1000, "ending_balance": -300, "attempted": true, "attempt_count": 0, "charge": null}`, `{"balance": -300}`, "applied_to_invoice"},
		{"a credit of just as much", "-700", 700, `{"status": "paid", "amount_due": 0, "ending_balance": 0}`, `{"balance": 0}`, "applied_to_invoice"},
		{"a credit that falls short", "-600", 700, `{"status": "open", "amount_due": 100, "ending_balance": 0}`, `{"balance": 0}`, "applied_to_invoice"},
		{"a debt", "250", 700, `{"status": "open", "total": 700, "amount_due": 950, "starting_balance": 250, "ending_balance": 0}`, `{"balance": 0}`, "applied_to_invoice"},
		{"less than a card can be charged", "-651", 700, `{"status": "paid", "amount_due": 0, "ending_balance": 49}`, `{"balance": 49}`, "invoice_too_small"},
		{"the least that a card can be charged", "-650", 700, `{"status": "open", "amount_due": 50, "ending_balance": 0}`, `{"balance": 0}`, "applied_to_invoice"},
		{"an invoice that gives money back", "-100", -700, `{"status": "paid", "total": -700, "amount_due": 0, "ending_balance": -800}`, `{"balance": -800}`, "applied_to_invoice"},
		{"nothing", "0", 0, `{"status": "paid", "total": 0, "ending_balance": 0}`, `{"balance": 0}`, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := newBilling(t, stripesim.Switches{})
			id := b.draft(row.amount, "")
			b.must(http.MethodPost, "/v1/customers/"+b.customer, "balance="+row.balance)
			b.holds(b.invoice(id), `{"starting_balance": `+row.balance+`, "ending_balance": null}`)
			b.must(http.MethodPost, "/v1/invoices/"+id+"/finalize", "")
			b.holds(b.invoice(id), row.want)
			b.holds(b.must(http.MethodGet, "/v1/customers/"+b.customer, ""), row.after)
			moves := b.must(http.MethodGet, "/v1/customers/"+b.customer+"/balance_transactions", "")["data"].([]any)
			if row.kind == "" {
				if len(moves) != 0 {
					t.Errorf("%d transactions, want none", len(moves))
				}
				return
			}
			b.holds(moves[0].(map[string]any), `{"type": "`+row.kind+`", "invoice": "`+id+`"}`)
		})
	}
}

func TestAVoidInvoiceGivesTheBalanceBack(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	b.must(http.MethodPost, "/v1/customers/"+b.customer+"/balance_transactions", "amount=-300&currency=usd")
	id := b.open(700, "")
	b.holds(b.must(http.MethodGet, "/v1/customers/"+b.customer, ""), `{"balance": 0, "currency": "usd"}`)
	b.must(http.MethodPost, "/v1/invoices/"+id+"/void", "")
	b.holds(b.must(http.MethodGet, "/v1/customers/"+b.customer, ""), `{"balance": -300}`)
	moves := b.must(http.MethodGet, "/v1/customers/"+b.customer+"/balance_transactions", "limit=2")
	b.holds(moves["data"].([]any)[0].(map[string]any), `{"type": "unapplied_from_invoice", "amount": -300, "ending_balance": -300, "invoice": "`+id+`"}`)
	b.holds(moves, `{"has_more": true}`)
	kinds, events := b.raised(b.customer)
	if last := kinds[len(kinds)-1]; last != "customer.updated" {
		t.Errorf("the last event is %s", last)
	}
	b.holds(events[len(events)-1]["data"].(map[string]any), `{"previous_attributes": {"balance": 0}}`)
}

func TestBalanceTransactionsAreRefusedAndKept(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	gone := b.make("/v1/customers", "")
	b.must(http.MethodDelete, "/v1/customers/"+gone, "")
	path := "/v1/customers/" + b.customer + "/balance_transactions"
	id := b.make(path, "amount=5&currency=USD&description=a&metadata[b]=c")
	b.says(b.call(http.MethodPost, path, "currency=usd"), 400, "parameter_missing", "amount", "Missing required param: amount.")
	b.says(b.call(http.MethodPost, path, "amount=5"), 400, "parameter_missing", "currency", "Missing required param: currency.")
	b.says(b.call(http.MethodPost, path, "amount=5&currency=eur"), 400, "", "currency", "The currency of the balance transaction (eur) must match the currency of the customer (usd).")
	b.says(b.call(http.MethodPost, "/v1/customers/"+gone+"/balance_transactions", "amount=5&currency=usd"), 404, "resource_missing", "customer", "No such customer: '"+gone+"'")
	b.refused(b.call(http.MethodGet, path+"/cbtxn_none", ""), 404, "invalid_request_error", "resource_missing", "id")
	other := b.make("/v1/customers", "")
	b.refused(b.call(http.MethodGet, "/v1/customers/"+other+"/balance_transactions/"+id, ""), 404, "invalid_request_error", "resource_missing", "id")
	b.must(http.MethodPost, path+"/"+id, "description=&metadata[d]=e")
	b.holds(b.must(http.MethodGet, path+"/"+id, ""), `{"amount": 5, "type": "adjustment", "description": null, "metadata": {"b": "c", "d": "e"}, "ending_balance": 5}`)
	if found := b.must(http.MethodGet, "/v1/customers/"+other+"/balance_transactions", "")["data"].([]any); len(found) != 0 {
		t.Errorf("another customer has %d of them", len(found))
	}
	born := b.make("/v1/customers", "balance=-40")
	b.holds(b.must(http.MethodGet, "/v1/customers/"+born+"/balance_transactions", "")["data"].([]any)[0].(map[string]any), `{"type": "initial", "amount": -40, "ending_balance": -40}`)
}

func TestTheBalanceStaysOutOfOtherCurrencies(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	b.must(http.MethodPost, "/v1/customers/"+b.customer+"/balance_transactions", "amount=-300&currency=usd")
	id := b.make("/v1/invoices", "currency=eur&customer="+b.customer)
	b.make("/v1/invoiceitems", "amount=700&customer="+b.customer+"&invoice="+id)
	b.must(http.MethodPost, "/v1/invoices/"+id+"/finalize", "")
	b.holds(b.invoice(id), `{"amount_due": 700, "starting_balance": 0, "ending_balance": 0, "currency": "eur"}`)
	b.holds(b.must(http.MethodGet, "/v1/customers/"+b.customer, ""), `{"balance": -300}`)
}
