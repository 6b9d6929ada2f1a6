package stripesim

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of requests.
const (
	nestingMax       = 32
	metadataKeysMax  = 50
	metadataKeyMax   = 40
	metadataValueMax = 500
)

// Account is the id of the account that the simulator plays.
const Account = "acct_1SimulatedStripe"

var versionForm = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}(\.[a-z]+)?$`)

// checkHeaders refuses what Stripe refuses before it looks at the parameters.
func (s *Server) checkHeaders(r *http.Request) *apiError {
	s.mu.Lock()
	lax := s.switches.AnyVersion
	s.mu.Unlock()
	version := strings.Join(r.Header.Values("Stripe-Version"), ", ")
	if version != "" && version != APIVersion && (!lax || !versionForm.MatchString(version)) {
		return invalid("", "", "Invalid Stripe API version: %s", version)
	}
	if account := r.Header.Get("Stripe-Account"); account != "" && account != Account {
		e := invalid("", "account_invalid", "The provided key 'sk_test_****' does not have access to account '%s' (or that account does not exist). Application access may have been revoked.", account)
		e.status = http.StatusForbidden
		return e
	}
	if kind := r.Header.Get("Content-Type"); kind != "" && r.Method == http.MethodPost {
		if media, _, err := mime.ParseMediaType(kind); err != nil || media != "application/x-www-form-urlencoded" {
			return invalid("", "", "Invalid request (check that your POST content type is application/x-www-form-urlencoded). If you have any questions, we can help at https://support.stripe.com/.")
		}
	}
	return nil
}

// readForm gives the parameters of the query and body, and a fingerprint of all
// that an idempotency key is tied to. Of a parameter that comes twice the last one
// counts, and the body counts more than the query.
func readForm(r *http.Request) (url.Values, string, *apiError) {
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyMax+1))
	if err != nil {
		return nil, "", invalid("", "", "Invalid request: the body ended too early.")
	}
	if len(body) > bodyMax {
		e := invalid("", "", "Invalid request: the body is larger than %d bytes.", bodyMax)
		e.status = http.StatusRequestEntityTooLarge
		return nil, "", e
	}
	values, failed := parseForm(r.URL.RawQuery)
	if failed != nil {
		return nil, "", failed
	}
	form, failed := parseForm(string(bytes.TrimSpace(body)))
	if failed != nil {
		return nil, "", failed
	}
	for k, v := range form {
		values[k] = append(values[k], v...)
	}
	sum := sha256.Sum256([]byte(r.Method + " " + r.URL.Path + "?" + values.Encode()))
	return values, hex.EncodeToString(sum[:]), nil
}

func parseForm(text string) (url.Values, *apiError) {
	values, err := url.ParseQuery(text)
	if err != nil {
		return nil, invalid("", "", "Invalid request: the parameters are not form-encoded: %s", strings.TrimPrefix(err.Error(), "invalid "))
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !cleanText(key) {
			return nil, invalid("", "", "Invalid request: the name of a parameter is no text in UTF-8.")
		}
		if slices.ContainsFunc(values[key], func(v string) bool { return !cleanText(v) }) {
			return nil, invalid(key, "", "Invalid string: the value is no text in UTF-8 without the byte 0.")
		}
		if strings.Count(key, "[") > nestingMax {
			return nil, invalid("", "", "Invalid request: the parameters are nested deeper than %d levels.", nestingMax)
		}
	}
	return values, nil
}

func cleanText(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// checkMetadataMap holds given metadata against Stripe's limits.
func checkMetadataMap(name string, m object) *apiError {
	if len(m) > metadataKeysMax {
		return tooManyKeys(name, len(m))
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if n := utf8.RuneCountInString(key); n > metadataKeyMax {
			return invalid(name, "", "Metadata keys can have up to %d characters, but you passed in a key that is %d characters. Invalid key: %s", metadataKeyMax, n, key)
		}
		value, _ := m[key].(string)
		if n := utf8.RuneCountInString(value); n > metadataValueMax {
			return invalid(name+"["+key+"]", "", "Metadata values can have up to %d characters, but you passed in a value that is %d characters. Invalid value: %s", metadataValueMax, n, value)
		}
	}
	return nil
}

func tooManyKeys(name string, n int) *apiError {
	return invalid(name, "", "Metadata can have up to %d keys, but you've set %d.", metadataKeysMax, n)
}

// checkMetadata counts the keys that an object would have after a change.
func (s *Server) checkMetadata(c *call) *apiError {
	if !c.has("metadata") || c.target() == "" {
		return nil
	}
	for _, sh := range s.store.kinds {
		if o := sh.byID[c.target()]; o != nil {
			if n := len(mergeMetadata(child(o, "metadata"), c.metadata())); n > metadataKeysMax {
				return tooManyKeys("metadata", n)
			}
		}
	}
	return nil
}

// ExpireKey lets an API key be refused from now on, as after a roll of keys.
func (s *Server) ExpireKey(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expiredKeys[key] = true
	s.store.log(entry{Type: "expired_key", ID: key})
}

func expiredKey(key string) *apiError {
	e := unauthorized("Expired API Key provided: " + key[:min(8, len(key))] + "****")
	e.code = "api_key_expired"
	return e
}
