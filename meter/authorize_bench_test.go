package meter_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"tallystick/api"
	realtime "tallystick/internal/clock"
	"tallystick/internal/pg/pgtest"
	"tallystick/meter"
)

// BenchmarkAuthorize is what a key in use costs each request, without a limit and
// with the highest one, which a fast machine reaches.
func BenchmarkAuthorize(b *testing.B) {
	m := meter.New(meter.Config{DB: pgtest.Open(b, pgtest.DSN(b), patient), Now: realtime.Now})
	defer m.Close()
	for name, limit := range map[string]*api.RateLimit{"unlimited": nil, "limited": {PerSecond: 100_000, Burst: 100_000}} {
		key, err := m.CreateKey(b.Context(), api.KeyRequest{Name: "bench", Scopes: []string{meter.ScopeUsage}, RateLimit: limit})
		if err != nil {
			b.Fatal(err)
		}
		h := m.Authorize(meter.ScopeUsage, func(http.ResponseWriter, *http.Request) error { return nil })
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				r := httptest.NewRequest(http.MethodPost, "/v1/usage", nil)
				r.Header.Set("Authorization", "Bearer "+key.Secret)
				for p.Next() {
					if err := h(nil, r); err != nil && limit == nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
