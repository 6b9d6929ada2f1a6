package meter_test

import (
	"fmt"
	"math/big"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tallystick/api"
	"tallystick/internal/credit"
)

// documented gives the cells of the table in docs/pricing.md that follows a marker.
func documented(t *testing.T, marker string) (rows [][]string) {
	t.Helper()
	page, err := os.ReadFile("../docs/pricing.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "<!-- "+marker)
	if !ok {
		t.Fatalf("docs/pricing.md has no table marked %q", marker)
	}
	for _, line := range strings.Split(rest, "\n")[3:] {
		if !strings.HasPrefix(line, "|") {
			break
		}
		var cells []string
		for _, cell := range strings.Split(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		rows = append(rows, cells)
	}
	if len(rows) < 5 {
		t.Fatalf("the table marked %q has %d lines", marker, len(rows))
	}
	return rows
}

func TestRoundingIsAsDocumented(t *testing.T) {
	t.Parallel()
	for _, row := range documented(t, "rounding:") {
		quantity, err := credit.ParseQuantity(row[0])
		if err != nil {
			t.Fatal(err)
		}
		rate, err := credit.ParseAmount(row[1])
		if err != nil {
			t.Fatal(err)
		}
		exact := new(big.Rat).Mul(ratOf(t, row[0]), ratOf(t, row[1]))
		if exact.Cmp(ratOf(t, row[2])) != 0 {
			t.Errorf("%s times %s is %s, not %s", row[0], row[1], exact.FloatString(12), row[2])
		}
		got, err := credit.Price(quantity, rate)
		if err != nil || got.String() != row[3] {
			t.Errorf("%s at %s costs %s, %v; documented is %s", row[0], row[1], got, err, row[3])
		}
		off := new(big.Rat).Sub(ratOf(t, row[3]), exact)
		if off.Abs(off).Cmp(big.NewRat(1, 2_000_000)) > 0 {
			t.Errorf("%s at %s is off by %s, more than half a millionth", row[0], row[1], off.FloatString(12))
		}
	}
}

func ratOf(t *testing.T, text string) *big.Rat {
	t.Helper()
	r, ok := new(big.Rat).SetString(text)
	if !ok {
		t.Fatalf("%q is no number", text)
	}
	return r
}

// TestAModelCallCostsWhatIsDocumented makes the meters of the documented table and
// sends its usages in one batch.
func TestAModelCallCostsWhatIsDocumented(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	rows := documented(t, "model call:")
	rates, own := map[string][]string{}, map[string]string{}
	for _, row := range rows {
		rates[row[0]] = append(rates[row[0]], fmt.Sprintf(`{"match": {"model": %q}, "credits_per_unit": %q}`, row[1], row[2]))
		own[row[0]] = "9"
		if row[1] == "another" {
			rates[row[0]], own[row[0]] = rates[row[0]][:len(rates[row[0]])-1], row[2]
		}
	}
	for meter, list := range rates {
		c.want(201, http.MethodPut, "/v1/meters/"+meter, fmt.Sprintf(`{"unit": "token", "credits_per_unit": %q, "rates": [%s]}`, own[meter], strings.Join(list, ", ")))
	}
	var usages []string
	left := ratOf(t, "100")
	for i, row := range rows {
		usages = append(usages, fmt.Sprintf(`{"id": "call-0001:%d", "account": "acme", "meter": %q, "quantity": %s, "dimensions": {"model": %q}}`, i, row[0], row[3], row[1]))
		left.Sub(left, ratOf(t, row[4]))
	}
	var batch api.UsageBatch
	read(t, c.want(200, http.MethodPost, "/v1/usage/batch", `{"usage": [`+strings.Join(usages, ", ")+`]}`), &batch)
	for i, result := range batch.Results {
		if result.Result != "recorded" || string(result.Usage.Credits) != rows[i][4] {
			t.Errorf("%v: %s, documented are %s credits: %+v", rows[i], result.Result, rows[i][4], result.Usage)
		}
		if d := c.detail(fmt.Sprintf("call-0001:%d", i)); string(d.CreditsPerUnit) != rows[i][2] {
			t.Errorf("%v is shown at %s a unit", rows[i], d.CreditsPerUnit)
		}
	}
	if ratOf(t, c.available()).Cmp(left) != 0 {
		t.Errorf("%s are available, want %s", c.available(), left.FloatString(6))
	}
	c.verified()
}

// TestACaptureIsPricedAsItWasReserved changes the rates in between.
func TestACaptureIsPricedAsItWasReserved(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	tokens := func(rate string) string {
		return fmt.Sprintf(`{"credits_per_unit": 1, "rates": [{"match": {"model": "l"}, "credits_per_unit": %s}]}`, rate)
	}
	c.want(201, http.MethodPut, "/v1/meters/tokens", tokens("2"))
	c.want(201, http.MethodPost, "/v1/reservations", `{"id": "resv-0001", "account": "acme", "meter": "tokens", "quantity": 10, "ttl_seconds": 60, "dimensions": {"model": "l"}}`)
	c.clock.pass(time.Second)
	c.want(200, http.MethodPut, "/v1/meters/tokens", tokens("3"))
	c.want(201, http.MethodPost, "/v1/reservations/resv-0001/capture", `{"quantity": 4}`)
	c.want(201, http.MethodPost, "/v1/usage", `{"id": "usage-0001", "account": "acme", "meter": "tokens", "quantity": 4, "dimensions": {"model": "l"}}`)
	for id, want := range map[string]string{"reservation@resv-0001": "8 2 1", "usage-0001": "12 3 2"} {
		d := c.detail(id)
		if got := fmt.Sprint(d.Credits, " ", d.CreditsPerUnit, " ", d.RateVersion); got != want {
			t.Errorf("%s costs %s, want %s", id, got, want)
		}
	}
	v := c.voided("reservation@resv-0001")
	if v.Returned != "8" || c.available() != "88" {
		t.Errorf("voided it returns %s, with %s available, want 8 and 88", v.Returned, c.available())
	}
	var m api.Meter
	read(t, c.want(200, http.MethodGet, "/v1/meters/tokens", ""), &m)
	if m.RateVersion != 2 || m.Rates[0].CreditsPerUnit != "3" {
		t.Errorf("the meter is %+v", m)
	}
	var versions []string
	for after := ""; ; {
		var page struct {
			Data       []api.RateVersion
			NextCursor *string `json:"next_cursor"`
		}
		read(t, c.want(200, http.MethodGet, "/v1/meters/tokens/rates?limit=1"+after, ""), &page)
		for _, v := range page.Data {
			versions = append(versions, fmt.Sprint(v.Version, " ", v.CreditsPerUnit, " ", v.Rates, " ", v.CreatedAt.Sub(start)))
		}
		if page.NextCursor == nil {
			break
		}
		after = "&cursor=" + *page.NextCursor
	}
	if diff := cmp.Diff([]string{"2 1 [{map[model:l] 3}] 1s", "1 1 [{map[model:l] 2}] 0s"}, versions); diff != "" {
		t.Errorf("the versions are (-want +got):\n%s", diff)
	}
	c.want(404, http.MethodGet, "/v1/meters/nothing", "")
	c.want(404, http.MethodGet, "/v1/meters/nothing/rates", "")
	c.want(400, http.MethodGet, "/v1/meters/tokens/rates?limit=0", "")
}

func TestMetersThatAreMeasuredAreNotCharged(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	for _, aggregation := range []string{"max", "last"} {
		for _, tc := range []struct{ body, pointer string }{
			{`"credits_per_unit": "0.000001"`, "/credits_per_unit"},
			{`"credits_per_unit": 0, "rates": [{"match": {"a": "b"}, "credits_per_unit": 0}]`, "/rates"},
			{`"credits_per_unit": 0, "stripe": {"kind": "meter", "event_name": "e"}`, "/aggregation"},
		} {
			a := c.call(http.MethodPut, "/v1/meters/"+aggregation, fmt.Sprintf(`{"aggregation": %q, %s}`, aggregation, tc.body))
			if a.status != 422 || !strings.Contains(a.body, `"`+tc.pointer+`"`) || strings.Count(a.body, `"pointer"`) != 1 {
				t.Errorf("%s with %s was answered %d: %s", aggregation, tc.body, a.status, a.body)
			}
		}
		c.want(201, http.MethodPut, "/v1/meters/"+aggregation, fmt.Sprintf(`{"aggregation": %q, "credits_per_unit": 0}`, aggregation))
		a := c.call(http.MethodPost, "/v1/reservations", fmt.Sprintf(`{"id": "resv-0001", "account": "acme", "meter": %q, "credits": 1, "ttl_seconds": 60}`, aggregation))
		if a.status != 422 || a.code != "meter_not_priced" {
			t.Errorf("a reservation of %s was answered %d: %s", aggregation, a.status, a.body)
		}
		c.want(201, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": "usage-%s", "account": "acme", "meter": %q, "quantity": 5}`, aggregation, aggregation))
	}
	if c.available() != "10" {
		t.Errorf("%s are available, want all 10", c.available())
	}
}

func TestAnAggregationIsForGood(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.want(201, http.MethodPut, "/v1/meters/seats", `{"aggregation": "max", "credits_per_unit": 0}`)
	for meter, body := range map[string]string{
		"call": `{"aggregation": "count", "credits_per_unit": 1}`, "seats": `{"credits_per_unit": 0}`,
	} {
		if a := c.call(http.MethodPut, "/v1/meters/"+meter, body); a.status != 409 || a.code != "aggregation_fixed" {
			t.Errorf("%s of %s was answered %d: %s", body, meter, a.status, a.body)
		}
	}
	if n := c.count("SELECT count(*) FROM meters WHERE (meter, aggregation, rate_version) IN (('call', 'sum', 1), ('seats', 'max', 1)) AND (stripe_event_name IS NOT NULL) = (meter = 'call')"); n != 2 {
		t.Errorf("%d meters are as before, want both", n)
	}
	c.want(200, http.MethodPut, "/v1/meters/seats", `{"aggregation": "max", "credits_per_unit": 0, "unit": "seat"}`)
}

// TestTotalsAggregateAsTheMeterDoes records out of order, twice at one time, and
// voids the highest and the latest.
func TestTotalsAggregateAsTheMeterDoes(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	for _, m := range []struct{ name, rate string }{{"max", "0"}, {"last", "0"}, {"count", "1"}, {"sum", "1"}} {
		c.want(201, http.MethodPut, "/v1/meters/"+m.name, fmt.Sprintf(`{"aggregation": %q, "credits_per_unit": %s}`, m.name, m.rate))
		for i, u := range []struct {
			quantity string
			minute   int
			plan     string
		}{{"3", 30, "a"}, {"8", 20, "b"}, {"2", 40, "a"}, {"4", 40, "b"}, {"9", -20, "a"}, {"5", 10, "a"}} { // the fifth on the day before
			c.want(201, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": "usage-%s-%d", "account": "acme", "meter": %q, "quantity": %s, "occurred_at": %q, "dimensions": {"plan": %q}}`,
				m.name, i, m.name, u.quantity, start.Truncate(24*time.Hour).Add(time.Duration(u.minute)*time.Minute).Format(time.RFC3339), u.plan))
		}
	}
	show := func(query string) string {
		var sums api.UsageTotals
		read(t, c.want(200, http.MethodGet, totals+"?"+query, ""), &sums)
		text := ""
		for _, line := range sums.Data {
			day := ""
			if line.From != nil {
				day = line.From.Format("02 ")
			}
			text += fmt.Sprintf("%s%s %s%s/%d; ", day, line.Meter, line.Group["plan"], line.Quantity, line.Count)
		}
		return text
	}
	for _, tc := range []struct{ query, before string }{
		{"group_by=meter", "count 6/6; last 4/6; max 9/6; sum 31/6; "},
		{"meter=last&group_by=day,meter", "28 last 9/1; 01 last 4/5; "},
		{"meter=max&group_by=day,meter", "28 max 9/1; 01 max 8/5; "},
		{"meter=max&group_by=plan,meter", "max a9/4; max b8/2; "},
		{"meter=last&group_by=plan", " a2/4;  b4/2; "},
		{"group_by=plan", " a34/16;  b26/8; "},
	} {
		if got := show(tc.query); got != tc.before {
			t.Errorf("%s gives\n%s, want\n%s", tc.query, got, tc.before)
		}
	}
	for _, meter := range []string{"max", "last", "count", "sum"} {
		c.voided("usage-" + meter + "-3")
		c.voided("usage-" + meter + "-4")
	}
	for _, tc := range []struct{ query, after string }{
		{"group_by=meter", "count 4/4; last 2/4; max 8/4; sum 18/4; "},
		{"meter=last&group_by=day,meter", "01 last 2/4; "},
		{"meter=max&group_by=plan,meter", "max a5/3; max b8/1; "},
		{"meter=last&group_by=plan", " a2/3;  b8/1; "},
		{"group_by=plan", " a20/12;  b25/4; "},
	} {
		if got := show(tc.query); got != tc.after {
			t.Errorf("after the voids %s gives\n%s, want\n%s", tc.query, got, tc.after)
		}
	}
	c.verified()
}
