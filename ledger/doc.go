// Package ledger keeps credits as an append-only, double-entry journal.
//
// A pure function, Decide, says what an operation does to an account; SQL only
// loads and stores: Load locks a batch of accounts, Apply decides, Save writes
// the whole batch set-based. The caller owns the transaction, so that an
// operation's key, its effect and what it stages elsewhere commit together.
//
// Invariants. Each is held by a constraint where SQL can say it, by a test, and
// by Verify; the auditor recomputes them with code of its own.
//
//	L1  A transfer moves its amount from one book to another, so every transfer sums to zero.
//	L2  Nothing in the journal is updated or deleted; a correction is a new transfer.
//	L3  An account's version rises by exactly one per transfer, without gaps.
//	L4  available, held and debt of an account are the sums of its transfers.
//	L5  available is never below minus the overdraft; held and debt are never negative.
//	L6  A grant's remainder is the sum of the changes that the transfers name for it, between 0 and its credits.
//	L7  available is the sum of the open grants' remainders, less what is overdrawn; overdrawn only when no grant is open.
//	L8  Each usage, grant and adjustment names exactly one transfer, of its own kind, cause and amount.
//	L9  Each transfer's hash covers the one before it, so that a changed or missing row shows.
//	L10 held is the sum of what the open and in_doubt reservations hold.
//	L11 A reservation ends at most once; what it held is then captured, returned or expired, to the last millionth.
//	L12 A usage is voided at most once; what it was charged is then returned or expired, to the last millionth.
//
// Books. available, held and debt belong to the account: the balance of a book is
// what went in less what went out, and the balance of debt is minus what is owed.
// The other books (purchases, grants, usage, refunds, disputes, expired,
// adjustments) stand for the world outside.
//
// Holds. A hold moves credits from available to held and out of its grants'
// remainders, so that held credits neither expire nor are spent nor clawed back.
// All transfers of a reservation have it as their cause. A capture takes from
// the front of its hold: the grants that the hold names, in the order of
// spending, are those that the usage consumed. What goes back goes into its
// grants; out of a grant that is due by then it goes from held to expired, one
// transfer for each grant. Returned credits pay debt first, as new ones do. A
// capture beyond the hold takes the rest from the balance, down to the
// overdraft, and books what is missing as debt.
//
// Voids. A void takes usage back: it moves what was charged from usage to
// available and into the grants that the usage, or the hold it was captured
// from, took it out of, by the rule for what comes back from a hold. Its
// transfers have the usage as their cause; the usage and its own transfers stay.
//
// Hash chain. The hash of a transfer is SHA-256 over the hash before it (nothing
// before the first) and then these fields, each preceded by its length in bytes
// as an eight-byte big-endian integer: part, account, version, kind, amount,
// source, target, cause, the number of grants, then for each its id and amount,
// available after, held after, debt after, actor, note, time posted. Integers
// are decimal text; the time is UTC as 2006-01-02T15:04:05.000000Z.
//
// Not promised: the same operation applied twice posts twice. Whoever calls
// guards it with a key of its own in the same transaction.
package ledger
