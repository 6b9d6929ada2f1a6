// Package mutants plants bugs in meter, ledger, webhooks and outbox, one at a time,
// and wants the auditor to find each by the right check and for the right cause.
//
// A mutant is exact text of a file and what stands there in its place. The program
// is built with it by go build -overlay, started as tallystick up against the
// simulator, and put through a story over HTTP: purchases, refunds, disputes, usage
// with repeats, reservations, voids, lost webhooks, lost answers and moves of the
// clock. Then all checks run. The program without a mutant must come out of the
// same story without a finding.
//
// make mutants plays all of them; make test a few, chosen by a seed that is logged.
package mutants
