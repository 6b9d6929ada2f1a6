package client

import (
	"net/http"
	"testing"
)

func TestOnlyEncodingsThatCanBeReadAreAskedFor(t *testing.T) {
	t.Parallel()
	for said, want := range map[string]string{
		"":                                "",
		"gzip":                            "gzip",
		"identity":                        "identity",
		"gzip;q=0.5, identity":            "gzip;q=0.5, identity",
		"gzip, br":                        "gzip",
		"br, GZIP;q=0.1":                  "gzip",
		"gzip, deflate, br, zstd":         "gzip",
		"br":                              "identity",
		"zstd, br;q=0.9":                  "identity",
		"*":                               "gzip",
		"br, *;q=0.1":                     "gzip",
		"br, *;q=0":                       "br, *;q=0",
		"br, identity;q=0":                "br, identity;q=0",
		"br, gzip, identity;q=0.000":      "gzip, identity;q=0",
		"br, gzip, *; q=0":                "gzip, identity;q=0",
		"br, gzip;q=0":                    "identity",
		"br, gzip;q=0, *":                 "identity",
		"br, gzip;q=0, identity;q=0":      "br, gzip;q=0, identity;q=0",
		"br, identity;q=1, *;q=0, gzip;q": "gzip",
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x/v1/messages", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if said != "" {
			r.Header.Set("Accept-Encoding", said)
		}
		sent := readable(r)
		if got := sent.Header.Get("Accept-Encoding"); got != want {
			t.Errorf("%q is sent as %q, want %q", said, got, want)
		}
		if r.Header.Get("Accept-Encoding") != said || (said == "" && len(r.Header.Values("Accept-Encoding")) > 0) {
			t.Errorf("%q: the caller's request was changed to %v", said, r.Header)
		}
	}
}
