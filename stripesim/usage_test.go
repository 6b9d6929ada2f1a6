package stripesim_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// meteredShop is a shop with one subscription to a metered price.
func meteredShop(t *testing.T, price string, o ...stripesim.Options) (s *shop, item string) {
	t.Helper()
	s = newShop(t, o...)
	sub := s.subscribe("items[0][price]=" + s.price(legacyMetered+price))
	return s, idIn(itemsIn(sub)[0])
}

// report sends usage for a time.
func (s *shop) report(item, form string, at time.Time) reply {
	s.t.Helper()
	return s.call(http.MethodPost, "/v1/subscription_items/"+item+"/usage_records", fmt.Sprintf("%s&timestamp=%d", form, at.Unix()))
}

func (s *shop) reported(item, form string, at time.Time) {
	s.t.Helper()
	if a := s.report(item, form, at); a.Status != http.StatusOK {
		s.t.Fatalf("%s at %s was answered %d: %s", form, at, a.Status, a.Raw)
	}
}

// totals gives the periods of an item, the newest first: total and whether it is billed.
func (s *shop) totals(item string) string {
	s.t.Helper()
	var all []string
	for _, raw := range s.must(http.MethodGet, "/v1/subscription_items/"+item+"/usage_record_summaries", "")["data"].([]any) {
		row := raw.(map[string]any)
		text := fmt.Sprint(row["total_usage"])
		if row["invoice"] != nil {
			text += " billed"
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

func TestUsageRecordsAreRefused(t *testing.T) {
	t.Parallel()
	s, item := meteredShop(t, "")
	meter := s.make("/v1/billing/meters", "display_name=Calls&event_name=calls&default_aggregation[formula]=sum")
	other := s.subscribe("items[0][price]=" + s.price("") + "&items[1][price]=" + s.price(legacyMetered+"&recurring[meter]="+meter))
	licensed, metered := idIn(itemsIn(other)[0]), idIn(itemsIn(other)[1])
	now := opened.Unix()
	for _, tc := range []struct {
		item, form, code, param, message string
		status                           int
	}{
		{"si_none", "quantity=1", "resource_missing", "subscription_item", "No such subscription_item: 'si_none'", 404},
		{item, "action=set", "parameter_missing", "quantity", "Missing required param: quantity.", 400},
		{item, "quantity=1.5", "parameter_invalid_integer", "quantity", "Invalid integer: 1.5", 400},
		{item, "quantity=-1", "parameter_invalid_integer", "quantity", "greater than or equal to 0", 400},
		{item, "quantity=1&action=add", "", "action", "must be one of increment, set", 400},
		{item, "quantity=1&timestamp=soon", "parameter_invalid_integer", "timestamp", "Invalid integer: soon", 400},
		{item, fmt.Sprint("quantity=1&timestamp=", now+1), "", "timestamp", "must not be in the future", 400},
		{
			item, fmt.Sprint("quantity=1&timestamp=", now-1), "", "timestamp",
			"Cannot create the usage record with this timestamp because timestamps must be after the subscription's last invoice period (or current period start time).", 400,
		},
		{licensed, "quantity=1", "", "", "its price is not metered", 400},
		{metered, "quantity=1", "", "", "because it is not on the legacy metered billing system. Call /v1/billing/meter_events instead.", 400},
		{item, "quantity=1&customer=x", "parameter_unknown", "customer", "Received unknown parameter: customer", 400},
	} {
		a := s.call(http.MethodPost, "/v1/subscription_items/"+tc.item+"/usage_records", tc.form)
		s.refused(a, tc.status, "invalid_request_error", tc.code, tc.param)
		if !strings.Contains(a.Raw, tc.message) {
			t.Errorf("%s is refused with %s, want %q", tc.form, a.Raw, tc.message)
		}
	}
	if got := s.totals(item); got != "0" {
		t.Errorf("what was refused makes %s", got)
	}
	s.refused(s.call(http.MethodGet, "/v1/subscription_items/"+licensed+"/usage_record_summaries", ""), 400, "invalid_request_error", "", "")
	if a := s.call(http.MethodGet, "/v1/subscription_items/"+item+"/usage_records", ""); a.Status == http.StatusOK {
		t.Error("usage records can be listed")
	}
}

func TestUsageRecordsMakeAQuantity(t *testing.T) {
	t.Parallel()
	type record struct {
		after int // minutes
		form  string
	}
	records := []record{{5, "quantity=7"}, {5, "quantity=3"}, {9, "quantity=4&action=set"}, {9, "quantity=2&action=set"}, {7, "quantity=1"}, {9, "quantity=6"}, {8, "quantity=0&action=set"}}
	for how, want := range map[string]string{
		"sum":                "7, 10, 14, 12, 13, 19, 19",
		"max":                "7, 10, 10, 10, 10, 10, 10",
		"last_during_period": "7, 10, 4, 2, 2, 8, 8",
		"last_ever":          "7, 10, 4, 2, 2, 8, 8",
	} {
		s, item := meteredShop(t, "&recurring[aggregate_usage]="+how)
		s.advance(opened.Add(10 * time.Minute))
		var got []string
		for _, r := range records {
			s.reported(item, r.form, opened.Add(time.Duration(r.after)*time.Minute))
			got = append(got, s.totals(item))
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s makes %s, want %s", how, strings.Join(got, ", "), want)
		}
		s.advance(opened.AddDate(0, 0, 30))
		next := map[string]string{"last_ever": "8, 8 billed"}[how]
		if next == "" {
			next = "0, " + want[strings.LastIndex(want, " ")+1:] + " billed"
		}
		if got := s.totals(item); got != next {
			t.Errorf("%s: in the next period the summaries are %s, want %s", how, got, next)
		}
		made := s.invoices()
		if got := billedAs(made[len(made)-1]); !strings.HasPrefix(got, "subscription_cycle "+want[strings.LastIndex(want, " ")+1:]+"000: ") {
			t.Errorf("%s is billed as %s", how, got)
		}
	}
}

func TestUsageOfTheEdgesOfAPeriod(t *testing.T) {
	t.Parallel()
	edge := time.Date(2024, time.February, 29, 12, 0, 0, 0, time.UTC)
	s, item := meteredShop(t, "")
	s.reported(item, "quantity=1", opened) // the first period holds its first second
	s.advance(edge.Add(-time.Second))
	s.reported(item, "quantity=2", s.now)
	s.advance(edge)
	s.reported(item, "quantity=4&action=set", edge) // now is the present, whatever is over
	s.advance(edge.Add(time.Second))
	s.reported(item, "quantity=8", s.now)
	if got := s.totals(item); got != "12, 3 billed" {
		t.Errorf("the periods hold %s", got)
	}
	s.reported(item, "quantity=16", edge) // no longer the present: it is the last second of the period before
	if got := s.totals(item); got != "12, 19 billed" {
		t.Errorf("with usage of the edge the periods hold %s", got)
	}
	row := s.must(http.MethodGet, "/v1/subscription_items/"+item+"/usage_record_summaries", "limit=1")
	open := row["data"].([]any)[0].(map[string]any)
	if period := open["period"].(map[string]any); row["has_more"] != true || wholeIn(period["start"]) != edge.Unix() || dayIn(period["end"]) != "240331" || open["invoice"] != nil {
		t.Errorf("the open period is %v", open)
	}
	older := s.must(http.MethodGet, "/v1/subscription_items/"+item+"/usage_record_summaries", "starting_after="+idIn(open))
	if rows := older["data"].([]any); len(rows) != 1 || older["has_more"] != false || wholeIn(rows[0].(map[string]any)["total_usage"]) != 19 {
		t.Errorf("the page after it is %v", older)
	}
}

func TestASlowClockIsForgivenForSumsOnly(t *testing.T) {
	t.Parallel()
	edge := time.Date(2024, time.February, 29, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		how     string
		grace   int64
		late    time.Duration // after the edge
		at      time.Duration // before it
		refused bool
	}{
		{"sum", 0, 299 * time.Second, 299 * time.Second, false},
		{"sum", 0, 299 * time.Second, 300 * time.Second, true},
		{"sum", 0, 300 * time.Second, time.Second, true},
		{"sum", 60, 59 * time.Second, 59 * time.Second, false},
		{"sum", 60, 60 * time.Second, time.Second, true},
		{"sum", -1, 0, time.Second, true},
		{"max", 0, time.Second, time.Second, true},
		{"last_ever", 0, time.Second, time.Second, true},
		{"last_during_period", 0, time.Second, time.Second, true},
	} {
		s, item := meteredShop(t, "&recurring[aggregate_usage]="+tc.how, stripesim.Options{Switches: stripesim.Switches{GraceSeconds: tc.grace}})
		s.advance(edge.Add(-time.Second))
		s.reported(item, "quantity=5", edge.Add(-time.Second))
		s.advance(edge.Add(tc.late))
		a := s.report(item, "quantity=2", edge.Add(-tc.at))
		if (a.Status != http.StatusOK) != tc.refused {
			t.Errorf("%+v: answered %d %s", tc, a.Status, a.Raw)
			continue
		}
		want := map[bool]string{true: "0, 5 billed", false: "0, 7 billed"}[tc.refused]
		if tc.how == "last_ever" {
			want = "5, 5 billed"
		}
		if got := s.totals(item); got != want {
			t.Errorf("%+v: the periods hold %s, want %s", tc, got, want)
		}
		updated := s.events("invoice.updated")
		changed := func(e map[string]any) bool {
			return billedAs(e["object"].(map[string]any)) == "subscription_cycle 7000: 7000 of 240131 to 240229"
		}
		if !tc.refused && !slices.ContainsFunc(updated, changed) {
			t.Errorf("%+v: the draft is not changed: %v", tc, updated)
		}
	}
}

func TestUsageThatLags(t *testing.T) {
	t.Parallel()
	s, item := meteredShop(t, "", stripesim.Options{Switches: stripesim.Switches{UsageLagSeconds: 60, UsageOpenPeriodNull: true}})
	s.reported(item, "quantity=5", opened)
	if got := s.totals(item); got != "0" {
		t.Errorf("at once it is %s", got)
	}
	s.Advance(61 * time.Second)
	if got := s.totals(item); got != "5" {
		t.Errorf("later it is %s", got)
	}
	row := s.must(http.MethodGet, "/v1/subscription_items/"+item+"/usage_record_summaries", "")["data"].([]any)[0].(map[string]any)
	if period := row["period"].(map[string]any); period["start"] != nil || period["end"] != nil {
		t.Errorf("the open period is %v", period)
	}
	s.reported(item, "quantity=2", opened)
	s.advance(opened.AddDate(0, 0, 30))
	if got := s.totals(item); got != "0, 7 billed" {
		t.Errorf("what is not yet seen is not billed: %s", got)
	}
}

func TestUsageBeyondAnInt64IsNotLost(t *testing.T) {
	t.Parallel()
	s, item := meteredShop(t, "&unit_amount_decimal=0.000000000001")
	for range 2 {
		s.reported(item, "quantity=9223372036854775807", opened)
	}
	if got := s.totals(item); got != "18446744073709551614" {
		t.Errorf("the sum is %s", got)
	}
	s.reported(item, "quantity=0&action=set", opened)
	if got := s.totals(item); got != "0" {
		t.Errorf("set to nothing it is %s", got)
	}
}

func TestThresholdsCutAPeriod(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, sub, item string
		at              time.Time
		cuts            bool
		want            string
	}{
		{"usage", "", "&items[0][billing_thresholds][usage_gte]=10", opened.AddDate(0, 0, 10), true, "subscription_threshold 10000: 10000 of 240131 to 240210"},
		{"amount", "&billing_thresholds[amount_gte]=10000", "", opened.AddDate(0, 0, 10), true, "subscription_threshold 10000: 10000 of 240131 to 240210"},
		{"amount not reached", "&billing_thresholds[amount_gte]=10001", "", opened.AddDate(0, 0, 10), false, ""},
		{"last second before the last day", "", "&items[0][billing_thresholds][usage_gte]=10", opened.AddDate(0, 0, 28), true, "subscription_threshold 10000: 10000 of 240131 to 240228"},
		{"last day", "", "&items[0][billing_thresholds][usage_gte]=10", opened.AddDate(0, 0, 28).Add(time.Second), false, ""},
		{"trial", "&trial_period_days=20", "&items[0][billing_thresholds][usage_gte]=10", opened.AddDate(0, 0, 10), false, ""},
	} {
		s := newShop(t)
		sub := s.subscribe("items[0][price]=" + s.price(legacyMetered) + tc.sub + tc.item)
		item := idIn(itemsIn(sub)[0])
		s.advance(tc.at)
		s.refused(s.report(item, "quantity=1&action=set", tc.at), 400, "invalid_request_error", "", "action")
		s.reported(item, "quantity=9", tc.at)
		if n := len(s.invoices()); n != 1 {
			t.Errorf("%s: below it there are %d invoices", tc.name, n)
		}
		s.reported(item, "quantity=1", tc.at)
		made := s.invoices()
		if !tc.cuts {
			if len(made) != 1 {
				t.Errorf("%s: it is cut: %s", tc.name, billedAs(made[1]))
			}
			continue
		}
		if len(made) != 2 || billedAs(made[1]) != tc.want {
			t.Fatalf("%s: %d invoices, the last %s", tc.name, len(made), billedAs(made[len(made)-1]))
		}
		if now := s.sub(idIn(sub)); now["latest_invoice"] != made[1]["id"] || now["current_period_end"] != sub["current_period_end"] || now["current_period_start"] != sub["current_period_start"] {
			t.Errorf("%s: the subscription became %v", tc.name, now)
		}
		s.reported(item, "quantity=3", tc.at)
		s.refused(s.report(item, "quantity=1", tc.at.Add(-time.Hour)), 400, "invalid_request_error", "", "timestamp")
		if got := s.totals(item); got != "3, 10 billed" {
			t.Errorf("%s: the periods hold %s", tc.name, got)
		}
		s.advance(opened.AddDate(0, 0, 30))
		made = s.invoices()
		if got := billedAs(made[len(made)-1]); got != fmt.Sprintf("subscription_cycle 3000: 3000 of %s to 240229", tc.at.Format("060102")) {
			t.Errorf("%s: the rest is billed as %s", tc.name, got)
		}
	}
}

func TestAThresholdMayResetTheAnchor(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sub := s.subscribe("billing_thresholds[amount_gte]=5000&billing_thresholds[reset_billing_cycle_anchor]=true&items[0][price]=" + s.price("") + "&items[1][price]=" + s.price(legacyMetered))
	s.advance(opened.Add(29 * 12 * time.Hour))
	s.reported(idIn(itemsIn(sub)[1]), "quantity=5", s.now)
	made := s.invoices()
	if got := billedAs(made[len(made)-1]); got != "subscription_threshold 5500: -500 of 240215 to 240229, 1000 of 240215 to 240315, 5000 of 240131 to 240215" {
		t.Errorf("it is billed as %s", got)
	}
	if now := s.sub(idIn(sub)); dayIn(now["billing_cycle_anchor"]) != "240215" || dayIn(now["current_period_end"]) != "240315" {
		t.Errorf("the period goes to %s, anchored at %s", dayIn(now["current_period_end"]), dayIn(now["billing_cycle_anchor"]))
	}
}

func TestAMetersUsageIsBilledOfItsPeriod(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	product := u.make("/v1/products", "name=Calls")
	meter := u.make("/v1/billing/meters", "display_name=Calls&event_name=calls&default_aggregation[formula]=sum")
	price := u.make("/v1/prices", "currency=usd&unit_amount_decimal=0.5&recurring[interval]=day&recurring[usage_type]=metered&recurring[meter]="+meter+"&product="+product)
	s := &shop{user: u, product: product}
	customer := u.make("/v1/customers", "")
	sub := u.must(http.MethodPost, "/v1/subscriptions", "customer="+customer+"&items[0][price]="+price)
	u.Advance(time.Hour)
	send := func(value string) {
		u.must(http.MethodPost, "/v1/billing/meter_events", "event_name=calls&payload[stripe_customer_id]="+customer+"&payload[value]="+value)
	}
	send("100")
	send("-10")
	u.Advance(24 * time.Hour)
	send("-7")
	u.Advance(24 * time.Hour)
	u.must(http.MethodGet, "/v1/subscriptions/"+idIn(sub), "")
	made := s.invoices()
	if len(made) != 3 || made[1]["total"] == nil || wholeIn(made[1]["total"]) != 45 || wholeIn(made[2]["total"]) != 0 {
		t.Errorf("the days are billed as %v", made)
	}
}
