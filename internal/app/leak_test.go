package app_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"tallystick/internal/apptest"
	"tallystick/internal/pg/pgtest"
)

// TestA18NothingLeaks starts the whole program, uses it, with callers that hang
// up among them, and stops it: its pools are free before, and no goroutine is
// there afterwards that was not before.
func TestA18NothingLeaks(t *testing.T) { //nolint:paralleltest // the goroutines of others would count
	dsn := pgtest.DSN(t) // starts what all tests share
	before := goleak.IgnoreCurrent()
	t.Run("used", func(t *testing.T) {
		a := apptest.Start(t, apptest.Options{DatabaseURL: dsn, Schedule: true})
		a.Want(201, http.MethodPut, "/v1/accounts/acme", `{}`, nil)
		a.Want(201, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1, "stripe": {"kind": "meter", "event_name": "calls"}}`, nil)
		a.Want(201, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": 50}`, nil)
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				body := fmt.Sprintf(`{"id": "usage-%04d", "account": "acme", "meter": "call", "quantity": 1}`, i)
				if i%4 > 0 {
					a.Call(http.MethodPost, "/v1/usage", body)
					return
				}
				hangUp(t, a, body)
			})
		}
		wg.Wait()
		a.Await("every connection to be free", func() bool { return a.App.DB.Stats().InUse == 0 && a.App.Meter.Depth() == 0 })
	})
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

// hangUp sends a request, and is gone before its answer.
func hangUp(t *testing.T, a *apptest.App, body string) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(a.Info.URL, "http://"))
	if err != nil {
		t.Error(err)
		return
	}
	_, _ = fmt.Fprintf(c, "POST /v1/usage HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", a.Info.APIKey, len(body), body)
	_ = c.Close()
}
