// Package reconcile is the auditor: it compares our records with Stripe's, and
// our projections with our journals, and says what differs, what it is worth,
// why it most likely happened and what can be done until when.
//
// It imports nothing that it audits: it has its own SQL and its own arithmetic.
// If it shared code with metering, ledger, webhooks or outbox, one bug there
// would hide itself here.
//
//	R1  A finding is a row: check, subject, both values, signed difference, money at risk, cause, evidence.
//	R2  The same disagreement updates its row; a vanished one is resolved by a run that covered it; a returning one reopens.
//	R3  A check and a slot are run once, whatever the number of processes; an abandoned run is taken over.
//	R4  What is still under way is not a disagreement; what has been under way for too long is.
//	R5  A repair that is called safe can neither over-bill nor over-credit, measures anew before it acts, and is done once.
//
// Not promised: that a window narrower than Stripe's own delay is settled; that
// is what Config.Settle is for.
package reconcile
