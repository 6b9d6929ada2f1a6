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

// shop is a simulator with a product to subscribe to and a test clock.
type shop struct {
	*user
	product string
	clock   string
	now     time.Time
}

// opened is when the clocks of the shops begin.
var opened = time.Date(2024, time.January, 31, 12, 0, 0, 0, time.UTC)

func newShop(t testing.TB, o ...stripesim.Options) *shop {
	t.Helper()
	u := newUser(t, o...)
	return &shop{user: u, now: opened, product: u.make("/v1/products", "name=Gold"), clock: u.make("/v1/test_helpers/test_clocks", fmt.Sprintf("frozen_time=%d", opened.Unix()))}
}

// price makes a monthly price in dollars; form says more, or other.
func (s *shop) price(form string) string {
	s.t.Helper()
	for name, value := range map[string]string{"currency": "usd", "unit_amount": "1000", "recurring[interval]": "month"} {
		if !strings.Contains(form, name) && (name != "unit_amount" || !strings.Contains(form, "tiers")) {
			form += "&" + name + "=" + value
		}
	}
	return s.make("/v1/prices", strings.TrimPrefix(form, "&")+"&product="+s.product)
}

const legacyMetered = "recurring[usage_type]=metered"

func (s *shop) customer() string {
	s.t.Helper()
	return s.make("/v1/customers", "test_clock="+s.clock)
}

// subscribe makes a subscription on the shop's clock.
func (s *shop) subscribe(form string) map[string]any {
	s.t.Helper()
	return s.must(http.MethodPost, "/v1/subscriptions", "customer="+s.customer()+"&"+form)
}

// advance moves the clock, in steps that it takes.
func (s *shop) advance(to time.Time) {
	s.t.Helper()
	s.must(http.MethodPost, "/v1/test_helpers/test_clocks/"+s.clock+"/advance", fmt.Sprintf("frozen_time=%d", to.Unix()))
	s.now = to
}

func (s *shop) sub(id string) map[string]any {
	s.t.Helper()
	return s.must(http.MethodGet, "/v1/subscriptions/"+id, "")
}

// events gives what was raised of a type, the oldest first.
func (s *shop) events(kind string) []map[string]any {
	s.t.Helper()
	var all []map[string]any
	for _, e := range s.must(http.MethodGet, "/v1/events", "limit=100&type="+kind)["data"].([]any) {
		all = append(all, e.(map[string]any)["data"].(map[string]any))
	}
	slices.Reverse(all)
	return all
}

// invoices gives the invoices as they were made, the oldest first.
func (s *shop) invoices() []map[string]any {
	s.t.Helper()
	var all []map[string]any
	for _, e := range s.events("invoice.created") {
		all = append(all, e["object"].(map[string]any))
	}
	return all
}

// billedAs gives reason, total and lines of an invoice as one text.
func billedAs(invoice map[string]any) string {
	text := fmt.Sprint(invoice["billing_reason"], " ", invoice["total"])
	var each []string
	for _, raw := range invoice["lines"].(map[string]any)["data"].([]any) {
		line := raw.(map[string]any)
		period := line["period"].(map[string]any)
		each = append(each, fmt.Sprintf("%v of %s to %s", line["amount"], dayIn(period["start"]), dayIn(period["end"])))
	}
	slices.Sort(each)
	return text + ": " + strings.Join(each, ", ")
}

func dayIn(v any) string {
	return time.Unix(wholeIn(v), 0).UTC().Format("060102")
}

func wholeIn(v any) int64 {
	n, _ := v.(json.Number).Int64()
	return n
}

func itemsIn(sub map[string]any) []map[string]any {
	var all []map[string]any
	for _, item := range sub["items"].(map[string]any)["data"].([]any) {
		all = append(all, item.(map[string]any))
	}
	return all
}

func idIn(o map[string]any) string { return o["id"].(string) }

func TestSubscriptionsAreRefused(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	month, year, euro := s.price(""), s.price("recurring[interval]=year"), s.price("currency=eur")
	metered, once := s.price(legacyMetered), s.make("/v1/prices", "currency=usd&unit_amount=1&product="+s.product)
	old := s.price("")
	s.must(http.MethodPost, "/v1/prices/"+old, "active=false")
	customer, gone := s.customer(), s.make("/v1/customers", "")
	s.must(http.MethodDelete, "/v1/customers/"+gone, "")
	past, now := opened.Unix()-1, opened.Unix()
	item := "&items[0][price]=" + month
	for _, tc := range []struct {
		form        string
		status      int
		code, param string
		message     string
	}{
		{"items[0][price]=" + month, 400, "parameter_missing", "customer", "Missing required param: customer."},
		{"customer=cus_none" + item, 400, "resource_missing", "customer", "No such customer: 'cus_none'"},
		{"customer=" + gone + item, 400, "resource_missing", "customer", "No such customer"},
		{"customer=" + customer, 400, "parameter_missing", "items", "Missing required param: items."},
		{"customer=" + customer + "&items[0][quantity]=1", 400, "parameter_missing", "items[0][price]", "Missing required param: items[0][price]."},
		{"customer=" + customer + "&items[0][price]=price_none", 400, "resource_missing", "items[0][price]", "No such price: 'price_none'"},
		{"customer=" + customer + "&items[0][price]=" + old, 400, "", "items[0][price]", "The price specified is inactive."},
		{"customer=" + customer + "&items[0][price]=" + once, 400, "", "items[0][price]", "only accepts prices with `type=recurring`."},
		{"customer=" + customer + item + "&items[1][price]=" + year, 400, "", "items", "Found mismatch in interval field."},
		{"customer=" + customer + item + "&items[1][price]=" + euro, 400, "", "items", "Found mismatch in currency field."},
		{"customer=" + customer + item + "&items[1][price]=" + month, 400, "", "items", "Cannot add multiple subscription items with the same plan"},
		{"customer=" + customer + item + "&items[0][quantity]=-1", 400, "parameter_invalid_integer", "items[0][quantity]", "greater than or equal to 0"},
		{"customer=" + customer + "&items[0][price]=" + metered + "&items[0][quantity]=1", 400, "", "items[0][quantity]", "You cannot set the quantity for metered plans"},
		{"customer=" + customer + item + "&items[0][billing_thresholds][usage_gte]=1", 400, "", "items[0][billing_thresholds][usage_gte]", "usage_type=metered"},
		{"customer=" + customer + "&items[0][price_data][currency]=usd&items[0][price_data][product]=" + s.product, 400, "parameter_missing", "items[0][price_data][recurring]", "Missing"},
		{"customer=" + customer + "&items[0][price_data][recurring][interval]=month&items[0][price_data][product]=" + s.product, 400, "parameter_missing", "items[0][price_data][currency]", "Missing"},
		{"customer=" + customer + item + "&currency=eur", 400, "", "currency", "only supports `usd`"},
		{"customer=" + customer + item + fmt.Sprint("&trial_end=", now), 400, "", "trial_end", "in the future"},
		{"customer=" + customer + item + "&trial_end=soon", 400, "parameter_invalid_integer", "trial_end", "Invalid integer: soon"},
		{"customer=" + customer + item + "&trial_period_days=731", 400, "parameter_invalid_integer", "trial_period_days", "between 1 and 730"},
		{"customer=" + customer + item + fmt.Sprint("&trial_period_days=7&trial_end=", now+9), 400, "", "trial_period_days", "only specify one"},
		{"customer=" + customer + item + fmt.Sprint("&cancel_at=", past), 400, "", "cancel_at", "in the future"},
		{"customer=" + customer + item + fmt.Sprint("&billing_cycle_anchor=", now+40*86400), 400, "", "billing_cycle_anchor", "cannot be later than next natural billing date"},
		{"customer=" + customer + item + "&collection_method=barter", 400, "", "collection_method", "must be one of"},
		{"customer=" + customer + item + "&collection_method=send_invoice", 400, "parameter_missing", "days_until_due", "days_until_due"},
		{"customer=" + customer + item + "&days_until_due=3", 400, "", "days_until_due", "send_invoice"},
		{"customer=" + customer + item + "&proration_behavior=odd", 400, "", "proration_behavior", "must be one of"},
		{"customer=" + customer + item + "&payment_behavior=odd", 400, "", "payment_behavior", "must be one of"},
		{"customer=" + customer + item + "&billing_thresholds[amount_gte]=0", 400, "parameter_invalid_integer", "billing_thresholds[amount_gte]", "greater than or equal to 1"},
		{"customer=" + customer + item + "&colour=red", 400, "parameter_unknown", "colour", "Received unknown parameter: colour"},
	} {
		a := s.call(http.MethodPost, "/v1/subscriptions", tc.form)
		s.refused(a, tc.status, "invalid_request_error", tc.code, tc.param)
		if message := fmt.Sprint(a.Body["error"].(map[string]any)["message"]); !strings.Contains(message, tc.message) {
			t.Errorf("%s is refused with %q, want %q", tc.form, message, tc.message)
		}
	}
	if counts := s.State().Counts; counts["subscription"]+counts["subscription_item"]+counts["invoice"] != 0 {
		t.Errorf("what was refused has left %v", counts)
	}
	s.refused(s.call(http.MethodGet, "/v1/subscriptions/sub_none", ""), 404, "invalid_request_error", "resource_missing", "id")
	s.refused(s.call(http.MethodGet, "/v1/subscriptions", "status=odd"), 400, "invalid_request_error", "", "status")
}

func TestACustomerKeepsItsCurrency(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sub := s.subscribe("items[0][price]=" + s.price(""))
	customer := sub["customer"].(string)
	if got := s.must(http.MethodGet, "/v1/customers/"+customer, "")["currency"]; got != "usd" {
		t.Errorf("the customer's currency is %v", got)
	}
	a := s.call(http.MethodPost, "/v1/subscriptions", "customer="+customer+"&items[0][price]="+s.price("currency=eur"))
	s.refused(a, 400, "invalid_request_error", "", "")
}

func TestASubscriptionIsBilledInAdvanceAndRenewed(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sub := s.subscribe("items[0][price]=" + s.price("") + "&items[0][quantity]=3&items[1][price]=" + s.price(legacyMetered) + "&metadata[plan]=gold&metadata[empty]=")
	if sub["status"] != "active" || sub["currency"] != "usd" || sub["test_clock"] != s.clock || fmt.Sprint(sub["metadata"]) != "map[plan:gold]" {
		t.Errorf("the subscription is %v", sub)
	}
	if _, has := itemsIn(sub)[1]["quantity"]; has || wholeIn(itemsIn(sub)[0]["quantity"]) != 3 {
		t.Errorf("the items are %v", itemsIn(sub))
	}
	var ends []string
	for _, to := range []time.Time{opened.AddDate(0, 0, 40), opened.AddDate(0, 0, 62), opened.AddDate(0, 0, 95)} {
		s.advance(to)
		ends = append(ends, dayIn(s.sub(idIn(sub))["current_period_end"]))
	}
	if got := strings.Join(ends, " "); got != "240331 240430 240531" {
		t.Errorf("the periods end at %s, want the last days of the months", got)
	}
	var billed []string
	for _, invoice := range s.invoices() {
		billed = append(billed, billedAs(invoice))
	}
	want := []string{
		"subscription_create 3000: 0 of 240131 to 240131, 3000 of 240131 to 240229",
		"subscription_cycle 3000: 0 of 240131 to 240229, 3000 of 240229 to 240331",
		"subscription_cycle 3000: 0 of 240229 to 240331, 3000 of 240331 to 240430",
		"subscription_cycle 3000: 0 of 240331 to 240430, 3000 of 240430 to 240531",
	}
	if !slices.Equal(billed, want) {
		t.Errorf("the invoices are\n%s\nwant\n%s", strings.Join(billed, "\n"), strings.Join(want, "\n"))
	}
	updated := s.events("customer.subscription.updated")
	previous := updated[0]["previous_attributes"].(map[string]any)
	if len(updated) != 3 || dayIn(previous["current_period_end"]) != "240229" || dayIn(previous["current_period_start"]) != "240131" || previous["latest_invoice"] == nil || len(previous) != 3 {
		t.Errorf("%d updates, the first with %v", len(updated), previous)
	}
	if created := s.events("customer.subscription.created"); len(created) != 1 || created[0]["object"].(map[string]any)["status"] != "active" {
		t.Errorf("creation is told as %v", created)
	}
}

func TestATrialIsAnnouncedAndEnds(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sub := s.subscribe("trial_period_days=10&items[0][price]=" + s.price(""))
	if sub["status"] != "trialing" || dayIn(sub["trial_end"]) != "240210" || dayIn(sub["billing_cycle_anchor"]) != "240210" || dayIn(sub["current_period_end"]) != "240210" {
		t.Fatalf("the subscription is %v", sub)
	}
	s.advance(opened.AddDate(0, 0, 7).Add(-time.Second))
	if n := len(s.events("customer.subscription.trial_will_end")); n != 0 {
		t.Errorf("%d notices come early", n)
	}
	s.advance(opened.AddDate(0, 0, 7))
	s.advance(opened.AddDate(0, 0, 9))
	if n := len(s.events("customer.subscription.trial_will_end")); n != 1 {
		t.Errorf("%d notices, want one", n)
	}
	s.advance(opened.AddDate(0, 0, 10))
	if now := s.sub(idIn(sub)); now["status"] != "active" || dayIn(now["current_period_end"]) != "240310" {
		t.Errorf("after the trial it is %v until %v", now["status"], dayIn(now["current_period_end"]))
	}
	made := s.invoices()
	if len(made) != 2 || billedAs(made[0]) != "subscription_create 0: 0 of 240131 to 240210" || billedAs(made[1]) != "subscription_cycle 1000: 1000 of 240210 to 240310" {
		t.Errorf("the invoices are %s and %s", billedAs(made[0]), billedAs(made[len(made)-1]))
	}
	short := s.subscribe("trial_period_days=2&items[0][price]=" + s.price(""))
	if n := len(s.events("customer.subscription.trial_will_end")); n != 2 {
		t.Errorf("a trial of two days gives %d notices in all, want one at once", n)
	}
	s.must(http.MethodPost, "/v1/subscriptions/"+idIn(short), "trial_end=now")
	if now := s.sub(idIn(short)); now["status"] != "active" || dayIn(now["current_period_start"]) != "240210" {
		t.Errorf("a trial that is ended leaves it %v from %v", now["status"], dayIn(now["current_period_start"]))
	}
}

func TestAnAnchorMakesAShortFirstPeriod(t *testing.T) {
	t.Parallel()
	for behavior, want := range map[string]string{
		"create_prorations": "subscription_create 323: 323 of 240131 to 240210", // 10 days of a month that began on 10 January
		"none":              "subscription_create 0: 0 of 240131 to 240210",
	} {
		s := newShop(t)
		anchor := opened.AddDate(0, 0, 10).Unix()
		sub := s.subscribe(fmt.Sprintf("billing_cycle_anchor=%d&proration_behavior=%s&items[0][price]=%s", anchor, behavior, s.price("")))
		if got := billedAs(s.invoices()[0]); got != want || wholeIn(sub["current_period_end"]) != anchor {
			t.Errorf("%s: %s, want %s", behavior, got, want)
		}
		s.advance(time.Unix(anchor, 0))
		if got := billedAs(s.invoices()[1]); got != "subscription_cycle 1000: 1000 of 240210 to 240310" {
			t.Errorf("%s: then %s", behavior, got)
		}
	}
}

func TestItemsChangeWithAndWithoutProrations(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	silver, gold := s.price(""), s.price("unit_amount=3000")
	sub := s.subscribe("items[0][quantity]=2&items[0][price]=" + silver)
	item := idIn(itemsIn(sub)[0])
	half := opened.Add(29 * 12 * time.Hour) // of the 29 days to 29 February
	s.advance(half)
	s.must(http.MethodPost, "/v1/subscriptions/"+idIn(sub), "proration_behavior=none&items[0][quantity]=4&items[0][id]="+item)
	if n := len(s.events("invoiceitem.created")); n != 0 {
		t.Errorf("%d prorations, want none", n)
	}
	updated := s.must(http.MethodPost, "/v1/subscriptions/"+idIn(sub), "items[0][id]="+item+"&items[0][price]="+gold+"&items[0][quantity]=1")
	if got := itemsIn(updated)[0]; got["id"] != item || got["price"].(map[string]any)["id"] != gold || wholeIn(got["quantity"]) != 1 {
		t.Errorf("the item is %v", got)
	}
	var prorated []string
	for _, e := range s.events("invoiceitem.created") {
		o := e["object"].(map[string]any)
		prorated = append(prorated, fmt.Sprint(o["amount"], " ", o["quantity"], " ", o["proration"], " ", o["description"]))
	}
	want := []string{"-2000 4 true Unused time on 4 × Gold after 15 Feb 2024", "1500 1 true Remaining time on Gold after 15 Feb 2024"}
	if !slices.Equal(prorated, want) {
		t.Errorf("the prorations are %q, want %q", prorated, want)
	}
	last := s.events("customer.subscription.updated")
	previous, _ := last[len(last)-1]["previous_attributes"].(map[string]any)
	before := previous["items"].(map[string]any)["data"].([]any)[0].(map[string]any)
	if before["price"].(map[string]any)["id"] != silver || wholeIn(before["quantity"]) != 4 || len(previous) != 1 {
		t.Errorf("the previous attributes are %v", previous)
	}
	s.advance(opened.AddDate(0, 0, 30))
	made := s.invoices()
	if got := billedAs(made[len(made)-1]); got != "subscription_cycle 2500: -2000 of 240215 to 240229, 1500 of 240215 to 240229, 3000 of 240229 to 240331" {
		t.Errorf("the next invoice is %s", got)
	}
	s.must(http.MethodPost, "/v1/subscriptions/"+idIn(sub), "proration_behavior=always_invoice&items[0][quantity]=2&items[0][id]="+item)
	made = s.invoices()
	if got := billedAs(made[len(made)-1]); !strings.HasPrefix(got, "subscription_update ") {
		t.Errorf("an update that is to be billed at once gives %s", got)
	}
}

func TestAnotherIntervalBeginsANewPeriod(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sub := s.subscribe("items[0][price]=" + s.price(""))
	s.advance(opened.Add(29 * 12 * time.Hour))
	now := s.must(http.MethodPost, "/v1/subscriptions/"+idIn(sub), "items[0][id]="+idIn(itemsIn(sub)[0])+"&items[0][price]="+s.price("recurring[interval]=year&unit_amount=9000"))
	if dayIn(now["current_period_end"]) != "250215" || dayIn(now["billing_cycle_anchor"]) != "240215" {
		t.Errorf("the new period ends %s, anchored at %s", dayIn(now["current_period_end"]), dayIn(now["billing_cycle_anchor"]))
	}
	made := s.invoices()
	if got := billedAs(made[len(made)-1]); got != "subscription_update 8500: -500 of 240215 to 240229, 9000 of 240215 to 250215" {
		t.Errorf("it is billed as %s", got)
	}
	again := s.must(http.MethodPost, "/v1/subscriptions/"+idIn(sub), "billing_cycle_anchor=now&proration_behavior=none")
	if dayIn(again["current_period_start"]) != "240215" || len(s.invoices()) != len(made)+1 {
		t.Errorf("the anchor moves to %s with %d invoices", dayIn(again["current_period_start"]), len(s.invoices()))
	}
}
