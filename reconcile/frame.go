package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/stripe"
)

// check is an audit rule.
//
// Its run reads both sides within the scope and gives what disagrees. It writes
// nothing but tables of its own, and those only in transactions that begin with
// scope.fence, and not at all when scope.dry is set.
type check struct {
	name        string
	description string
	run         func(ctx context.Context, s scope) (result, error)
	// daily runs it by the daily schedule, not by the hourly one: for a check that
	// reads much, here or at Stripe.
	daily bool
	spec  string // a schedule of its own, five cron fields; "" for that of its kind
}

// scope is what one run looks at: half-open, [From, To). A check may be given one
// without frame, as by a repair that measures anew: then nothing is kept.
type scope struct {
	from, to time.Time
	account  string // "" for all
	now      time.Time
	// asked says that the window or the account was named by whoever asked for the
	// run: a check that goes on where it stopped leaves its progress alone then.
	asked bool
	dry   bool // compare and report; write nothing at all
	frame *frame
}

// covers tells whether a run over this scope would have seen a disagreement.
func (s scope) covers(account string, at time.Time) bool {
	return (s.account == "" || s.account == account) && !at.Before(s.from) && at.Before(s.to)
}

// frame is what a run lends its check.
type frame struct {
	r        *Reconciler
	run      Run
	progress string
	budget   *stripe.Budget
}

// progress reads what the check has kept, by an earlier run or this one, into dst;
// without any it leaves dst as it is.
func (s scope) progress(dst any) error {
	if s.frame == nil || s.frame.progress == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(s.frame.progress), dst); err != nil {
		return fmt.Errorf("read the progress of %s: %w", s.frame.run.Check, err)
	}
	return nil
}

// save keeps the check's progress at once, so that a run that is killed goes on
// from here. What is to be kept with the end of the run goes into result.progress.
// It must not be called inside of a transaction. A dry run keeps nothing.
func (s scope) save(ctx context.Context, v any) error {
	if s.frame == nil || s.dry {
		return nil
	}
	return s.frame.r.DB.InTx(ctx, func(tx *sqlx.Tx) error { return s.saveTx(ctx, tx, v) })
}

// saveTx is save within a transaction of the check's own, and its fence.
func (s scope) saveTx(ctx context.Context, tx *sqlx.Tx, v any) error {
	if s.frame == nil || s.dry {
		return nil
	}
	if err := s.fence(ctx, tx); err != nil {
		return err
	}
	text, err := encode(v)
	if err != nil {
		return err
	}
	if err := saveProgress(ctx, tx, s.frame.run.Check, text); err != nil {
		return err
	}
	s.frame.progress = text
	return nil
}

// fence refuses the transaction of a run that was overtaken: it hung beyond its
// bound, and another has its place. It comes first in every transaction in which
// a check writes.
func (s scope) fence(ctx context.Context, tx *sqlx.Tx) error {
	if s.frame == nil {
		return nil
	}
	if s.dry {
		return errDry
	}
	return fence(ctx, tx, s.frame.run)
}

// callsLeft is how many calls to Stripe the check may still make in this run. What
// it leaves unread it says in result.note, and reads in the next run.
func (s scope) callsLeft() int64 {
	if s.frame == nil {
		return callsDefault
	}
	return s.frame.r.Calls - s.frame.budget.Made()
}

// errDry guards against a check that would write in a dry run.
var errDry = errors.New("a dry run writes nothing")

// result is what a check has found.
type result struct {
	compared int64
	found    []disagreement
	timeless bool // the check looks at the present whatever the window: every subject is covered
	// note says for people what was not read, and why: "2 100 hours of 40 customers
	// wait for the next run: the budget of 5 000 calls was used up". "" for nothing.
	note string
	// covered, when not nil, decides alone whether the run would have seen the
	// disagreement about a subject: for checks that read a part of their scope. What
	// was not covered stays as it was found.
	covered func(subject, account string, at time.Time) bool
	// progress, when not nil, is kept as the check's progress in the transaction
	// that ends the run.
	progress any
}

// Effects of a disagreement on money.
const (
	effectLeaked     = "leaked"     // we are owed it and will not get it unless somebody acts
	effectOverbilled = "overbilled" // a customer has paid, or will be billed, too much, or lacks credits that were paid for
	effectAtRisk     = "at_risk"    // neither yet, or not known
)

// disagreement is a finding before it has a row.
type disagreement struct {
	Subject    string // what it is about, unique within the check; the same disagreement has the same subject again
	Account    string
	HappenedAt time.Time
	Ours       string
	Theirs     string
	Difference string // theirs less ours, signed
	Unit       string
	Money      *money // nil when no price is known
	// Effect says which total of a run the money belongs to. "" takes it from the
	// sign for usage (Stripe lacks: leaked; has too much: overbilled), else at_risk.
	Effect string
	// Cause is one word of docs/checks/<check>.md, where it is explained; "unknown"
	// when the check does not know.
	Cause       string
	Explanation string
	Evidence    any
	// Deadline is when repair gets harder, and Remains what can be done then: "a
	// credit note on the finalized invoice". Money and the time left make the
	// severity; Least is the severity that it has at least, "" for none.
	Deadline *time.Time
	Remains  string
	Least    string
	// Repair names what Repair does, "" when there is none; RepairArgs are its
	// arguments, one of the types in repair_args.go. Safe says that it can neither
	// over-bill nor over-credit, whoever else acts at the same time.
	Repair     string
	RepairArgs any
	Safe       bool
}

func (d disagreement) effect(check string) string {
	switch {
	case d.Effect != "":
		return d.Effect
	case !isUsage(check) || d.Difference == "":
		return effectAtRisk
	case d.Difference[0] == '-':
		return effectLeaked
	}
	return effectOverbilled
}
