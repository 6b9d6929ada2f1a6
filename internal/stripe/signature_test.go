package stripe_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"tallystick/internal/stripe"
)

const payload = `{"id": "evt_1"}`

// v1 is the signature as Stripe's documentation describes it.
func v1(secret, body string, at int64) string {
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = fmt.Fprintf(mac, "%d.%s", at, body)
	return hex.EncodeToString(mac.Sum(nil))
}

func TestE05Signatures(t *testing.T) {
	t.Parallel()
	now := start.Unix()
	header := func(at int64, signatures ...string) string {
		return fmt.Sprintf("t=%d,v1=%s", at, strings.Join(signatures, ",v1="))
	}
	good := v1("whsec_1", payload, now)
	for _, tc := range []struct {
		name, header string
		secrets      []string
		fits         bool
	}{
		{"none", "", []string{"whsec_1"}, false},
		{"nonsense", "x", []string{"whsec_1"}, false},
		{"no secrets", header(now, good), nil, false},
		{"an empty secret", header(now, v1("", payload, now)), []string{""}, false},
		{"another secret", header(now, v1("whsec_2", payload, now)), []string{"whsec_1"}, false},
		{"another body", header(now, v1("whsec_1", payload+" ", now)), []string{"whsec_1"}, false},
		{"another time", header(now+1, good), []string{"whsec_1"}, false},
		{"cut off", header(now, good[:63]), []string{"whsec_1"}, false},
		{"no hex", header(now, "zz"), []string{"whsec_1"}, false},
		{"only v0", fmt.Sprintf("t=%d,v0=%s", now, good), []string{"whsec_1"}, false},
		{"no time", "v1=" + good, []string{"whsec_1"}, false},
		{"two times", fmt.Sprintf("t=%d,t=%d,v1=%s", now, now, good), []string{"whsec_1"}, false},
		{"an old time behind a new one", fmt.Sprintf("t=%d,t=%d,v1=%s", now, now-1000, v1("whsec_1", payload, now-1000)), []string{"whsec_1"}, false},
		{"301 seconds old", header(now-301, v1("whsec_1", payload, now-301)), []string{"whsec_1"}, false},
		{"301 seconds ahead", header(now+301, v1("whsec_1", payload, now+301)), []string{"whsec_1"}, false},
		{"a year ahead", header(now+31536000, v1("whsec_1", payload, now+31536000)), []string{"whsec_1"}, false},
		{"negative", header(-1, v1("whsec_1", payload, -1)), []string{"whsec_1"}, false},
		{"beyond counting", "t=99999999999999999999,v1=" + good, []string{"whsec_1"}, false},
		{"300 seconds old", header(now-300, v1("whsec_1", payload, now-300)), []string{"whsec_1"}, true},
		{"300 seconds ahead", header(now+300, v1("whsec_1", payload, now+300)), []string{"whsec_1"}, true},
		{"now", header(now, good), []string{"whsec_1"}, true},
		{"a rolled secret", header(now, v1("whsec_2", payload, now), good), []string{"whsec_1"}, true},
		{"garbage beside it", header(now, "zz", good), []string{"whsec_1"}, true},
		{"the second secret", header(now, good), []string{"whsec_0", "", "whsec_1"}, true},
	} {
		if err := stripe.VerifySignature([]byte(payload), tc.header, tc.secrets, start); (err == nil) != tc.fits {
			t.Errorf("%s: %v, want it to fit: %v", tc.name, err, tc.fits)
		}
	}
	if err := stripe.VerifySignature([]byte(payload), header(now, good), []string{"whsec_1"}, start.Add(-300*time.Second-time.Microsecond)); err == nil {
		t.Error("one microsecond beyond the tolerance was taken")
	}
}

func FuzzVerifySignature(f *testing.F) {
	f.Add("t=1772366400,v1=00")
	f.Add("t=1,t=2,v1=,v1=zz,x=a=b")
	f.Fuzz(func(t *testing.T, header string) {
		if stripe.VerifySignature([]byte(payload), header, []string{"whsec_1"}, start) == nil && !strings.Contains(header, "v1=") {
			t.Errorf("%q was taken", header)
		}
	})
}
