package stripesim

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestUsageOnATestClock: the time of usage is held against the test clock of its
// customer, who may live months ahead of the simulator.
func TestUsageOnATestClock(t *testing.T) {
	t.Parallel()
	s, err := NewServer(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	frozen := s.Now().Add(90 * 24 * time.Hour).Unix()
	s.mu.Lock()
	s.store.put("test_helpers.test_clock", object{"id": "clock_1", "object": "test_helpers.test_clock", "frozen_time": frozen})
	s.store.put("customer", object{"id": "cus_1", "object": "customer", "test_clock": "clock_1"})
	s.mu.Unlock()
	post := func(path, form string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form))
		r.Header.Set("Authorization", "Bearer sk_test_1")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w
	}
	post("/v1/billing/meters", "display_name=a&event_name=calls&default_aggregation[formula]=sum")
	event := "event_name=calls&payload[stripe_customer_id]=cus_1&payload[value]=1"
	for at, want := range map[int64]int{
		s.Now().Unix(): http.StatusBadRequest, frozen - 35*daySeconds - 1: http.StatusBadRequest, frozen - 35*daySeconds: http.StatusOK,
		frozen + 300: http.StatusOK, frozen + 301: http.StatusBadRequest,
	} {
		if w := post("/v1/billing/meter_events", event+fmt.Sprintf("&timestamp=%d", at)); w.Code != want {
			t.Errorf("the time %d is answered %d %s, want %d", at-frozen, w.Code, w.Body, want)
		}
	}
	if w := post("/v1/billing/meter_events", event); !strings.Contains(w.Body.String(), fmt.Sprintf(`"timestamp":%d`, frozen)) {
		t.Errorf("without a time it is answered %s", w.Body)
	}
}
