// Package webhooks takes Stripe's events in: verify, store, acknowledge; a worker
// applies them later.
//
//	W1  No acknowledgement before the event is stored: no database, no 200.
//	W2  An event is stored once, whatever the number of its deliveries.
//	W3  A payment becomes one purchase grant, whichever of its events come, how
//	    often and in whatever order: payments is keyed by the payment itself.
//	W4  Credits taken back for refunds are in proportion to the money that went
//	    back, never more than was bought, and come back when a refund fails.
//	W5  What cannot be mapped to an account or a number of credits is parked with
//	    the reason, never guessed.
//
// An event only says that something happened to a payment. Its handler reads
// the payment, its session and its refunds from Stripe and brings our records to
// what Stripe says; so order does not matter, and neither does a repeat. What was
// read before another worker changed our records is read again, not applied.
//
// Not promised: that an event is applied before the request that brought it ends.
package webhooks
