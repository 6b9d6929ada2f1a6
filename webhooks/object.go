package webhooks

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

var errNoObject = errors.New("the event carries no object")

// dataObject gives data.object of an event. Only ids are taken from it.
func dataObject(payload []byte) ([]byte, error) {
	var w struct {
		Data struct {
			Object json.RawMessage `json:"object"`
		} `json:"data"`
	}
	if err := json.Unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("read the event: %w", err)
	}
	if len(w.Data.Object) == 0 {
		return nil, errNoObject
	}
	return w.Data.Object, nil
}

// reference is a member that holds an id, or the object itself.
type reference struct {
	ID string `json:"id"`
}

// UnmarshalJSON takes an id, an object or null.
func (r *reference) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '{' {
		type plain reference
		return json.Unmarshal(data, (*plain)(r))
	}
	return json.Unmarshal(data, &r.ID)
}

// ids are the members that lead from an object to its payment.
type ids struct {
	ID            string    `json:"id"`
	PaymentIntent reference `json:"payment_intent"`
	Invoice       reference `json:"invoice"`
}

func readIDs(object []byte) (ids, error) {
	var i ids
	err := json.Unmarshal(object, &i)
	if err == nil && i.ID == "" {
		err = errNoObject
	}
	return i, err
}

// A lead is the id of what Stripe is to be asked about: a payment intent (pi_…),
// a checkout session (cs_…) or an invoice (in_…). Which payment it is about, read
// finds out.

// isInvoice tells whether a lead or a payment is an invoice.
func isInvoice(id string) bool { return strings.HasPrefix(id, "in_") }

// isSession tells whether a lead or a payment is a checkout session.
func isSession(id string) bool { return strings.HasPrefix(id, "cs_") }
