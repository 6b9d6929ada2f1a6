package stripesim

import (
	"testing"
	"time"
)

// subscribed makes a server with one active subscription.
func subscribed(t *testing.T, w Switches) (s *Server, sub object) {
	t.Helper()
	s, err := NewServer(Options{Switches: w})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	s.mu.Lock()
	defer s.mu.Unlock()
	product := s.makeProduct(nil, params{object{"name": "Gold"}})
	price, failed := s.makePrice(nil, params{object{"currency": "usd", "unit_amount": int64(1000), "product": product["id"], "recurring": object{"interval": "month"}}})
	if failed != nil {
		t.Fatal(failed)
	}
	customer := s.newCustomer()
	s.store.put("customer", customer)
	sub, failed = s.makeSubscription(nil, params{object{"items": []any{object{"price": price["id"]}}}}, customer, false)
	if failed != nil {
		t.Fatal(failed)
	}
	return s, sub
}

// lastTold gives the last event of a type.
func lastTold(s *Server, kind string) object {
	var last object
	for e := range s.store.shelf("event").all {
		if text(e, "type") == kind {
			last = e
		}
	}
	return last
}

func TestASubscriptionFollowsThePaymentOfItsInvoices(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, before string
		paid         bool
		invoice      object // over a new one, tried for the first time
		last         string // the switch
		want         string
	}{
		{"the first is paid", "incomplete", true, object{}, "", "active"},
		{"the first fails", "incomplete", false, object{}, "", "incomplete"},
		{"a renewal fails", "active", false, object{"next_payment_attempt": int64(9)}, "", "past_due"},
		{"it fails again", "past_due", false, object{"attempt_count": int64(2), "next_payment_attempt": int64(9)}, "canceled", "past_due"},
		{"the only try fails", "active", false, object{}, "canceled", "past_due"},
		{"the last try fails", "past_due", false, object{"attempt_count": int64(4)}, "", "past_due"},
		{"the last try fails, unpaid", "past_due", false, object{"attempt_count": int64(4)}, "unpaid", "unpaid"},
		{"the last try fails, canceled", "past_due", false, object{"attempt_count": int64(4)}, "canceled", "canceled"},
		{"paid late", "past_due", true, object{}, "", "active"},
		{"paid very late", "unpaid", true, object{}, "", "active"},
		{"nothing was due in a trial", "trialing", true, object{}, "", "trialing"},
		{"an old one fails", "active", false, object{"created": int64(1)}, "", "active"},
		{"paid after the end", "canceled", true, object{}, "", "canceled"},
		{"of another subscription", "past_due", true, object{"subscription": "sub_none"}, "", "past_due"},
	} {
		s, sub := subscribed(t, Switches{AfterLastTry: tc.last})
		s.mu.Lock()
		s.change("subscription", sub, object{"status": tc.before})
		invoice := object{"id": "in_x", "subscription": sub["id"], "created": s.now() + 1, "attempt_count": int64(1), "next_payment_attempt": nil}
		for name, v := range tc.invoice {
			invoice[name] = v
		}
		count := len(s.store.shelf("event").byID)
		s.subscriptionPaid(nil, invoice, tc.paid)
		if text(sub, "status") != tc.want {
			t.Errorf("%s: it is %v, want %s", tc.name, sub["status"], tc.want)
		}
		e := lastTold(s, "customer.subscription.updated")
		switch raised := len(s.store.shelf("event").byID) - count; {
		case tc.want == tc.before && raised != 0:
			t.Errorf("%s: %d events for nothing", tc.name, raised)
		case tc.want == "canceled" && tc.before != "canceled":
			if text(child(sub, "cancellation_details"), "reason") != "payment_failed" || lastTold(s, "customer.subscription.deleted") == nil {
				t.Errorf("%s: it ended as %v", tc.name, sub["cancellation_details"])
			}
		case tc.want != tc.before && text(child(child(e, "data"), "previous_attributes"), "status") != tc.before:
			t.Errorf("%s: it is told as %v", tc.name, e)
		}
		s.mu.Unlock()
	}
}

func TestAnIncompleteSubscriptionExpires(t *testing.T) {
	t.Parallel()
	s, sub := subscribed(t, Switches{})
	s.mu.Lock()
	s.change("subscription", sub, object{"status": "incomplete"})
	s.keepSubscription(sub)
	s.mu.Unlock()
	s.Advance(23*time.Hour - 2*time.Second)
	if text(sub, "status") != "incomplete" {
		t.Fatalf("before its time it is %v", sub["status"])
	}
	s.Advance(3 * time.Second)
	s.mu.Lock()
	defer s.mu.Unlock()
	if text(sub, "status") != "incomplete_expired" || number(sub, "ended_at") != number(sub, "created")+23*3600 {
		t.Errorf("it is %v, ended %v", sub["status"], sub["ended_at"])
	}
	if e := lastTold(s, "customer.subscription.updated"); text(child(child(e, "data"), "previous_attributes"), "status") != "incomplete" {
		t.Errorf("it is told as %v", e)
	}
}

func TestTheUpcomingInvoiceIsKnown(t *testing.T) {
	t.Parallel()
	s, sub := subscribed(t, Switches{})
	s.mu.Lock()
	defer s.mu.Unlock()
	price, err := s.makePrice(nil, params{object{
		"currency": "usd", "unit_amount": int64(5), "product": text(s.store.get("price", text(s.itemsOf(sub)[0], "price")), "product"),
		"recurring": object{"interval": "month", "usage_type": "metered"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.keepItem(nil, sub, itemPlan{price: price, metadata: object{}})
	item := s.itemsOf(sub)[1]
	s.logUsage(&usageRecord{Item: text(item, "id"), At: s.now(), Quantity: 7, Received: s.clock.Now()})
	lines := s.upcomingItems(sub)
	if len(lines) != 2 || lines[0].start != number(sub, "current_period_end") || lines[0].end <= lines[0].start || lines[1].quantity.Num().Int64() != 7 {
		t.Errorf("the lines are %+v", lines)
	}
	s.change("subscription", sub, object{"cancel_at_period_end": true, "cancel_at": sub["current_period_end"]})
	if lines = s.upcomingItems(sub); len(lines) != 1 || lines[0].end != number(sub, "current_period_end") {
		t.Errorf("before its end the lines are %+v", lines)
	}
	s.change("subscription", sub, object{"status": "canceled"})
	if lines = s.upcomingItems(sub); len(lines) != 0 {
		t.Errorf("after its end the lines are %+v", lines)
	}
}
