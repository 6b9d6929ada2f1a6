// Package conformance holds the simulator and our Stripe client against what
// Stripe itself publishes: the OpenAPI document and request checks of stripe-mock,
// and the types and client of stripe-go. It is a module of its own, so that the
// old dependencies of stripe-mock stay out of the product.
package conformance
