package stripesim_test

import (
	"fmt"
	"net/http"
	"testing"

	"tallystick/stripesim"
)

func TestInvoiceItemsAreRefused(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	product := b.make("/v1/products", "name=Work")
	monthly := b.make("/v1/prices", "currency=usd&unit_amount=5&product="+product+"&recurring[interval]=month")
	euros := b.make("/v1/prices", "currency=eur&unit_amount=5&product="+product)
	stale := b.make("/v1/prices", "currency=usd&unit_amount=5&active=false&product="+product)
	once := b.make("/v1/prices", "currency=usd&unit_amount=5&product="+product)
	other := b.make("/v1/customers", "")
	draft, open := b.draft(100, ""), b.open(100, "")
	item := b.must(http.MethodGet, "/v1/invoiceitems", "invoice="+open)["data"].([]any)[0].(map[string]any)["id"].(string)
	me := "customer=" + b.customer + "&"
	for _, row := range []struct {
		form, code, param, text string
	}{
		{"amount=5&currency=usd", "parameter_missing", "customer", "Missing required param: customer."},
		{me + "currency=usd", "parameter_missing", "amount", "Missing required param: amount."},
		{"customer=" + other + "&amount=5", "parameter_missing", "currency", "Missing required param: currency."},
		{me + "amount=x", "parameter_invalid_integer", "amount", "Invalid integer: x"},
		{me + "amount=5&unit_amount=5&currency=usd", "", "unit_amount", "You may only specify one of these parameters: amount, unit_amount."},
		{me + "amount=5&quantity=5&currency=usd", "", "quantity", "You may only specify one of these parameters: amount, quantity."},
		{me + "price=" + once + "&quantity=-1", "parameter_invalid_integer", "quantity", "This value must be greater than or equal to 0."},
		{me + "amount=1000000000000&currency=usd", "amount_too_large", "amount", "Amount must be no more than $9999999999.99"},
		{me + "unit_amount_decimal=0.5&quantity=2000000000000&currency=usd", "amount_too_large", "amount", "Amount must be no more than $9999999999.99"},
		{me + "price=" + once + "&quantity=9223372036854775807", "amount_too_large", "amount", "Amount must be no more than $9999999999.99"},
		{me + "unit_amount_decimal=0.1234567890123&currency=usd", "", "unit_amount_decimal", "Invalid decimal: 0.1234567890123; must contain at maximum twelve decimal places."},
		{me + "price=" + monthly, "", "price", "The price specified is set to `type=recurring` but this field only accepts prices with `type=one_time`."},
		{me + "price=" + stale, "", "price", "The price specified is inactive. This field only accepts active prices."},
		{me + "price=price_none", "resource_missing", "price", "No such price: 'price_none'"},
		{me + "amount=5&currency=usd&invoice=in_none", "resource_missing", "invoice", "No such invoice: 'in_none'"},
		{"customer=" + other + "&amount=5&currency=usd&invoice=" + draft, "resource_missing", "invoice", "No such invoice: '" + draft + "'"},
		{me + "amount=5&currency=usd&subscription=sub_none", "resource_missing", "subscription", "No such subscription: 'sub_none'"},
		{me + "amount=5&currency=usd&invoice=" + open, "invoice_not_editable", "invoice", "Invalid invoice: This invoice is no longer editable"},
		{me + "amount=5&currency=eur&invoice=" + draft, "", "currency", "The currency of the invoice item (eur) does not match that of its invoice (usd)."},
		{me + "price=" + euros + "&invoice=" + draft, "", "currency", "The currency of the invoice item (eur) does not match that of its invoice (usd)."},
		{me + "amount=5&currency=usd&period[start]=5", "parameter_missing", "period[end]", "Missing required param: period[end]."},
		{me + "amount=5&currency=usd&period[start]=5&period[end]=4", "", "period[end]", "The end of the period must not be before its start."},
	} {
		b.says(b.call(http.MethodPost, "/v1/invoiceitems", row.form), 400, row.code, row.param, row.text)
	}
	b.refused(b.call(http.MethodGet, "/v1/invoiceitems/ii_none", ""), 404, "invalid_request_error", "resource_missing", "id")
	b.refused(b.call(http.MethodPost, "/v1/invoiceitems/"+item, "amount=5"), 400, "invalid_request_error", "invoice_not_editable", "")
	b.refused(b.call(http.MethodDelete, "/v1/invoiceitems/"+item, ""), 400, "invalid_request_error", "invoice_not_editable", "")
	b.holds(b.invoice(draft), `{"total": 100}`)
}

func TestInvoiceItemsMakeTheirAmounts(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	product := b.make("/v1/products", "name=Work")
	price := b.make("/v1/prices", "currency=usd&unit_amount_decimal=0.25&product="+product)
	for _, row := range []struct{ form, want string }{
		{"amount=-700", `{"amount": -700, "quantity": 1, "unit_amount": -700, "unit_amount_decimal": "-700", "discountable": false, "currency": "usd"}`},
		{"amount=0", `{"amount": 0, "discountable": true}`},
		{"amount=999999999999", `{"amount": 999999999999}`},
		{"unit_amount=300&quantity=3", `{"amount": 900, "quantity": 3, "unit_amount": 300, "unit_amount_decimal": "300"}`},
		{"unit_amount_decimal=0.5&quantity=1", `{"amount": 1, "unit_amount": null, "unit_amount_decimal": "0.5"}`},
		{"unit_amount_decimal=0.499999999999&quantity=1", `{"amount": 0}`},
		{"unit_amount_decimal=-0.5&quantity=3", `{"amount": -2}`},
		{"unit_amount=300&quantity=0", `{"amount": 0, "quantity": 0}`},
		{"price=" + price + "&quantity=6", `{"amount": 2, "quantity": 6, "description": "Work"}`},
		{"price_data[currency]=USD&price_data[product]=" + product + "&price_data[unit_amount]=7&quantity=2", `{"amount": 14}`},
	} {
		b.holds(b.must(http.MethodPost, "/v1/invoiceitems", "currency=usd&customer="+b.customer+"&"+row.form), row.want)
	}
	pending := b.must(http.MethodGet, "/v1/invoiceitems", "pending=true&created[gte]=1&limit=100&customer="+b.customer)["data"].([]any)
	if len(pending) != 10 {
		t.Errorf("%d items wait, want 10", len(pending))
	}
}

func TestInvoiceItemsComeOntoInvoices(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	item := func(form string) string { return b.make("/v1/invoiceitems", "customer="+b.customer+"&"+form) }
	first, second, euros := item("amount=100&currency=usd"), item("amount=250"), item("amount=70&currency=eur")
	without := b.make("/v1/invoices", "customer="+b.customer)
	b.holds(b.invoice(without), `{"total": 0, "currency": "usd"}`)
	id := b.make("/v1/invoices", "customer="+b.customer+"&pending_invoice_items_behavior=include")
	third := item("amount=5&invoice=" + id)
	lines := b.must(http.MethodGet, "/v1/invoices/"+id+"/lines", "")["data"].([]any)
	for i, want := range []string{second, first, third} { // those that waited: the newest first
		b.holds(lines[i].(map[string]any), `{"invoice_item": "`+want+`", "type": "invoiceitem", "invoice": "`+id+`"}`)
	}
	b.holds(b.invoice(id), `{"total": 355}`)
	b.holds(b.must(http.MethodGet, "/v1/invoiceitems/"+first, ""), `{"invoice": "`+id+`"}`)
	b.holds(b.must(http.MethodGet, "/v1/invoiceitems/"+euros, ""), `{"invoice": null}`)
	b.must(http.MethodPost, "/v1/invoiceitems/"+first, "unit_amount=40&quantity=2&description=changed&metadata[a]=b")
	b.must(http.MethodDelete, "/v1/invoiceitems/"+third, "")
	b.holds(b.invoice(id), `{"total": 330, "amount_due": 330}`)
	line := b.must(http.MethodGet, "/v1/invoices/"+id+"/lines", "starting_after="+lines[0].(map[string]any)["id"].(string))["data"].([]any)[0].(map[string]any)
	b.holds(line, `{"amount": 80, "quantity": 2, "description": "changed", "metadata": {"a": "b"}}`)
	b.holds(b.must(http.MethodPost, "/v1/invoiceitems/"+first, "quantity=3"), `{"amount": 120, "quantity": 3}`)
	b.holds(b.invoice(id), `{"total": 370}`)
	b.wantRaised(third, "invoiceitem.created", "invoiceitem.deleted")
	b.wantRaised(first, "invoiceitem.created")
	abroad := b.make("/v1/invoices", "currency=EUR&pending_invoice_items_behavior=include&customer="+b.customer)
	b.holds(b.invoice(abroad), `{"total": 70, "currency": "eur"}`)
}

func TestAnInvoiceHoldsSoManyLines(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	id := b.make("/v1/invoices", "customer="+b.customer)
	form := fmt.Sprintf("customer=%s&invoice=%s&amount=1&currency=usd", b.customer, id)
	for range 250 {
		b.make("/v1/invoiceitems", form)
	}
	b.says(b.call(http.MethodPost, "/v1/invoiceitems", form), 400, "", "invoice", "You can add a maximum of 250 invoice items to an invoice.")
	b.holds(b.invoice(id), `{"total": 250}`)
}

func TestTheUpcomingInvoiceShowsWhatWaits(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	b.make("/v1/invoiceitems", "amount=800&currency=usd&customer="+b.customer)
	b.must(http.MethodPost, "/v1/customers/"+b.customer+"/balance_transactions", "amount=-300&currency=usd")
	upcoming := b.must(http.MethodGet, "/v1/invoices/upcoming", "customer="+b.customer)
	b.holds(upcoming, `{"total": 800, "amount_due": 500, "starting_balance": -300, "billing_reason": "upcoming", "status": "draft", "number": null}`)
	if _, has := upcoming["id"]; has {
		t.Error("an upcoming invoice has an id")
	}
	if found := b.must(http.MethodGet, "/v1/invoices", "")["data"].([]any); len(found) != 0 {
		t.Errorf("looking at it has made %d invoices", len(found))
	}
	b.holds(b.must(http.MethodGet, "/v1/customers/"+b.customer, ""), `{"balance": -300}`)
}
