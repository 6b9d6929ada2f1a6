package stripe_test

import (
	"errors"
	"testing"

	"tallystick/internal/stripe"
	"tallystick/stripesim"
)

// TestABudgetBoundsTheCalls counts tries, too: the last one that is allowed is
// made, the one beyond is not.
func TestABudgetBoundsTheCalls(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	client := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL})
	if err := sim.AddFaults(&stripesim.Fault{Path: "/v1/events", Fault: "error_503", Times: 1}); err != nil {
		t.Fatal(err)
	}
	budget := stripe.NewBudget(3)
	ctx := stripe.WithBudget(t.Context(), budget)
	for i, want := range []error{nil, nil, stripe.ErrBudget, stripe.ErrBudget} {
		if err := client.Ping(ctx); !errors.Is(err, want) {
			t.Errorf("call %d ended with %v, want %v", i, err, want)
		}
	}
	if made := budget.Made(); made != 3 {
		t.Errorf("%d calls were counted, want 3: two and one repeated", made)
	}
	if err := client.Ping(t.Context()); err != nil {
		t.Errorf("without a budget: %v", err)
	}
}
