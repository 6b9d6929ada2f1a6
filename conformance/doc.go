// Package conformance holds the simulator and our Stripe client against what
// Stripe itself publishes: the OpenAPI document and request checks of stripe-mock,
// and the types and client of stripe-go; and POST /v1/events against the official
// client of CloudEvents. It is a module of its own, so that what only these tests
// need, old dependencies of stripe-mock among it, stays out of the product.
package conformance
