package stripe

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"time"
)

// typesMax is how many types of events one list takes.
const typesMax = 20

// EventPages calls each with the events of the given types created within
// [from, to], a page of at most 100 at a time, newest first for each twenty types.
func (c *Client) EventPages(ctx context.Context, types []string, from, to time.Time, each func([]Event) error) error {
	for part := range slices.Chunk(types, typesMax) {
		query := created(from, to)
		for i, kind := range part {
			query.Set("types["+strconv.Itoa(i)+"]", kind)
		}
		var page []Event
		err := c.list(ctx, "/v1/events", query, func(raw json.RawMessage) error {
			e, err := readEvent(raw)
			if err != nil {
				return err
			}
			if page = append(page, e); len(page) < pageSize {
				return nil
			}
			err = each(page)
			page = nil
			return err
		})
		if err == nil && len(page) > 0 {
			err = each(page)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
