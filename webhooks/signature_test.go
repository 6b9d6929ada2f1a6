package webhooks_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tallystick/internal/apptest"
	"tallystick/webhooks"
)

// signed is what a right signature of a body is made of.
func signed(body, with string, at time.Time) (t, v1 string) {
	t, v1, _ = strings.Cut(apptest.Sign(body, with, at), ",")
	return t, v1
}

// code is the code of a problem document.
func code(w *httptest.ResponseRecorder) string {
	var p struct{ Code string }
	_ = json.Unmarshal(w.Body.Bytes(), &p) // no JSON has no code
	return p.Code
}

// refuses wants a delivery refused with status and code, and nothing stored.
func (d *till) refuses(name, body string, status int, want string, signatures ...string) {
	d.t.Helper()
	w := d.post(body, signatures...)
	if w.Code != status || code(w) != want {
		d.t.Errorf("%s was answered %d %s, want %d %s", name, w.Code, code(w), status, want)
	}
	if rows := d.rows(); len(rows) > 0 {
		d.t.Errorf("%s left %+v behind", name, rows)
	}
}

func TestE04AWrongSignatureIsRefusedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	d := opened(t)
	body := paid("evt_1", "pi_1")
	at, v1 := signed(body, secret, start)
	_, other := signed(body, "whsec_other", start)
	_, empty := signed(body, "", start)
	flipped := strings.NewReplacer("0", "1", "1", "0").Replace(v1[3:])
	for _, tc := range []struct {
		name       string
		signatures []string
	}{
		{"no header", nil},
		{"an empty header", []string{""}},
		{"no pairs", []string{"signature"}},
		{"no v1", []string{at}},
		{"an empty v1", []string{at + ",v1="}},
		{"no time", []string{v1}},
		{"a changed v1", []string{at + ",v1=" + flipped}},
		{"a v1 cut by a byte", []string{at + "," + v1[:len(v1)-2]}},
		{"a v1 cut by half a byte", []string{at + "," + v1[:len(v1)-1]}},
		{"a v1 that is longer", []string{at + "," + v1 + "00"}},
		{"a v1 that is no hex", []string{at + ",v1=" + strings.Repeat("z", 64)}},
		{"another secret", []string{at + "," + other}},
		{"the empty secret", []string{at + "," + empty}},
		{"v0 only", []string{at + ",v0" + v1[2:]}},
		{"a right v0 beside a wrong v1", []string{at + ",v0" + v1[2:] + "," + other}},
		{"the time of another second", []string{fmt.Sprintf("t=%d,%s", start.Unix()+1, v1)}},
		{"two headers, both right", []string{at + "," + v1, at + "," + v1}},
	} {
		d.refuses(tc.name, body, http.StatusBadRequest, "invalid_signature", tc.signatures...)
	}
	d.deliver(body)
	if got := d.one(); got.Payload != body || got.State != "pending" {
		t.Errorf("kept is %+v, want the body as it came", got)
	}
}

func TestE05ATimeThatIsNotNowIsRefused(t *testing.T) {
	t.Parallel()
	d := opened(t)
	body := paid("evt_1", "pi_1")
	at, v1 := signed(body, secret, start)
	for name, when := range map[string]time.Duration{"too old": -301 * time.Second, "too far ahead": 301 * time.Second, "years old": -100000 * time.Hour} {
		d.refuses(name, body, http.StatusBadRequest, "invalid_signature", apptest.Sign(body, secret, start.Add(when)))
	}
	for _, odd := range []string{"t=-1", "t=", "t=now", "t=1e9", "t=99999999999999999999", "t=1099511627777", "t= " + at[2:], at + "," + at, "t=1," + at} {
		d.refuses(odd, body, http.StatusBadRequest, "invalid_signature", odd+","+v1)
	}
	d.pass(time.Microsecond)
	d.refuses("a microsecond too old", body, http.StatusBadRequest, "invalid_signature", apptest.Sign(body, secret, start.Add(-300*time.Second)))
}

// TestE05TheEdgeItselfIsInside signs at exactly 300 seconds, either way.
func TestE05TheEdgeItselfIsInside(t *testing.T) {
	t.Parallel()
	d := opened(t)
	for i, when := range []time.Duration{-300 * time.Second, 300 * time.Second} {
		body := paid(fmt.Sprintf("evt_%d", i), "pi_1")
		if w := d.post(body, apptest.Sign(body, secret, start.Add(when))); w.Code != http.StatusOK {
			t.Errorf("a signature from %s was answered %d: %s", when, w.Code, w.Body)
		}
	}
}

func TestE06OneRightSignatureOfAnyConfiguredSecretIsEnough(t *testing.T) {
	t.Parallel()
	d := opened(t, func(c *webhooks.Config) { c.Secrets = []string{"whsec_old", "whsec_new"} })
	signature := func(body string, secrets ...string) string {
		header, _ := signed(body, "", start)
		for _, s := range secrets {
			_, v1 := signed(body, s, start)
			header += "," + v1
		}
		return header
	}
	refused := paid("evt_refused", "pi_1")
	d.refuses("two other secrets", refused, http.StatusBadRequest, "invalid_signature", signature(refused, "whsec_a", "whsec_b"))
	for i, secrets := range [][]string{
		{"whsec_old"}, {"whsec_new"}, {"whsec_old", "whsec_new"}, {"whsec_a", "whsec_new"}, {"whsec_new", "whsec_a"}, {"whsec_a", "whsec_b", "whsec_old"},
	} {
		body := paid(fmt.Sprintf("evt_%d", i), "pi_1")
		if w := d.post(body, signature(body, secrets...)); w.Code != http.StatusOK {
			t.Errorf("signed by %v it was answered %d: %s", secrets, w.Code, w.Body)
		}
	}
}

func TestE07TheBytesAsTheyCameAreVerified(t *testing.T) {
	t.Parallel()
	d := opened(t)
	body := paid("evt_1", "pi_1")
	signature := apptest.Sign(body, secret, start)
	var compact, zipped bytes.Buffer
	if err := json.Compact(&compact, []byte(body)); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write([]byte(body))
	_ = z.Close()
	for name, changed := range map[string]string{
		"encoded anew": compact.String(), "with a byte order mark": "\ufeff" + body, "with a line's end": body + "\n", "cut": body[:len(body)-1], "compressed": zipped.String(), "empty": "",
	} {
		d.refuses(name, changed, http.StatusBadRequest, "invalid_signature", signature)
	}
	d.deliver(body)
}

// TestE07ABodyOf256KiBIsTakenAndNoByteMore pads an event inside its JSON.
func TestE07ABodyOf256KiBIsTakenAndNoByteMore(t *testing.T) {
	t.Parallel()
	d := opened(t)
	sized := func(size int) string {
		bare := event("evt_1", "product.created", `{"pad": ""}`)
		return event("evt_1", "product.created", `{"pad": "`+strings.Repeat("x", size-len(bare))+`"}`)
	}
	for _, size := range []int{256<<10 + 1, 10 << 20} {
		body := sized(size)
		d.refuses(fmt.Sprint(size, " bytes"), body, http.StatusRequestEntityTooLarge, "body_too_large", apptest.Sign(body, secret, start))
	}
	d.deliver(sized(256 << 10))
	if n := len(d.one().Payload); n != 256<<10 {
		t.Errorf("kept are %d bytes", n)
	}
}

func TestWithoutASecretNothingIsTaken(t *testing.T) {
	t.Parallel()
	body := paid("evt_1", "pi_1")
	none := opened(t, func(c *webhooks.Config) { c.Secrets = nil })
	none.refuses("a delivery without a configured secret", body, http.StatusServiceUnavailable, "webhook_not_configured", apptest.Sign(body, "", start))
	empty := opened(t, func(c *webhooks.Config) { c.Secrets = []string{""} })
	empty.refuses("a delivery signed with the empty secret", body, http.StatusBadRequest, "invalid_signature", apptest.Sign(body, "", start))
}
