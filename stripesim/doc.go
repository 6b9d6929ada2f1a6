// Package stripesim is a stateful Stripe for development and tests: customers,
// products, prices, checkout, payments, refunds, billing meters, events and
// signed webhooks over HTTP, at API version 2023-10-16, with faults on demand.
//
// In a test:
//
//	sim := stripesim.New(t)
//	// point a Stripe client at sim.URL with the key sim.Key
//
// It keeps one virtual clock, remembers idempotency keys as Stripe does, and
// with Options.Dir survives the end of its process. What Stripe leaves
// undocumented is a switch. docs/stripesim.md describes all of it.
//
// It knows nothing of the client that talks to it, on purpose: a mistake that
// both shared would go unseen.
package stripesim

// APIVersion is the version whose shapes are answered.
const APIVersion = "2023-10-16"
