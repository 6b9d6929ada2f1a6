package stripesim_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// replayed are calls that succeed, each after its own set-up.
var replayed = []struct {
	setUp      func(*user) map[string]string
	path, form string
}{
	{plan("", ""), "/v1/subscription_items/$item/usage_records", "quantity=5"},
	{plan("", ""), "/v1/subscription_items/$item/usage_records", "quantity=5&action=set&timestamp=" + number(errorTime)},
	{plan("", "&billing_thresholds[amount_gte]=50"), "/v1/subscription_items/$item/usage_records", "quantity=500"},
	{plan("", ""), "/v1/subscriptions", "customer=$customer&items[0][price]=$price"},
	{plan("", ""), "/v1/subscriptions/$sub", "items[0][id]=$licensed&items[0][quantity]=3&proration_behavior=always_invoice"},
	{plan("", ""), "/v1/subscription_items", "subscription=$sub&price_data[currency]=usd&price_data[product]=$product&price_data[recurring][interval]=month&price_data[unit_amount]=5"},
	{plan("", ""), "/v1/subscription_items/$licensed", "quantity=2"},
	{plan("", ""), "/v1/test_helpers/test_clocks/$clock/advance", "frozen_time=" + number(monthEnd+7200)},
	{nil, "/v1/test_helpers/test_clocks", "frozen_time=" + number(errorTime)},
	{billed, "/v1/invoices", "customer=$customer"},
	{billed, "/v1/invoices/$invoice", "description=x"},
	{billed, "/v1/invoices/$invoice/finalize", ""},
	{then(billed, post, "/v1/invoices/$invoice/finalize", ""), "/v1/invoices/$invoice/pay", ""},
	{then(billed, post, "/v1/invoices/$invoice/finalize", ""), "/v1/invoices/$invoice/void", ""},
	{then(billed, post, "/v1/invoices/$invoice/finalize", ""), "/v1/invoices/$invoice/mark_uncollectible", ""},
	{billed, "/v1/invoiceitems", "customer=$customer&amount=5&currency=usd&invoice=$invoice"},
	{billed, "/v1/invoiceitems/$line", "amount=6"},
	{billed, "/v1/customers/$customer/balance_transactions", "amount=-50&currency=usd"},
	{then(billed, post, "/v1/invoices/$invoice/finalize", ""), "/v1/credit_notes", "invoice=$invoice&amount=50"},
	{then(then(billed, post, "/v1/invoices/$invoice/finalize", ""), post, "/v1/invoices/$invoice/pay", ""), "/v1/credit_notes", "invoice=$invoice&amount=50&refund_amount=50"},
	{after(then(billed, post, "/v1/invoices/$invoice/finalize", ""), "note", "/v1/credit_notes", "invoice=$invoice&amount=50"), "/v1/credit_notes/$note/void", ""},
	{disputed(), "/v1/disputes/$dispute", "evidence[uncategorized_text]=x"},
	{disputed(), "/v1/disputes/$dispute", "evidence[uncategorized_text]=winning_evidence&submit=true"},
	{disputed(), "/v1/disputes/$dispute/close", ""},
	{paidIntent, "/v1/refunds", "charge=$charge&amount=5"},
	{after(paidIntent, "refund", "/v1/refunds", "charge=$charge&amount=5&metadata[sim_status]=pending"), "/v1/refunds/$refund/cancel", ""},
	{after(paidIntent, "refund", "/v1/refunds", "charge=$charge&amount=5&metadata[sim_status]=requires_action"), "/v1/test_helpers/refunds/$refund/expire", ""},
	{nil, "/v1/charges", "amount=500&currency=usd&source=tok_visa"},
	{tokens, "/v1/billing/meter_events", "event_name=tokens&payload[stripe_customer_id]=$customer&payload[value]=7"},
	{then(tokens, post, "/v1/billing/meter_events", "event_name=tokens&identifier=once&payload[stripe_customer_id]=$customer&payload[value]=7"), "/v1/billing/meter_event_adjustments", "event_name=tokens&type=cancel&cancel[identifier]=once"},
	{tokens, "/v1/billing/meters/$meter/deactivate", ""},
	{nil, "/v1/webhook_endpoints", "url=https://example.com&enabled_events[]=*"},
	{after(made("customer", "/v1/customers", ""), "method", "/v1/payment_methods", "type=card&card[token]=tok_visa"), "/v1/payment_methods/$method/attach", "customer=$customer"},
}

// TestAReplayChangesNothing makes each call under a key, three times and once with
// other parameters: the answers are the same to the byte, and what the simulator
// holds, its usage and its totals included, is as it was after the first one.
func TestAReplayChangesNothing(t *testing.T) {
	t.Parallel()
	for _, row := range replayed {
		t.Run(strings.ReplaceAll(row.path, "/", " "), func(t *testing.T) {
			t.Parallel()
			u := newUser(t, stripesim.Options{Clock: &stillClock{now: time.Unix(errorTime, 0).UTC()}})
			all := map[string]string{}
			if row.setUp != nil {
				all = row.setUp(u)
			}
			path, form := filled(all, row.path), filled(all, row.form)
			untouched := counts(u)
			first := u.call(post, path, form, "Idempotency-Key", "once")
			if first.Status != 200 || first.Header.Get("Idempotent-Replayed") != "" {
				t.Fatalf("answered %d %s", first.Status, first.Raw)
			}
			before, held := counts(u), holdings(u, all)
			if maps.Equal(untouched, before) && !strings.Contains(path, "meter") && !strings.Contains(path, "usage_records") && !strings.Contains(path, "payment_methods") && !strings.Contains(path, "disputes") {
				t.Errorf("the call has changed nothing: %v", before)
			}
			for range 2 {
				again := u.call(post, path, form, "Idempotency-Key", "once")
				if again.Status != 200 || again.Raw != first.Raw || again.Header.Get("Idempotent-Replayed") != "true" {
					t.Errorf("the replay is answered %d %s, not %s", again.Status, again.Raw, first.Raw)
				}
			}
			u.refused(u.call(post, path, form+"&metadata[other]=x", "Idempotency-Key", "once"), 400, "idempotency_error", "", "")
			if after := counts(u); !maps.Equal(before, after) {
				t.Errorf("the replays have changed %v into %v", before, after)
			}
			if after := holdings(u, all); !maps.Equal(held, after) {
				t.Errorf("the replays have changed %v into %v", held, after)
			}
		})
	}
}

// holdings reads what was made, as it is now.
func holdings(u *user, all map[string]string) map[string]string {
	u.t.Helper()
	seen := map[string]string{}
	for name, path := range map[string]string{
		"item": "/v1/subscription_items/$item/usage_record_summaries", "sub": "/v1/subscriptions/$sub", "clock": "/v1/test_helpers/test_clocks/$clock", "invoice": "/v1/invoices/$invoice",
		"customer": "/v1/customers/$customer", "note": "/v1/credit_notes/$note", "charge": "/v1/charges/$charge", "dispute": "/v1/disputes/$dispute", "refund": "/v1/refunds/$refund",
		"meter": "/v1/billing/meters/$meter/event_summaries?customer=$customer&start_time=" + number(errorTime/60*60-600) + "&end_time=" + number(errorTime/60*60+600),
	} {
		if all[name] != "" {
			a := u.call(get, filled(all, path), "")
			if a.Status != 200 {
				u.t.Errorf("%s is answered %d %s", path, a.Status, a.Raw)
			}
			seen[name] = a.Raw
		}
	}
	seen["transactions"] = u.call(get, "/v1/balance_transactions", "limit=100").Raw
	return seen
}
