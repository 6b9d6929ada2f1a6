package reconcile_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/internal/mail"
	"tallystick/stripesim"
)

// subjects gives those of the mails that were caught, oldest first.
func subjects(mails []mail.Caught) (all []string) {
	for _, m := range mails {
		all = append(all, m.Subject)
	}
	return all
}

// TestMailsKeepADistance holds back what is not urgent, and loses nothing of it.
func TestMailsKeepADistance(t *testing.T) {
	t.Parallel()
	a := open(t, map[string]string{"TALLYSTICK_MAIL_URGENT_TO": "oncall@example.com"})
	a.vandalise(drift)
	a.run()
	a.awaitMails(1)
	a.lose()
	a.Buy(a.Price)
	a.Settled()
	a.run()
	if got := a.mails(); len(got) != 1 {
		t.Errorf("within the cool-down there are %d mails, want 1: %q", len(got), subjects(got))
	}
	a.vandalise("UPDATE accounts SET available = available + 1000000000") // 100 USD: high
	a.run()
	got := a.awaitMails(2)
	if m := got[1]; m.Subject != "110.25 USD at risk: 2 billing mismatches" || !strings.Contains(strings.Join(m.To, " "), "oncall@example.com") || !strings.Contains(m.Text, "was 0.25 USD") {
		t.Errorf("the urgent mail to %q is %q:\n%s", m.To, m.Subject, m.Text)
	}
	if strings.Contains(strings.Join(got[0].To, " "), "oncall@example.com") {
		t.Errorf("what is not urgent went to %q", got[0].To)
	}
	a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "lose", Times: 1})
	a.Use("usage-0002", 5)
	a.Pass(3 * time.Minute)
	a.run()
	if got := a.mails(); len(got) != 2 {
		t.Errorf("within the cool-down there are %d mails, want 2: %q", len(got), subjects(got))
	}
	a.Sim.Advance(16 * time.Minute)
	if m := a.awaitMails(3)[2]; m.Subject != "0.10 USD at risk: 1 billing mismatch" { // nobody has run a check: time alone
		t.Errorf("after the cool-down the mail is %q", m.Subject)
	}
}

// TestMailsOfOneIncidentAreOneThread from the first mismatch to the all clear; the
// next incident is another.
func TestMailsOfOneIncidentAreOneThread(t *testing.T) {
	t.Parallel()
	a := open(t, map[string]string{"TALLYSTICK_MAIL_COOLDOWN": "0s"})
	for range 2 {
		a.vandalise(drift)
		a.run()
		a.vandalise(drift)
		a.run()
		a.vandalise("UPDATE accounts SET available = available - 5000000")
		a.run()
	}
	mails := a.awaitMails(6)
	for i, m := range mails {
		root := mails[i/3*3].MessageID
		if want := i%3 != 0; (m.InReplyTo != "") != want || (want && m.InReplyTo != root) {
			t.Errorf("mail %d, %q, replies to %q; the thread began with %q", i, m.Subject, m.InReplyTo, root)
		}
	}
	if mails[0].MessageID == mails[3].MessageID {
		t.Error("two incidents are one thread")
	}
}

// TestReportsComeOncePerSlot, the digest when there is something to tell, the weekly
// one always.
func TestReportsComeOncePerSlot(t *testing.T) {
	t.Parallel()
	a := open(t, map[string]string{"TALLYSTICK_MAIL_DIGEST": "0 7 * * *", "TALLYSTICK_MAIL_WEEKLY": "0 8 * * 1"})
	to := func(hour int, day time.Weekday) {
		t.Helper()
		now := a.Clock.Now().UTC()
		next := now.Truncate(24 * time.Hour).Add(time.Duration(hour) * time.Hour)
		for !next.After(now) || next.Weekday() != day {
			next = next.Add(24 * time.Hour)
		}
		a.Sim.Advance(next.Add(time.Minute).Sub(now))
	}
	count := func(prefix string) (n int) {
		for _, m := range a.mails() {
			if strings.HasPrefix(m.Subject, prefix) {
				n++
			}
		}
		return n
	}
	a.Await("the slots of before", func() bool { return a.scalar("SELECT count(*)::text FROM reconcile_posts") == "2" })
	if n := len(a.mails()); n != 0 {
		t.Errorf("%d mails about the time before the first start", n)
	}
	to(8, time.Monday)
	a.Await("a weekly report", func() bool { return count("Weekly report") == 1 })
	if n := count("Daily digest"); n != 0 {
		t.Errorf("%d digests of nothing", n)
	}
	a.vandalise(drift)
	a.run()
	to(7, time.Wednesday)
	a.Await("a digest", func() bool { return count("Daily digest: 0.25 USD at risk, 1 open") == 1 })
	a.vandalise("UPDATE accounts SET available = available - 2500000")
	a.run()
	before := count("Weekly report")
	to(8, time.Monday)
	a.Await("the next weekly report", func() bool {
		return count("Weekly report: leaked nothing, over-billed nothing, recovered 0.25 USD") == 1
	})
	if n := count("Weekly report"); n != before+1 {
		t.Errorf("%d weekly reports, want %d", n, before+1)
	}
}

// receiver is where alerts are posted.
type receiver struct {
	*httptest.Server
	mu      sync.Mutex
	answers []int // then 204
	posts   []*http.Request
	bodies  []string
}

func newReceiver(t *testing.T, answers ...int) *receiver {
	t.Helper()
	r := &receiver{answers: answers}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			t.Error(err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		status := http.StatusNoContent
		if len(r.posts) < len(r.answers) {
			status = r.answers[len(r.posts)]
		}
		r.posts, r.bodies = append(r.posts, q), append(r.bodies, string(body))
		if status == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.posts)
}

const (
	oldSecret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	newSecret = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
)

// TestAlertsArePostedSignedUntilTheyAreTaken with the same id and body each time, a
// signature by each secret, and no redirect followed.
func TestAlertsArePostedSignedUntilTheyAreTaken(t *testing.T) {
	t.Parallel()
	to := newReceiver(t, http.StatusInternalServerError, http.StatusFound)
	a := open(t, map[string]string{
		"TALLYSTICK_ALERT_WEBHOOK_URL": to.URL + "/hook?token=secret", "TALLYSTICK_ALERT_WEBHOOK_SECRET": oldSecret + "," + newSecret, "TALLYSTICK_ALERT_WEBHOOK_PRIVATE": "true",
	})
	a.vandalise(drift)
	f := a.one()
	for want := 1; want <= 3; want++ {
		a.Await(fmt.Sprintf("try %d", want), func() bool {
			if to.count() >= want {
				return true
			}
			a.Sim.Advance(time.Minute) // the wait begins when the answer has been noted, which may be later than we see the try
			return false
		})
	}
	a.vandalise("UPDATE accounts SET available = available - 2500000")
	a.run()
	a.Await("the all clear", func() bool { return to.count() >= 4 })
	to.mu.Lock()
	defer to.mu.Unlock()
	kinds := []string{"findings.told", "findings.told", "findings.told", "findings.cleared"}
	for i, q := range to.posts {
		id, at, body := q.Header.Get("Webhook-Id"), q.Header.Get("Webhook-Timestamp"), to.bodies[i]
		var want []string
		for _, secret := range []string{oldSecret, newSecret} {
			key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
			if err != nil {
				t.Fatal(err)
			}
			mac := hmac.New(sha256.New, key)
			_, _ = io.WriteString(mac, id+"."+at+"."+body)
			want = append(want, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		}
		if got := q.Header.Get("Webhook-Signature"); got != strings.Join(want, " ") || q.URL.Path != "/hook" {
			t.Errorf("post %d to %s is signed %q, want %q", i, q.URL.Path, got, want)
		}
		var message struct {
			Type string
			Data struct{ Findings []json.RawMessage }
		}
		if err := json.Unmarshal([]byte(body), &message); err != nil || message.Type != kinds[i] || !strings.Contains(body, f.ID) {
			t.Errorf("post %d is %s, %v", i, body, err)
		}
		if same := i < 3; same != (id == to.posts[0].Header.Get("Webhook-Id")) || same != (body == to.bodies[0]) {
			t.Errorf("post %d has the id %s and body %s, the first %s and %s", i, id, body, to.posts[0].Header.Get("Webhook-Id"), to.bodies[0])
		}
	}
}

// TestAnAlertIsNeverPostedToAPrivateAddress unless that is allowed; it stays, and
// the reason does not repeat the address, which may hold a secret.
func TestAnAlertIsNeverPostedToAPrivateAddress(t *testing.T) {
	t.Parallel()
	to := newReceiver(t)
	a := open(t, map[string]string{
		"TALLYSTICK_ALERT_WEBHOOK_URL": strings.Replace(to.URL, "http://", "https://", 1) + "/?token=secret", "TALLYSTICK_ALERT_WEBHOOK_SECRET": oldSecret,
	})
	a.vandalise(drift)
	a.one()
	reason := ""
	a.Await("a try", func() bool {
		reason = a.scalar("SELECT coalesce(max(error), '') FROM alert_webhooks WHERE state = 'pending' AND attempts > 0")
		return reason != ""
	})
	if to.count() > 0 || !strings.Contains(reason, "not public") || strings.Contains(reason, "secret") {
		t.Errorf("%d posts to loopback; the reason is %q", to.count(), reason)
	}
}

// TestAnAlertIsGivenUpWhenItsReceiverIsGone and only then at once.
func TestAnAlertIsGivenUpWhenItsReceiverIsGone(t *testing.T) {
	t.Parallel()
	to := newReceiver(t, http.StatusGone)
	a := open(t, map[string]string{
		"TALLYSTICK_ALERT_WEBHOOK_URL": to.URL, "TALLYSTICK_ALERT_WEBHOOK_SECRET": oldSecret, "TALLYSTICK_ALERT_WEBHOOK_PRIVATE": "true",
	})
	a.vandalise(drift)
	a.one()
	a.Await("it is given up", func() bool {
		return a.scalar("SELECT count(*)::text FROM alert_webhooks WHERE state = 'failed'") == "1"
	})
	a.Sim.Advance(24 * time.Hour)
	a.run()
	if n := to.count(); n != 1 {
		t.Errorf("%d posts after 410 Gone, want 1", n)
	}
}
