package web

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Client is the network that a request comes from, for limits by address: one
// address of IPv4, and of IPv6 the 64 bits that one subscriber has. What a proxy
// says in X-Forwarded-For counts only where it is trusted: anybody can write the
// header. An address that cannot be read is the zero prefix, which all such share.
func Client(r *http.Request, trusted []netip.Prefix) netip.Prefix {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	address := at.Addr()
	if isTrusted(address, trusted) {
		// The last entry is what the proxy saw itself; those before it, what it was told.
		hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		for _, hop := range slices.Backward(hops) {
			told, err := netip.ParseAddr(strings.TrimSpace(hop))
			if err != nil {
				break
			}
			if address = told; !isTrusted(address, trusted) {
				break
			}
		}
	}
	return network(address)
}

func isTrusted(address netip.Addr, trusted []netip.Prefix) bool {
	address = address.Unmap().WithZone("")
	return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(address) })
}

func network(address netip.Addr) netip.Prefix {
	address = address.Unmap().WithZone("")
	bits := 64
	if address.Is4() {
		bits = 32
	}
	p, _ := address.Prefix(bits) // both lengths fit
	return p
}
