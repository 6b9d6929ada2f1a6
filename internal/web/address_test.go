package web_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"tallystick/internal/web"
)

func TestG09TheClientsAddressIsBelievedOnlyFromTrustedProxies(t *testing.T) {
	t.Parallel()
	proxies := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/8")}
	for _, tc := range []struct {
		name, remote string
		forwarded    []string
		trusted      []netip.Prefix
		want         string
	}{
		{"no proxy", "192.0.2.7:4711", nil, nil, "192.0.2.7/32"},
		{"nobody is trusted by default", "127.0.0.1:1", []string{"192.0.2.7"}, nil, "127.0.0.1/32"},
		{"a stranger is not trusted", "192.0.2.7:1", []string{"203.0.113.9"}, proxies, "192.0.2.7/32"},
		{"a trusted proxy", "127.0.0.1:1", []string{"192.0.2.7"}, proxies, "192.0.2.7/32"},
		{"a trusted proxy of IPv4 in IPv6", "[::ffff:127.0.0.1]:1", []string{"192.0.2.7"}, proxies, "192.0.2.7/32"},
		{"what the client wrote itself comes first", "127.0.0.1:1", []string{"203.0.113.9, 192.0.2.7"}, proxies, "192.0.2.7/32"},
		{"in a header of its own, too", "127.0.0.1:1", []string{"203.0.113.9", "192.0.2.7"}, proxies, "192.0.2.7/32"},
		{"two proxies", "127.0.0.1:1", []string{"203.0.113.9, 192.0.2.7, 10.1.2.3"}, proxies, "192.0.2.7/32"},
		{"one beyond the trusted network", "127.0.0.1:1", []string{"192.0.2.7, 10.2.0.1"}, proxies, "10.2.0.1/32"},
		{"only proxies", "127.0.0.1:1", []string{"10.1.2.3, 10.1.2.4"}, proxies, "10.1.2.3/32"},
		{"nonsense is nobody", "127.0.0.1:1", []string{"192.0.2.7, unknown"}, proxies, "127.0.0.1/32"},
		{"nonsense behind a proxy", "127.0.0.1:1", []string{"192.0.2.7, x, 10.1.2.3"}, proxies, "10.1.2.3/32"},
		{"no header", "127.0.0.1:1", nil, proxies, "127.0.0.1/32"},
		{"a subscriber's network of IPv6", "[2001:db8:1:2:3:4:5:6]:1", nil, nil, "2001:db8:1:2::/64"},
		{"a zone", "[fe80::1%eth0]:1", nil, nil, "fe80::/64"},
		{"no address", "@", nil, nil, "invalid Prefix"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = tc.remote
		for _, f := range tc.forwarded {
			r.Header.Add("X-Forwarded-For", f)
		}
		if got := web.Client(r, tc.trusted).String(); got != tc.want {
			t.Errorf("%s: %s with %q is %s, want %s", tc.name, tc.remote, tc.forwarded, got, tc.want)
		}
	}
}
