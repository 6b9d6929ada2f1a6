package stripesim

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// timeMax bounds the times of a summary, in Unix seconds.
const timeMax = 1 << 40

// summaryOf is what a call for summaries asks for.
type summaryOf struct {
	key      meterCustomer
	from, to int64
	step     int64 // of a row, in seconds; 0: one row for all
}

func readSummary(c *call) (q summaryOf, err *apiError) {
	if err = c.require("customer", "start_time", "end_time"); err != nil {
		return q, err
	}
	q.from, q.to = c.number("start_time"), c.number("end_time")
	unit, name := int64(60), "minute"
	switch c.text("value_grouping_window") {
	case "":
		if c.has("value_grouping_window") {
			return q, invalid("value_grouping_window", "", "Invalid value_grouping_window: must be one of day or hour")
		}
	case "hour":
		q.step, unit, name = hourSeconds, hourSeconds, "hour"
	case "day":
		q.step, unit, name = daySeconds, daySeconds, "day"
	default:
		return q, invalid("value_grouping_window", "", "Invalid value_grouping_window: must be one of day or hour")
	}
	for _, param := range []string{"start_time", "end_time"} {
		switch at := c.number(param); {
		case at < 0 || at > timeMax:
			return q, invalid(param, "", "Invalid timestamp: must be an integer Unix timestamp")
		case at%unit != 0:
			return q, invalid(param, "", "start_time and end_time must be aligned with the boundaries of a %s.", name)
		}
	}
	if q.from >= q.to {
		return q, invalid("end_time", "", "end_time must be after start_time.")
	}
	return q, nil
}

// summaries answers the usage of one customer in [start_time, end_time): one row,
// or one for each window that has usage.
func (s *Server) summaries(c *call) (object, *apiError) {
	meter, err := s.find("billing.meter", c.target(), "id")
	if err != nil {
		return nil, err
	}
	q, err := readSummary(c)
	if err != nil {
		return nil, err
	}
	if s.switches.SummariesNeedCustomer && s.store.get("customer", c.text("customer")) == nil {
		return nil, missing("customer", c.text("customer"), "customer")
	}
	limit, err := c.limit()
	if err != nil {
		return nil, err
	}
	q.key = meterCustomer{text(meter, "id"), c.text("customer")}
	groups, more, err := s.groups(c, q, limit)
	if err != nil {
		return nil, err
	}
	rows := make([]any, len(groups))
	for i, g := range groups {
		rows[i] = object{
			"id": q.rowID(g.start), "object": "billing.meter_event_summary", "aggregated_value": json.Number(g.sum.text()),
			"start_time": g.start, "end_time": q.end(g.start), "livemode": false, "meter": q.key.meter,
		}
	}
	return listObject(c.r.URL.Path, rows, more), nil
}

// groups gives a page of rows, the newest first. A cursor names a time, not a
// place in a list: pages stay right while usage arrives or is cancelled.
func (s *Server) groups(c *call, q summaryOf, limit int) (page []group, more bool, err *apiError) {
	after, err := q.cursor(c, "starting_after")
	if err != nil {
		return nil, false, err
	}
	before, err := q.cursor(c, "ending_before")
	if err != nil {
		return nil, false, err
	}
	all := s.meters.series[q.key]
	switch {
	case q.step == 0:
		return s.wholeRow(all, q, after >= 0 || before >= 0), false, nil
	case all == nil:
		return nil, false, nil
	case before >= 0:
		page = all.after(max(q.from, before+q.step), q.to, q.step, limit+1)
		more = len(page) > limit
		page = page[:min(limit, len(page))]
		slices.Reverse(page)
		return page, more, nil
	case after >= 0:
		q.to = min(q.to, after)
	}
	page = all.before(q.from, q.to, q.step, limit+1)
	return page[:min(limit, len(page))], len(page) > limit, nil
}

// wholeRow is the one row of a call without windows. It is answered as zero where
// there is no usage, unless a switch says otherwise.
func (s *Server) wholeRow(all *series, q summaryOf, behind bool) []group {
	row, n := group{start: q.from}, int64(0)
	if all != nil {
		row.sum, n = all.sum(q.from, q.to)
	}
	if behind || (n == 0 && s.switches.NoZeroSummary) {
		return nil
	}
	return []group{row}
}

func (q summaryOf) end(start int64) int64 {
	if q.step == 0 {
		return q.to
	}
	return start + q.step
}

// rowID is the same whenever the same row is asked for.
func (q summaryOf) rowID(start int64) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d %d", q.key.meter, q.key.customer, start, q.end(start)))
	return "mtrusg_test_" + strconv.FormatInt(start, 36) + "x" + hex.EncodeToString(sum[:8])
}

// cursor gives the start of the row that a cursor names, -1 where there is no cursor.
func (q summaryOf) cursor(c *call, param string) (start int64, err *apiError) {
	id := c.text(param)
	if id == "" {
		return -1, nil
	}
	digits := strings.TrimPrefix(id, "mtrusg_test_")
	start, failed := strconv.ParseInt(digits[:max(strings.LastIndex(digits, "x"), 0)], 36, 64)
	if failed != nil || start < 0 || q.rowID(start) != id {
		return 0, missing("billing.meter_event_summary", id, param)
	}
	return start, nil
}
