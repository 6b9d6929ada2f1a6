package stripesim

import (
	"net"
	"net/http"
	"testing"
	"time"
)

// Sim is a simulator that serves on loopback for the time of a test.
type Sim struct {
	*Server
	URL string // for the API base of a Stripe client
	Key string // a key that it accepts
}

// New starts a simulator for a test and ends it with the test.
func New(t testing.TB, options ...Options) *Sim {
	t.Helper()
	var o Options
	if len(options) > 0 {
		o = options[0]
	}
	server, err := NewServer(o)
	if err != nil {
		t.Fatalf("start the simulator: %v", err)
	}
	var listen net.ListenConfig
	listener, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen for the simulator: %v", err)
	}
	h := &http.Server{Handler: server, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = h.Serve(listener) }()
	t.Cleanup(func() {
		_ = h.Close()
		if err := server.Close(); err != nil {
			t.Errorf("close the simulator: %v", err)
		}
	})
	key := o.APIKey
	if key == "" {
		key = "sk_test_simulated"
	}
	return &Sim{Server: server, URL: "http://" + listener.Addr().String(), Key: key}
}
