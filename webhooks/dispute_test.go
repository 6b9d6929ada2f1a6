package webhooks_test

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"

	"tallystick/internal/apptest"
	"tallystick/stripesim"
)

// scene is acme's purchase of 100 credits for 10.00 USD at the simulator, and a till
// that hears of what happens to it.
type scene struct {
	*till
	h       *history
	t       *testing.T
	payment string
	charge  string
}

func purchased(t *testing.T) *scene {
	t.Helper()
	s, d := beside(t)
	c := &scene{till: d, h: &history{t: t, s: s}, t: t, payment: s.Buy(s.Price)}
	c.charge = fmt.Sprint(s.Stripe(http.MethodGet, "/v1/payment_intents/"+c.payment, nil)["latest_charge"])
	c.hear("100")
	return c
}

func (c *scene) shop() *apptest.Shop { return c.h.s }

// hear delivers what is new, lets it be applied, and wants acme to have so much.
func (c *scene) hear(want string) {
	c.t.Helper()
	c.deliver(c.h.news()...)
	c.step()
	c.has("acme", want)
	for _, r := range c.rows() {
		if r.State == "pending" || r.State == "failed" {
			c.t.Errorf("the event %s is %s: %s", r.ID, r.State, r.Error)
		}
	}
}

func (c *scene) dispute(amount int64, stage string) (id string) {
	c.t.Helper()
	id, err := c.shop().Sim.OpenDispute(stripesim.Dispute{Charge: c.charge, Amount: amount, Stage: stage})
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

func (c *scene) resolve(id, outcome string, amount int64) {
	c.t.Helper()
	if err := c.shop().Sim.ResolveDispute(id, outcome, amount); err != nil {
		c.t.Fatal(err)
	}
}

func (c *scene) refunds(amount string) (id string) {
	c.t.Helper()
	return c.shop().Make("/v1/refunds", url.Values{"payment_intent": {c.payment}, "amount": {amount}})
}

// disputes is how many open ones flag acme.
func (c *scene) flags(want int) {
	c.t.Helper()
	if n := c.count("SELECT count(*) FROM disputes WHERE account = 'acme' AND closed_at IS NULL"); n != want {
		c.t.Errorf("%d open disputes flag acme, want %d", n, want)
	}
}

// journal is the kinds and amounts of what a cause moved, debt left out.
func (c *scene) journal(cause string) (moved string) {
	c.t.Helper()
	var lines []string
	c.query(&lines, `SELECT kind || ' ' || amount / 1000000 FROM transfers WHERE cause = $1 AND kind <> 'debt_repaid' ORDER BY version`, cause)
	return fmt.Sprint(lines)
}

// TestADisputeTakesTheCreditsAndGivesThemBackWhenItIsWon: eliza 10997 took them at
// the opening and never gave them back.
func TestADisputeTakesTheCreditsAndGivesThemBackWhenItIsWon(t *testing.T) {
	t.Parallel()
	c := purchased(t)
	id := c.dispute(1000, "opened")
	c.hear("0")
	c.flags(1)
	c.resolve(id, "under_review", 0)
	c.hear("0")
	c.flags(1)
	c.resolve(id, "won", 0)
	c.hear("100")
	c.flags(0)
	if got := c.journal(id); got != "[dispute 100 dispute_won 100]" {
		t.Errorf("it moved %s", got)
	}
	c.verify()
}

func TestALostDisputeKeepsTheCredits(t *testing.T) {
	t.Parallel()
	c := purchased(t)
	id := c.dispute(400, "opened")
	c.hear("60")
	c.resolve(id, "lost", 0)
	c.hear("60")
	c.flags(0)
	if got := c.journal(id); got != "[dispute 40]" {
		t.Errorf("it moved %s", got)
	}
	c.verify()
}

// TestAPartOfADisputeComesBackInCreditsNotInDollars: eliza 31449 gave back as many
// credits as dollars.
func TestAPartOfADisputeComesBackInCreditsNotInDollars(t *testing.T) {
	t.Parallel()
	c := purchased(t)
	id := c.dispute(1000, "opened")
	c.hear("0")
	c.resolve(id, "partly_won", 250)
	c.hear("25")
	c.flags(0)
	c.verify()
}

func TestAnInquiryMovesNothingUntilItBecomesADispute(t *testing.T) {
	t.Parallel()
	c := purchased(t)
	id := c.dispute(1000, "inquiry")
	c.hear("100")
	c.flags(1)
	c.resolve(id, "opened", 0)
	c.hear("0")
	c.flags(1)
	c.resolve(id, "won", 0)
	c.hear("100")
	other := purchased(t)
	id = other.dispute(1000, "inquiry")
	other.hear("100")
	other.resolve(id, "warning_closed", 0)
	other.hear("100")
	other.flags(0)
	if got := other.journal(id); got != "[]" {
		t.Errorf("an inquiry that came to nothing moved %s", got)
	}
}

// TestRefundAndDisputeTogetherNeverTakeMoreThanWasGiven refunds a part and has the
// whole disputed.
func TestRefundAndDisputeTogetherNeverTakeMoreThanWasGiven(t *testing.T) {
	t.Parallel()
	c := purchased(t)
	refund := c.refunds("300")
	c.hear("70")
	id := c.dispute(1000, "opened")
	c.hear("0")
	if got := c.journal(refund) + c.journal(id); got != "[refund 30][dispute 70]" {
		t.Errorf("they moved %s", got)
	}
	c.resolve(id, "won", 0)
	c.hear("70")
	c.verify()
}

// TestARefundAfterADisputeThatWasWonTakesItsFullShare: eliza 11155 had not netted
// the reinstatement, and took too little.
func TestARefundAfterADisputeThatWasWonTakesItsFullShare(t *testing.T) {
	t.Parallel()
	c := purchased(t)
	id := c.dispute(1000, "opened")
	c.hear("0")
	c.resolve(id, "won", 0)
	c.hear("100")
	c.refunds("1000")
	c.hear("0")
	c.verify()
}

// TestE10ADisputeOfSpentCreditsIsDebt lets the next purchase pay it.
func TestE10ADisputeOfSpentCreditsIsDebt(t *testing.T) {
	t.Parallel()
	c := purchased(t)
	c.spend(80)
	id := c.dispute(1000, "opened")
	c.hear("0 owing 80")
	c.shop().Buy(c.shop().Price)
	c.hear("20")
	c.resolve(id, "won", 0)
	c.hear("120")
	c.verify()
}

// TestE03ADisputeThatComesBeforeItsPaymentIsNotLost delivers it alone.
func TestE03ADisputeThatComesBeforeItsPaymentIsNotLost(t *testing.T) {
	t.Parallel()
	s, d := beside(t)
	c := &scene{till: d, h: &history{t: t, s: s}, t: t, payment: s.Buy(s.Price)}
	c.charge = fmt.Sprint(s.Stripe(http.MethodGet, "/v1/payment_intents/"+c.payment, nil)["latest_charge"])
	before := c.h.news()
	c.dispute(500, "opened")
	c.hear("50")
	c.flags(1)
	c.deliver(before...)
	c.step()
	c.has("acme", "50")
}
