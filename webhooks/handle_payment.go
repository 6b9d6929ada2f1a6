package webhooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// ids are the members that lead from an object to its payment.
type ids struct {
	ID            string `json:"id"`
	PaymentIntent string `json:"payment_intent"`
}

func readIDs(object []byte) (ids, error) {
	var i ids
	err := json.Unmarshal(object, &i)
	if err == nil && i.ID == "" {
		err = errNoObject
	}
	return i, err
}

// sessionPayment is for checkout.session.*: the payment intent, or the session
// itself when nothing had to be paid.
func sessionPayment(_ context.Context, object []byte) (string, error) {
	i, err := readIDs(object)
	if i.PaymentIntent != "" {
		return i.PaymentIntent, err
	}
	return i.ID, err
}

// intentPayment is for payment_intent.*.
func intentPayment(_ context.Context, object []byte) (string, error) {
	i, err := readIDs(object)
	return i.ID, err
}

// refundPayment is for events about refunds, whose object is a charge or a refund;
// both name the payment intent. One without has bought no credits.
func refundPayment(_ context.Context, object []byte) (string, error) {
	i, err := readIDs(object)
	return i.PaymentIntent, err
}
