// Package meter is the metering API: accounts, meters with their rates, usage,
// reservations, grants, balances and keys.
//
// Rules, each held by a constraint, a test and a check of the auditor:
//
//	M1  A usage id of an account is charged once, for good: its row is the guard, and commits with the charge.
//	M2  The same id with the same content gets the first answer again, byte for byte; with other content it is refused.
//	M3  A refusal leaves no trace: the same id may succeed later.
//	M4  Usage keeps the rate version it was priced with.
//	M5  Usage of a meter that is billed at Stripe is staged for Stripe in the transaction that accepted it.
//	M6  A reservation ends once, by capture, release or expiry; its row is the guard, and commits with what it moves.
//	M7  A capture is one usage, priced as it was reserved; usage that happened is charged however little is held.
//	M8  A usage is voided once; its row stays, so that its id is never charged again.
//
// Usage goes through lanes. A lane takes whatever arrived while its previous
// transaction was under way and commits it as one; correctness is in the
// database, so any number of processes may serve the same account. A call on a
// reservation is a transaction of its own, which locks the account as lanes do
// and before the reservation.
//
// Not promised: the order of usage from different requests.
package meter
