package stripesim_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestASubscriptionEndsAtItsTime(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sub := s.subscribe("items[0][price]=" + s.price("") + "&items[1][price]=" + s.price(legacyMetered))
	path := "/v1/subscriptions/" + idIn(sub)
	s.refused(s.call(http.MethodPost, path, fmt.Sprint("cancel_at_period_end=true&cancel_at=", opened.Unix()+9)), 400, "invalid_request_error", "", "cancel_at")
	ending := s.must(http.MethodPost, path, "cancel_at_period_end=true")
	if ending["cancel_at_period_end"] != true || dayIn(ending["cancel_at"]) != "240229" || ending["canceled_at"] == nil || ending["status"] != "active" {
		t.Errorf("it is to end as %v", ending)
	}
	if reason := ending["cancellation_details"].(map[string]any)["reason"]; reason != "cancellation_requested" {
		t.Errorf("the reason is %v", reason)
	}
	back := s.must(http.MethodPost, path, "cancel_at_period_end=false")
	if back["cancel_at"] != nil || back["canceled_at"] != nil || back["cancel_at_period_end"] != false {
		t.Errorf("taken back it is %v", back)
	}
	s.must(http.MethodPost, path, "cancel_at_period_end=true")
	s.make("/v1/subscription_items/"+idIn(itemsIn(sub)[1])+"/usage_records", "quantity=2")
	s.advance(opened.AddDate(0, 0, 40))
	over := s.sub(idIn(sub))
	if over["status"] != "canceled" || dayIn(over["ended_at"]) != "240229" || dayIn(over["current_period_end"]) != "240229" {
		t.Errorf("it ended as %v at %v", over["status"], dayIn(over["ended_at"]))
	}
	made := s.invoices()
	if got := billedAs(made[len(made)-1]); got != "subscription_cycle 2000: 2000 of 240131 to 240229" {
		t.Errorf("the last invoice is %s", got)
	}
	if deleted := s.events("customer.subscription.deleted"); len(deleted) != 1 || deleted[0]["previous_attributes"] != nil {
		t.Errorf("its end is told as %v", deleted)
	}
	s.refused(s.call(http.MethodPost, path, "cancel_at_period_end=false"), 400, "invalid_request_error", "", "")
	s.must(http.MethodPost, path, "metadata[why]=over")
	s.refused(s.call(http.MethodDelete, path, ""), 404, "invalid_request_error", "resource_missing", "id")
	s.refused(s.call(http.MethodPost, "/v1/subscription_items/"+idIn(itemsIn(sub)[1])+"/usage_records", "quantity=2"), 400, "invalid_request_error", "", "")
	s.refused(s.call(http.MethodPost, "/v1/subscription_items/"+idIn(itemsIn(sub)[0]), "quantity=2"), 400, "invalid_request_error", "", "")
}

func TestACancelledSubscriptionBillsItsUsageOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		form, want string
		invoices   int
	}{
		{"", "subscription_create 1000: 0 of 240131 to 240131, 1000 of 240131 to 240229", 1},
		{"invoice_now=true", "subscription_update 2000: 2000 of 240131 to 240215", 2},
		{"invoice_now=true&prorate=true", "subscription_update 1500: -500 of 240215 to 240229, 2000 of 240131 to 240215", 2},
	} {
		s := newShop(t)
		sub := s.subscribe("items[0][price]=" + s.price("") + "&items[1][price]=" + s.price(legacyMetered))
		item := idIn(itemsIn(sub)[1])
		s.make("/v1/subscription_items/"+item+"/usage_records", "quantity=2")
		s.advance(opened.Add(29 * 12 * time.Hour))
		over := s.must(http.MethodDelete, "/v1/subscriptions/"+idIn(sub), tc.form+"&cancellation_details[comment]=dear")
		if over["status"] != "canceled" || over["cancellation_details"].(map[string]any)["comment"] != "dear" {
			t.Errorf("%q leaves %v", tc.form, over)
		}
		made := s.invoices()
		if got := billedAs(made[len(made)-1]); got != tc.want || len(made) != tc.invoices {
			t.Errorf("%q gives %d invoices, the last %s; want %s", tc.form, len(made), got, tc.want)
		}
		rows := s.must(http.MethodGet, "/v1/subscription_items/"+item+"/usage_record_summaries", "")["data"].([]any)
		row := rows[0].(map[string]any)
		if billed := row["invoice"] != nil; len(rows) != 1 || wholeIn(row["total_usage"]) != 2 || billed != (tc.form != "") {
			t.Errorf("%q leaves the usage %v", tc.form, rows)
		}
		s.advance(s.now.AddDate(0, 1, 0))
		if len(s.invoices()) != tc.invoices {
			t.Errorf("%q: it is billed after its end", tc.form)
		}
	}
}

func TestACustomersEndIsThatOfItsSubscriptions(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sub := s.subscribe("items[0][price]=" + s.price(""))
	s.must(http.MethodDelete, "/v1/customers/"+sub["customer"].(string), "")
	if now := s.sub(idIn(sub)); now["status"] != "canceled" || wholeIn(now["ended_at"]) != opened.Unix() {
		t.Errorf("it is %v at %v", now["status"], now["ended_at"])
	}
	if n := len(s.events("customer.subscription.deleted")); n != 1 {
		t.Errorf("%d deletions are told", n)
	}
}

func TestSubscriptionsAreListed(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	month, week := s.price(""), s.price("recurring[interval]=week")
	alone := s.make("/v1/customers", "")
	live := s.make("/v1/subscriptions", "customer="+alone+"&items[0][price]="+month)
	trial := s.make("/v1/subscriptions", "customer="+alone+"&trial_period_days=5&items[0][price]="+week)
	over := s.make("/v1/subscriptions", "customer="+alone+"&items[0][price]="+month)
	s.must(http.MethodDelete, "/v1/subscriptions/"+over, "")
	clocked := s.subscribe("items[0][price]=" + month)
	names := strings.NewReplacer(live, "live", trial, "trial", over, "over", idIn(clocked), "clocked")
	end := wholeIn(s.sub(live)["current_period_end"])
	for form, want := range map[string]string{
		"":                           "[trial live]",
		"status=all":                 "[over trial live]",
		"status=canceled":            "[over]",
		"status=ended":               "[over]",
		"status=trialing":            "[trial]",
		"status=active":              "[live]",
		"customer=cus_none":          "[]",
		"price=" + week:              "[trial]",
		"status=all&price=" + month:  "[over live]",
		"test_clock=" + s.clock:      "[clocked]",
		"collection_method=x":        "[]",
		"limit=1":                    "[trial]",
		"starting_after=" + trial:    "[live]",
		"ending_before=" + live:      "[trial]",
		"created[gt]=9999999999":     "[]",
		"customer=" + alone:          "[trial live]",
		"current_period_start[gt]=0": "[trial live]",
		"current_period_end[gte]=" + fmt.Sprint(end):         "[live]",
		"current_period_end[gt]=" + fmt.Sprint(end):          "[]",
		"customer=" + clocked["customer"].(string):           "[clocked]",
		"current_period_end[lt]=" + fmt.Sprint(end-20*86400): "[trial]",
	} {
		var ids []string
		for _, o := range s.must(http.MethodGet, "/v1/subscriptions", form)["data"].([]any) {
			ids = append(ids, names.Replace(idIn(o.(map[string]any))))
		}
		if got := fmt.Sprint(ids); got != want {
			t.Errorf("%q gives %s, want %s", form, got, want)
		}
	}
}

func TestSubscriptionItemsHaveTheirOwnEndpoints(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sub := s.subscribe("items[0][price]=" + s.price(""))
	metered := s.price(legacyMetered)
	s.refused(s.call(http.MethodPost, "/v1/subscription_items", "price="+metered), 400, "invalid_request_error", "parameter_missing", "subscription")
	s.refused(s.call(http.MethodPost, "/v1/subscription_items", "subscription=sub_none&price="+metered), 400, "invalid_request_error", "resource_missing", "subscription")
	s.refused(s.call(http.MethodPost, "/v1/subscription_items", "subscription="+idIn(sub)+"&price="+metered+"&quantity=1"), 400, "invalid_request_error", "", "quantity")
	s.refused(s.call(http.MethodPost, "/v1/subscription_items", "subscription="+idIn(sub)+"&price=price_none"), 400, "invalid_request_error", "resource_missing", "price")
	s.refused(s.call(http.MethodDelete, "/v1/subscription_items/"+idIn(itemsIn(sub)[0]), ""), 400, "invalid_request_error", "", "items")
	s.refused(s.call(http.MethodDelete, "/v1/subscription_items/"+idIn(itemsIn(sub)[0]), "clear_usage=true"), 400, "invalid_request_error", "", "clear_usage")
	s.refused(s.call(http.MethodGet, "/v1/subscription_items/si_none", ""), 404, "invalid_request_error", "resource_missing", "item")
	s.refused(s.call(http.MethodGet, "/v1/subscription_items", ""), 400, "invalid_request_error", "parameter_missing", "subscription")

	item := s.make("/v1/subscription_items", "subscription="+idIn(sub)+"&metadata[a]=b&price="+metered)
	s.make("/v1/subscription_items/"+item+"/usage_records", "quantity=2")
	a := s.call(http.MethodDelete, "/v1/subscription_items/"+item, "")
	s.refused(a, 400, "invalid_request_error", "", "clear_usage")
	if !strings.Contains(a.Raw, "all related usage records must be cleared too by setting clear_usage=true") {
		t.Errorf("the refusal is %s", a.Raw)
	}
	listed := s.must(http.MethodGet, "/v1/subscription_items", "subscription="+idIn(sub))["data"].([]any)
	if len(listed) != 2 || listed[0].(map[string]any)["id"] != item {
		t.Errorf("the items are %v", listed)
	}
	s.must(http.MethodPost, "/v1/subscription_items/"+item, "metadata[a]=c")
	gone := s.must(http.MethodDelete, "/v1/subscription_items/"+item, "clear_usage=true")
	if gone["deleted"] != true || gone["object"] != "subscription_item" || len(itemsIn(s.sub(idIn(sub)))) != 1 {
		t.Errorf("deletion gives %v", gone)
	}
	s.refused(s.call(http.MethodGet, "/v1/subscription_items/"+item+"/usage_record_summaries", ""), 404, "invalid_request_error", "resource_missing", "subscription_item")
	if counts := s.State().Counts; counts["usage_record_summary"] != 0 {
		t.Errorf("%d summaries stay", counts["usage_record_summary"])
	}
	if n := len(s.events("customer.subscription.updated")); n != 3 {
		t.Errorf("%d updates are told, want one for each change", n)
	}
}

func TestASubscriptionWithInlinePrices(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sub := s.subscribe("items[0][price_data][currency]=usd&items[0][price_data][unit_amount]=700&items[0][price_data][recurring][interval]=week&items[0][price_data][product]=" + s.product)
	price := itemsIn(sub)[0]["price"].(map[string]any)
	if price["active"] != false || wholeIn(price["unit_amount"]) != 700 || dayIn(sub["current_period_end"]) != "240207" {
		t.Errorf("the price is %v until %s", price, dayIn(sub["current_period_end"]))
	}
}

func TestInvoicesWaitWhileCollectionIsPaused(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sub := s.subscribe("items[0][price]=" + s.price(""))
	path := "/v1/subscriptions/" + idIn(sub)
	s.refused(s.call(http.MethodPost, path, "pause_collection[behavior]=odd"), 400, "invalid_request_error", "", "pause_collection[behavior]")
	s.refused(s.call(http.MethodPost, path, fmt.Sprint("pause_collection[behavior]=void&pause_collection[resumes_at]=", opened.Unix())), 400, "invalid_request_error", "", "pause_collection[resumes_at]")
	resumes := opened.AddDate(0, 0, 35)
	s.must(http.MethodPost, path, fmt.Sprint("pause_collection[behavior]=keep_as_draft&pause_collection[resumes_at]=", resumes.Unix()))
	s.advance(opened.AddDate(0, 0, 30))
	made := s.invoices()
	if last := made[len(made)-1]; len(made) != 2 || last["auto_advance"] != false {
		t.Errorf("while it is paused %d invoices are made, the last to be finalized by itself: %v", len(made), last["auto_advance"])
	}
	s.advance(resumes)
	if pause := s.sub(idIn(sub))["pause_collection"]; pause != nil {
		t.Errorf("it is still paused: %v", pause)
	}
}
