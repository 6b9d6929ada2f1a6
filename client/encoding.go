package client

import (
	"net/http"
	"strconv"
	"strings"
)

// readable gives the request as it is sent on: with those encodings of the answer that
// the caller takes and that can be read along, which are gzip and none. Where the
// caller said nothing, nothing is said: net/http then asks for gzip and decodes it.
func readable(r *http.Request) *http.Request {
	said := strings.Join(r.Header.Values("Accept-Encoding"), ",")
	narrowed := narrow(said)
	if narrowed == said {
		return r
	}
	sent := r.WithContext(r.Context()) // a RoundTripper leaves the request as it is
	sent.Header = r.Header.Clone()
	sent.Header.Set("Accept-Encoding", narrowed)
	return sent
}

// narrow makes of an Accept-Encoding one that names only what can be read. It stays
// as it is where it names nothing else, and where the caller takes neither gzip nor an
// answer without encoding: by RFC 9110 that is taken unless it is refused.
func narrow(accept string) string {
	takes := map[string]bool{}
	others := false
	for one := range strings.SplitSeq(strings.ToLower(accept), ",") {
		coding, weight, _ := strings.Cut(one, ";")
		coding = strings.TrimSpace(coding)
		takes[coding] = !isZero(weight)
		others = others || (coding != "" && coding != "gzip" && coding != "identity")
	}
	gzip, named := takes["gzip"]
	star, starred := takes["*"]
	if !named {
		gzip = star
	}
	plain, named := takes["identity"]
	if !named {
		plain = star || !starred
	}
	switch {
	case !others, !gzip && !plain:
		return accept
	case !plain:
		return "gzip, identity;q=0"
	case !gzip:
		return "identity"
	}
	return "gzip"
}

// isZero tells whether a weight refuses what it belongs to.
func isZero(weight string) bool {
	_, value, _ := strings.Cut(weight, "=")
	q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
	return err == nil && q == 0
}
