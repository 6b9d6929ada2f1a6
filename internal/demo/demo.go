// Package demo plays a day in the life of a team that sells an AI product: it buys,
// uses, retries, races and refunds through the public API, lets some things go
// wrong on purpose, and compares what the auditor finds with what was planted.
package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"tallystick/api"
	"tallystick/internal/app"
	"tallystick/ledger"
	"tallystick/reconcile"
)

// Options are how a story is told.
type Options struct {
	Seed uint64
	Tell func(format string, args ...any) // a line of the story
}

// Planted is a defect that the story has planted.
type Planted struct {
	Check   string `json:"check"`
	Account string `json:"account"`
	Cause   string `json:"cause"`
	What    string `json:"what"`
	Found   bool   `json:"found"`
}

// Repaired is what was done about a finding.
type Repaired struct {
	Finding string `json:"finding"`
	Action  string `json:"action"`
	Result  string `json:"result"`
}

// Result is how the story ended.
type Result struct {
	Seed       uint64        `json:"seed"`
	Requests   int           `json:"requests"`
	Recorded   int           `json:"recorded"`
	Planted    []Planted     `json:"planted"`
	Findings   []api.Finding `json:"findings"`
	Unplanted  []string      `json:"unplanted"`
	Mails      int           `json:"mails"`
	Repairs    []Repaired    `json:"repairs"`
	FoundAgain int           `json:"found_again"` // by the second run; 0 is clean
	Verified   bool          `json:"verified"`
	OK         bool          `json:"ok"`
}

// story is a play under way.
type story struct {
	ctx    context.Context
	u      *app.Up
	o      Options
	random *rand.Rand
	result Result
	tell   func(format string, args ...any)
	at     string // the simulator's checkout price of the small pack
	big    string
	buyers []buyer
}

// buyer is an account and its Stripe customer.
type buyer struct {
	account  string
	customer string
}

var errRealStripe = errors.New("the demo plays against the Stripe simulator only; unset STRIPE_API_KEY, DATABASE_URL and TALLYSTICK_SMTP_URL")

// Play tells the story and returns how it ended. An error means that the story
// could not be told to its end.
func Play(ctx context.Context, u *app.Up, o Options) (Result, error) {
	if u.Sim == nil || u.Catcher == nil {
		return Result{}, errRealStripe
	}
	s := &story{
		ctx: ctx, u: u, o: o, tell: o.Tell, random: rand.New(rand.NewPCG(o.Seed, 0xde30)), //nolint:gosec // a story is repeatable on purpose
		result: Result{Seed: o.Seed, Planted: []Planted{}, Findings: []api.Finding{}, Unplanted: []string{}, Repairs: []Repaired{}},
	}
	s.tell("A day with tallystick, seed %d. Everything runs on this machine: Postgres, a simulated Stripe, a mail catcher.", o.Seed)
	for _, act := range []struct {
		title string
		play  func() error
	}{
		{"Morning: a price list, six customers, and what they buy", s.opening},
		{"Noon: usage, with retries, races and a timeout", s.noon},
		{"Afternoon: things go wrong, where no request fails", s.afternoon},
		{"Evening: both halves of the books are compared", s.evening},
		{"The mail that went out", s.mail},
		{"Repair of what is safe to repair", s.repair},
		{"Comparing again", s.again},
	} {
		s.tell("")
		s.tell("== %s", act.title)
		if err := act.play(); err != nil {
			return s.result, fmt.Errorf("%s: %w", strings.ToLower(act.title), err)
		}
	}
	s.end()
	return s.result, nil
}

// settleTime is how far the clock is moved for buckets to close, deliveries to
// happen and windows to settle.
const settleTime = 2 * time.Hour

// pass moves the one clock and waits until everything due has been done.
func (s *story) pass(d time.Duration) error {
	s.u.Sim.Advance(d)
	return s.settle()
}

// settle waits until no event and no delivery is under way.
func (s *story) settle() error {
	if err := s.u.Sim.Drain(s.ctx); err != nil {
		return err
	}
	return s.await("events and deliveries to be done", func() (bool, error) {
		for _, path := range []string{"/v1/stripe/events?state=pending&limit=1", "/v1/deliveries?state=sending&limit=1", "/v1/deliveries?state=ambiguous&limit=1"} {
			if empty, err := s.empty(path); err != nil || !empty {
				return false, err
			}
		}
		return s.nothingDue()
	})
}

// nothingDue tells whether every pending delivery still waits for its bucket.
func (s *story) nothingDue() (bool, error) {
	var page struct {
		Data []api.Delivery `json:"data"`
	}
	if err := s.get("/v1/deliveries?state=pending&limit=500", &page); err != nil {
		return false, err
	}
	now := s.u.Clock.Now()
	return !slices.ContainsFunc(page.Data, func(d api.Delivery) bool { return !d.NextTryAt.After(now) }), nil
}

func (s *story) empty(path string) (bool, error) {
	var page struct {
		Data []struct{} `json:"data"`
	}
	err := s.get(path, &page)
	return len(page.Data) == 0, err
}

// awaitMax bounds every wait of the story, in real time.
const awaitMax = 30 * time.Second

func (s *story) await(what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(s.ctx, awaitMax)
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}

// evening runs all checks and compares what they found with what was planted.
func (s *story) evening() error {
	if err := s.pass(settleTime); err != nil {
		return err
	}
	if err := s.compare(); err != nil {
		return err
	}
	var page struct {
		Data []api.Finding `json:"data"`
	}
	if err := s.get("/v1/findings?limit=500", &page); err != nil {
		return err
	}
	s.result.Findings = page.Data
	left := slices.Clone(page.Data)
	for i := range s.result.Planted {
		p := &s.result.Planted[i]
		at := slices.IndexFunc(left, func(f api.Finding) bool { return f.Check == p.Check && f.Account == p.Account && f.Cause == p.Cause })
		if p.Found = at >= 0; p.Found {
			left = slices.Delete(left, at, at+1)
		}
	}
	for _, f := range left {
		s.result.Unplanted = append(s.result.Unplanted, f.Check+": "+f.Explanation)
	}
	s.show()
	return nil
}

func (s *story) compare() error {
	var answer struct {
		Data []api.Run `json:"data"`
	}
	if err := s.post("/v1/reconcile/runs", api.RunRequest{}, &answer); err != nil {
		return err
	}
	for _, r := range answer.Data {
		if r.State != "succeeded" {
			return fmt.Errorf("check %s %s: %s", r.Check, r.State, r.Error)
		}
		s.tell("  %-16s compared %d, found %d", r.Check, r.Compared, r.Found)
	}
	return nil
}

func (s *story) show() {
	for _, f := range s.result.Findings {
		money := "an unknown amount"
		if f.MoneyAtRisk != nil {
			money = f.MoneyAtRisk.Text
		}
		s.tell("")
		s.tell("  %s at risk: %s", money, f.Explanation)
		s.tell("    ours %s, Stripe's or the journal's %s, difference %s %s; cause: %s", f.Ours, f.Theirs, f.Difference, f.Unit, f.Cause)
	}
	s.tell("")
	for _, p := range s.result.Planted {
		mark := "found"
		if !p.Found {
			mark = "NOT FOUND"
		}
		s.tell("  planted: %s: %s", p.What, mark)
	}
	for _, text := range s.result.Unplanted {
		s.tell("  NOT PLANTED: %s", text)
	}
}

// mail waits for the mail about the findings and shows its beginning.
func (s *story) mail() error {
	err := s.await("the mail", func() (bool, error) { return len(s.u.Catcher.Messages()) > 0, nil })
	if err != nil {
		return err
	}
	m := s.u.Catcher.Messages()[0]
	s.tell("  to       %s", strings.Join(m.To, ", "))
	s.tell("  subject  %s", m.Subject)
	text, _, _ := strings.Cut(m.Text, "---")
	for line := range strings.Lines(strings.TrimSpace(text)) {
		s.tell("  | %s", strings.TrimRight(line, "\r\n"))
	}
	s.tell("  attached: %s; see it whole at %s", strings.Join(m.Attachments, ", "), s.u.Info.MailURL)
	return nil
}

// repair repairs what can neither over-bill nor over-credit, dry first.
func (s *story) repair() error {
	for _, f := range s.result.Findings {
		if !f.Safe || f.Repair == "" {
			continue
		}
		out, err := s.u.App.Reconcile.Repair(s.ctx, f.ID, "operator:demo", api.RepairRequest{DryRun: true})
		if err != nil {
			return err
		}
		s.tell("  dry run: %s", out.Result)
	}
	outcomes, err := s.u.App.Reconcile.RepairAllSafe(s.ctx, "operator:demo")
	for _, o := range outcomes {
		s.tell("  done: %s", o.Result)
		s.result.Repairs = append(s.result.Repairs, Repaired{Finding: o.Finding, Action: o.Action, Result: o.Result})
	}
	if err != nil {
		return err
	}
	return s.settle()
}

// again compares once more: the repairs have helped, and nothing else is wrong.
func (s *story) again() error {
	if err := s.pass(settleTime); err != nil {
		return err
	}
	if err := s.compare(); err != nil {
		return err
	}
	findings, err := s.u.App.Reconcile.Findings(s.ctx, reconcile.Filter{Limit: 500})
	if err != nil {
		return err
	}
	s.result.FoundAgain = len(findings)
	want := 2 // the mail about the findings, and the all-clear
	if len(findings) > 0 {
		want = 1
	}
	if err := s.await("the all-clear", func() (bool, error) { return len(s.u.Catcher.Messages()) >= want, nil }); err != nil {
		return err
	}
	messages := s.u.Catcher.Messages()
	s.result.Mails = len(messages)
	s.tell("  %d findings are left; the last mail says: %s", len(findings), messages[len(messages)-1].Subject)
	report, err := ledger.Verify(s.ctx, s.u.App.DB)
	s.result.Verified = report.OK
	s.tell("  tallystick verify: %d invariants checked, all hold: %v", len(report.Checks), report.OK)
	return err
}

func (s *story) end() {
	found := 0
	for _, p := range s.result.Planted {
		if p.Found {
			found++
		}
	}
	r := &s.result
	r.OK = found == len(r.Planted) && len(r.Unplanted) == 0 && r.FoundAgain == 0 && r.Verified && r.Mails == 2
	s.tell("")
	s.tell("%d of %d planted defects found, %d findings that were not planted, %d repaired, %d left, %d mails.",
		found, len(r.Planted), len(r.Unplanted), len(r.Repairs), r.FoundAgain, r.Mails)
}
