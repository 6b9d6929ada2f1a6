package meter_test

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tallystick/api"
)

const (
	transfers = "/v1/accounts/acme/transfers"
	totals    = "/v1/accounts/acme/usage"
)

type statement struct {
	Data       []api.Transfer `json:"data"`
	NextCursor *string        `json:"next_cursor"`
}

// TestTextThatPostgresDoesNotTakeIsNoErrorOfOurs sends NUL and broken UTF-8 to
// wherever text comes from outside of a body.
func TestTextThatPostgresDoesNotTakeIsNoErrorOfOurs(t *testing.T) {
	t.Parallel()
	c := opened(t, 1)
	for _, text := range []string{"%00", "%ff", "a%00b"} {
		for _, call := range []struct{ method, path, body string }{
			{http.MethodGet, "/v1/accounts/" + text, ""},
			{http.MethodPut, "/v1/accounts/" + text, "{}"},
			{http.MethodGet, "/v1/accounts/" + text + "/transfers", ""},
			{http.MethodGet, "/v1/accounts/" + text + "/usage", ""},
			{http.MethodPost, "/v1/accounts/" + text + "/grants", `{"id": "grant-0001", "credits": 1}`},
			{http.MethodPost, "/v1/accounts/" + text + "/adjustments", `{"id": "adjust-0001", "credits": 1, "reason": "r"}`},
			{http.MethodPut, "/v1/meters/" + text, `{"credits_per_unit": 1}`},
			{http.MethodDelete, "/v1/keys/" + text, ""},
			{http.MethodGet, totals + "?meter=" + text, ""},
			{http.MethodGet, totals + "?group_by=" + text, ""},
			{http.MethodGet, totals + "?group_by=meter," + text, ""},
		} {
			if a := c.call(call.method, call.path, call.body); a.status < 400 || a.status >= 500 {
				t.Errorf("%s %s was answered %d: %s", call.method, call.path, a.status, a.body)
			}
		}
	}
	for list, position := range map[string]string{"/v1/accounts": `{"Part": 1, "Account": "\u0000"}`, "/v1/meters": `"\u0000"`, "/v1/keys": `"\u0000"`} {
		if a := c.call(http.MethodGet, list+"?cursor="+cursor(position), ""); a.status != 400 || a.code != "invalid_request" {
			t.Errorf("%s from a made-up cursor was answered %d: %s", list, a.status, a.body)
		}
	}
}

// TestTimesThatNoAnswerCanHold are within RFC 3339 only as long as they are not
// turned to UTC.
func TestTimesThatNoAnswerCanHold(t *testing.T) {
	t.Parallel()
	c := opened(t, 1)
	for _, query := range []string{"from=tomorrow", "to=2026-03-01", "to=9999-12-31T23:59:59-01:00", "from=0000-01-01T00:00:00%2B01:00"} {
		for _, path := range []string{transfers, totals} {
			if a := c.call(http.MethodGet, path+"?"+query, ""); a.status != 400 || a.code != "invalid_request" || !strings.Contains(a.body, "#query/") {
				t.Errorf("%s?%s was answered %d: %s", path, query, a.status, a.body)
			}
		}
	}
	for _, query := range []string{"to=9999-12-31T23:59:59Z", "from=0001-01-01T00:00:00Z", "from=0000-01-01T00:00:00Z&to=9999-12-31T23:59:59.999999Z"} {
		c.want(200, http.MethodGet, transfers+"?"+query, "")
		c.want(200, http.MethodGet, totals+"?"+query, "")
	}
	if a := c.call(http.MethodPost, "/v1/keys", `{"name": "k", "scopes": ["read"], "expires_at": "9999-12-31T23:59:59-01:00"}`); a.status != 422 {
		t.Errorf("a key until the year 10000 was answered %d: %s", a.status, a.body)
	}
	c.want(201, http.MethodPost, "/v1/keys", `{"name": "k", "scopes": ["read"], "expires_at": "9999-12-31T23:59:59Z"}`)
	c.want(200, http.MethodGet, "/v1/keys", "")
}

// story gives acme a purse and five usages, a minute apart.
func (c *till) story() {
	c.t.Helper()
	for i := range 5 {
		c.clock.pass(time.Minute)
		c.want(201, http.MethodPost, "/v1/usage", usageOf(fmt.Sprintf("usage-%04d", i), i+1))
	}
}

func TestAStatementIsPagedWithoutGapOrRepeat(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.story()
	for _, query := range []string{"limit=0", "limit=501", "limit=x", "cursor=!", "cursor=" + cursor(`"x"`)} {
		if a := c.call(http.MethodGet, transfers+"?"+query, ""); a.status != 400 {
			t.Errorf("%s was answered %d: %s", query, a.status, a.body)
		}
	}
	c.want(404, http.MethodGet, "/v1/accounts/nobody/transfers", "")
	var whole statement
	read(t, c.want(200, http.MethodGet, transfers+"?limit=500", ""), &whole)
	if len(whole.Data) != 6 || whole.NextCursor != nil {
		t.Fatalf("the statement has %d lines and the cursor %v, want 6 and none", len(whole.Data), whole.NextCursor)
	}
	for i, line := range whole.Data {
		if line.Version != int64(6-i) {
			t.Errorf("line %d has version %d: the newest must be first", i, line.Version)
		}
	}
	if first := whole.Data[0]; first.Kind != "usage" || first.Credits != "-5" || first.Amount != "5" || first.Balance.Available != "85" || first.Cause != "usage-0004" {
		t.Errorf("the newest line is %+v", first)
	}
	for _, limit := range []int{1, 2, 3, 5, 6} {
		var paged []api.Transfer
		after := ""
		for {
			var page statement
			read(t, c.want(200, http.MethodGet, fmt.Sprintf("%s?limit=%d%s", transfers, limit, after), ""), &page)
			paged = append(paged, page.Data...)
			if page.NextCursor == nil {
				break
			}
			if len(page.Data) != limit {
				t.Fatalf("a page that is not the last has %d lines, want %d", len(page.Data), limit)
			}
			after = "&cursor=" + url.QueryEscape(*page.NextCursor)
		}
		if diff := cmp.Diff(whole.Data, paged); diff != "" {
			t.Errorf("pages of %d give (-whole +paged):\n%s", limit, diff)
		}
	}
}

func TestAStatementsWindowIsHalfOpen(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.story()
	second := start.Add(2 * time.Minute).Format(time.RFC3339)
	fourth := start.Add(4 * time.Minute).Format(time.RFC3339)
	var page statement
	read(t, c.want(200, http.MethodGet, transfers+"?from="+second+"&to="+fourth, ""), &page)
	var causes []string
	for _, line := range page.Data {
		causes = append(causes, line.Cause)
	}
	if diff := cmp.Diff([]string{"usage-0002", "usage-0001"}, causes); diff != "" {
		t.Errorf("from the second minute to the fourth (-want +got):\n%s", diff)
	}
}

// TestH07AStatementAsCSVRunsNoFormula gives reasons that a spreadsheet would run.
func TestH07AStatementAsCSVRunsNoFormula(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	reasons := []string{
		`=HYPERLINK("https://example.com","x")`, "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "plain", "a=b", "", "two\nlines, \"quoted\"", "é",
	}
	for i, reason := range reasons {
		c.want(201, http.MethodPost, grants, fmt.Sprintf(`{"id": "-grant-%04d", "credits": 1, "reason": %s}`, i, quoted(t, reason)))
	}
	c.want(201, http.MethodPost, "/v1/usage", usageOf("-2-3-cmd-0", 1))
	a := c.want(200, http.MethodGet, transfers+"?limit=500", "", "Accept", "text/csv")
	if media := a.header.Get("Content-Type"); media != "text/csv; charset=utf-8" {
		t.Errorf("the media type is %s", media)
	}
	rows, err := csv.NewReader(strings.NewReader(a.body)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"version", "posted_at", "kind", "credits", "cause", "available", "held", "debt", "actor", "note"}, rows[0]); diff != "" {
		t.Errorf("the columns are (-want +got):\n%s", diff)
	}
	slices.Reverse(rows)
	notes := map[string]bool{}
	for _, row := range rows[:len(rows)-1] {
		notes[row[9]] = true
		for i, cell := range row {
			if i != 3 && cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) { // a number may be negative
				t.Errorf("a spreadsheet would run the cell %q", cell)
			}
		}
	}
	for _, reason := range reasons {
		kept := strings.ReplaceAll(reason, "\r", "\n") // a reader of CSV may take one for the other
		if !notes[reason] && !notes["'"+reason] && !notes["'"+kept] {
			t.Errorf("the reason %q is not among the notes", reason)
		}
	}
	if rows[len(rows)-2][3] != "-1" {
		t.Errorf("the last usage is %q, want -1 credit, as a number", rows[len(rows)-2][3])
	}
}

func TestAStatementAsCSVIsPagedByAHeader(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.story()
	lines, after := 0, ""
	for pages := 1; ; pages++ {
		a := c.want(200, http.MethodGet, transfers+"?limit=4"+after, "", "Accept", "application/xml, text/csv;q=0.9")
		rows, err := csv.NewReader(strings.NewReader(a.body)).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		lines += len(rows) - 1
		next := a.header.Get("X-Next-Cursor")
		if next == "" {
			if pages != 2 || lines != 6 {
				t.Errorf("%d pages have %d lines, want 2 and 6", pages, lines)
			}
			return
		}
		after = "&cursor=" + url.QueryEscape(next)
	}
}

// spread records usage over two meters, two models, two days and their hours.
func (c *till) spread() {
	c.t.Helper()
	c.want(201, http.MethodPut, "/v1/meters/tokens", `{"credits_per_unit": "0.5"}`)
	for i, u := range []struct{ meter, quantity, when, dimensions string }{
		{"call", "1", "2026-02-28T23:59:59.999999Z", `{"model": "a"}`},
		{"call", "2", "2026-03-01T00:00:00Z", `{"model": "a"}`},
		{"call", "3", "2026-03-01T00:59:59Z", `{"model": "b"}`},
		{"tokens", "4", "2026-03-01T01:00:00Z", `{"model": "a", "tier": "x"}`},
		{"tokens", "0.5", "2026-03-01T01:30:00Z", `{}`},
	} {
		c.want(201, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": "usage-%04d", "account": "acme", "meter": %q, "quantity": %s, "occurred_at": %q, "dimensions": %s}`,
			i, u.meter, u.quantity, u.when, u.dimensions))
	}
}

func TestUsageTotals(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.spread()
	for _, query := range []string{
		"group_by=hour,day", "group_by=hour,hour", "group_by=,", "group_by=" + strings.Repeat("n", 65),
		"from=2026-03-01T00:00:00Z&to=2026-03-01T00:00:00Z", "from=2026-03-02T00:00:00Z&to=2026-03-01T00:00:00Z",
	} {
		if a := c.call(http.MethodGet, totals+"?"+query, ""); a.status != 400 || a.code != "invalid_request" {
			t.Errorf("%s was answered %d: %s", query, a.status, a.body)
		}
	}
	c.want(404, http.MethodGet, "/v1/accounts/nobody/usage", "")
	for _, tc := range []struct {
		query string
		want  []string
	}{
		{"", []string{"call  map[] 6 6 3", "tokens  map[] 4.5 2.25 2"}},
		{"from=2026-03-01T00:00:00Z", []string{"call  map[] 5 5 2", "tokens  map[] 4.5 2.25 2"}},
		{"to=2026-03-01T00:00:00Z", []string{"call  map[] 1 1 1"}},
		{"from=2026-03-01T01:00:00Z&to=2026-03-01T01:30:00Z", []string{"tokens  map[] 4 2 1"}},
		{"meter=tokens", []string{"tokens  map[] 4.5 2.25 2"}},
		{"meter=nothing", nil},
		{"group_by=day", []string{" 2026-02-28T00:00:00Z map[] 1 1 1", " 2026-03-01T00:00:00Z map[] 9.5 7.25 4"}},
		{"group_by=hour,meter", []string{
			"call 2026-02-28T23:00:00Z map[] 1 1 1", "call 2026-03-01T00:00:00Z map[] 5 5 2", "tokens 2026-03-01T01:00:00Z map[] 4.5 2.25 2",
		}},
		{"group_by=model", []string{"  map[model:] 0.5 0.25 1", "  map[model:a] 7 5 3", "  map[model:b] 3 3 1"}},
		{"group_by=model,tier&meter=tokens", []string{"  map[model: tier:] 0.5 0.25 1", "  map[model:a tier:x] 4 2 1"}},
		{"group_by=meter,model&meter=call", []string{"call  map[model:a] 3 3 2", "call  map[model:b] 3 3 1"}},
	} {
		var answer api.UsageTotals
		read(t, c.want(200, http.MethodGet, totals+"?"+tc.query, ""), &answer)
		var got []string
		for _, line := range answer.Data {
			slot := ""
			if line.From != nil {
				slot = line.From.Format(time.RFC3339)
			}
			got = append(got, fmt.Sprint(line.Meter, " ", slot, " ", line.Group, " ", line.Quantity, " ", line.Credits, " ", line.Count))
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.query, diff)
		}
	}
}
