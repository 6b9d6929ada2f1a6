package stripesim

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

func (s *Server) routeUpcoming() {
	upcoming := spec{"customer": "string", "subscription": "string", "currency": "string"}
	s.handle("GET /v1/invoices/upcoming", upcoming, s.upcomingInvoice)
	s.handle("GET /v1/invoices/upcoming/lines", listSpec(upcoming), func(c *call) (object, *apiError) {
		inv, err := s.upcomingInvoice(c)
		if err != nil {
			return nil, err
		}
		return page(c, c.r.URL.Path, "line_item", linesOf(inv))
	})
}

// upcomingInvoice is what the next invoice would be, were nothing to change. It is
// kept nowhere and has no id.
func (s *Server) upcomingInvoice(c *call) (object, *apiError) {
	sub := s.store.get("subscription", c.text("subscription"))
	customer := c.text("customer")
	switch {
	case customer == "" && c.text("subscription") == "":
		return nil, invalid("customer", "parameter_missing", "Missing required param: customer.")
	case c.text("subscription") != "" && (sub == nil || (customer != "" && text(sub, "customer") != customer)):
		return nil, missing("subscription", c.text("subscription"), "subscription")
	case customer == "":
		customer = text(sub, "customer")
	}
	o := s.store.get("customer", customer)
	if o == nil || flag(o, "deleted") {
		return nil, missing("customer", customer, "customer")
	}
	if sub == nil {
		sub = s.nextToRenew(customer)
	}
	d := invoiceDraft{customer: customer, subscription: text(sub, "id"), reason: "upcoming", currency: c.text("currency"), advance: true}
	if sub != nil && !slices.Contains(endedStatuses, text(sub, "status")) {
		d.lines = s.upcomingItems(sub)
		d.start, d.end = number(sub, "current_period_start"), number(sub, "current_period_end")
		if d.currency == "" {
			d.currency = text(sub, "currency")
		}
	}
	items := s.pendingItems(customer, d.subscription, s.invoiceCurrency(d, o))
	if len(d.lines) == 0 && len(items) == 0 {
		e := invalid("", "invoice_upcoming_none", "No upcoming invoices for customer: %s", customer)
		e.status = http.StatusNotFound
		return nil, e
	}
	var inv object
	s.onClockOf(o, func() { inv = s.previewInvoice(d, items) })
	return inv, nil
}

// endedStatuses are those of subscriptions that are billed no more.
var endedStatuses = []string{"canceled", "incomplete_expired", "incomplete", "paused"}

// nextToRenew gives the customer's subscription that is billed next.
func (s *Server) nextToRenew(customer string) (next object) {
	for _, sub := range s.store.shelf("subscription").with("customer", customer) {
		if slices.Contains(endedStatuses, text(sub, "status")) {
			continue
		}
		if next == nil || number(sub, "current_period_end") < number(next, "current_period_end") {
			next = sub
		}
	}
	return next
}

func (s *Server) previewInvoice(d invoiceDraft, items []object) object {
	if d.end == 0 {
		d.start, d.end = s.now(), s.now()
	}
	inv := s.newInvoice(d)
	lines := []any{}
	for _, item := range slices.Backward(items) {
		lines = append(lines, s.lineOfItem("", item))
	}
	for _, b := range slices.Backward(d.lines) {
		lines = append(lines, s.lineOfSubscription(inv, b))
	}
	for _, raw := range lines {
		line := raw.(object)
		line["invoice"] = nil
		line["id"] = strings.Replace(text(line, "id"), "il_", "il_tmp_", 1)
	}
	maps.Copy(inv, s.reckon(inv, lines))
	delete(inv, "id")
	child(inv, "lines")["url"] = "/v1/invoices/upcoming/lines?customer=" + d.customer
	inv["created"] = d.end
	if text(inv, "collection_method") == "charge_automatically" {
		inv["next_payment_attempt"] = d.end + switched(s.switches.InvoiceGraceSeconds, invoiceGrace)
	}
	return inv
}
