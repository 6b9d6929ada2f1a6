package stripe

import (
	"context"
	"errors"
	"sync/atomic"
)

// ErrBudget says that a call was not made because the budget is used up.
var ErrBudget = errors.New("the budget of calls to Stripe is used up")

// Budget counts the calls that are made under one context, pages and repeated
// tries included, and refuses those beyond its bound. It may be shared.
type Budget struct {
	most int64 // 0: no bound
	made atomic.Int64
}

// NewBudget allows so many calls; 0 counts without a bound.
func NewBudget(most int64) *Budget { return &Budget{most: most} }

// Made is how many calls were made.
func (b *Budget) Made() int64 { return b.made.Load() }

type budgetKey struct{}

// WithBudget makes every call under the context one of the budget's.
func WithBudget(ctx context.Context, b *Budget) context.Context {
	return context.WithValue(ctx, budgetKey{}, b)
}

// spend takes one call from the budget that the context carries, if any.
func spend(ctx context.Context) error {
	b, ok := ctx.Value(budgetKey{}).(*Budget)
	if !ok {
		return nil
	}
	if made := b.made.Add(1); b.most > 0 && made > b.most {
		b.made.Add(-1)
		return ErrBudget
	}
	return nil
}
