package conformance

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stripe/stripe-go/v76"
)

// lostMembers compares an object with the value that stripe-go made of it, and
// names the members that stripe-go knows and does not hold as they were.
func lostMembers(o map[string]any, decoded any) []string {
	return lost(o, reflect.ValueOf(decoded), "")
}

func lost(want any, got reflect.Value, path string) []string {
	for got.Kind() == reflect.Pointer || got.Kind() == reflect.Interface {
		if got.IsNil() {
			if isZero(want) {
				return nil
			}
			return []string{fmt.Sprintf("%s: %v is lost", path, want)}
		}
		got = got.Elem()
	}
	switch w := want.(type) {
	case nil:
		return nil
	case map[string]any:
		return lostIn(w, got, path)
	case []any:
		if got.Kind() != reflect.Slice || got.Len() != len(w) {
			return []string{fmt.Sprintf("%s: a list of %d became %v", path, len(w), got)}
		}
		var all []string
		for i, item := range w {
			all = append(all, lost(item, got.Index(i), fmt.Sprintf("%s[%d]", path, i))...)
		}
		return all
	}
	if got.Kind() == reflect.Struct { // an id, where stripe-go has the object
		if id := got.FieldByName("ID"); id.IsValid() && id.String() == want {
			return nil
		}
		return []string{fmt.Sprintf("%s: the id %v is lost", path, want)}
	}
	return lostScalar(want, got, path)
}

func lostScalar(want any, got reflect.Value, path string) []string {
	encoded, err := json.Marshal(got.Interface())
	if err != nil {
		return []string{path + ": " + err.Error()}
	}
	var back any
	if err := json.Unmarshal(encoded, &back); err != nil || fmt.Sprint(back) != fmt.Sprint(want) {
		return []string{fmt.Sprintf("%s: %v became %v", path, want, back)}
	}
	return nil
}

// lostIn looks at the members of an object. Those without a field are none of
// stripe-go's business: the document judges them.
func lostIn(want map[string]any, got reflect.Value, path string) []string {
	if got.Kind() == reflect.Map || got.Kind() == reflect.Slice {
		return nil // metadata, or an event's raw object
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if field := fieldOf(got, name); field.IsValid() {
			all = append(all, lost(want[name], field, path+"."+name)...)
		}
	}
	return all
}

// fieldOf finds the field of a JSON name, also in embedded structs.
func fieldOf(v reflect.Value, name string) reflect.Value {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous && v.Field(i).Kind() == reflect.Struct {
			if inner := fieldOf(v.Field(i), name); inner.IsValid() {
				return inner
			}
		}
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

func isZero(v any) bool {
	switch w := v.(type) {
	case nil:
		return true
	case map[string]any:
		return len(w) == 0
	case []any:
		return len(w) == 0
	}
	return false
}

// TestTheComparisonSeesWhatIsLost plants differences.
func TestTheComparisonSeesWhatIsLost(t *testing.T) {
	t.Parallel()
	o := map[string]any{"id": "re_1", "amount": 5.0, "charge": "ch_1", "metadata": map[string]any{"a": "b"}, "unknown": true}
	good := &stripe.Refund{ID: "re_1", Amount: 5, Charge: &stripe.Charge{ID: "ch_1"}, Metadata: map[string]string{"a": "b"}}
	if got := lostMembers(o, good); len(got) > 0 {
		t.Errorf("nothing is lost, and it says %q", got)
	}
	for _, bad := range []*stripe.Refund{
		{ID: "re_1", Amount: 4, Charge: &stripe.Charge{ID: "ch_1"}},
		{ID: "re_1", Amount: 5},
		{ID: "re_1", Amount: 5, Charge: &stripe.Charge{ID: "ch_2"}},
		{Amount: 5, Charge: &stripe.Charge{ID: "ch_1"}},
	} {
		if got := lostMembers(o, bad); len(got) != 1 {
			t.Errorf("one loss in %+v gives %q", bad, got)
		}
	}
}

// goType makes an empty value of stripe-go's type for an object.
func goType(name string) any {
	types := map[string]func() any{
		"customer": func() any { return new(stripe.Customer) }, "product": func() any { return new(stripe.Product) }, "price": func() any { return new(stripe.Price) },
		"checkout.session": func() any { return new(stripe.CheckoutSession) }, "item": func() any { return new(stripe.LineItem) },
		"payment_intent": func() any { return new(stripe.PaymentIntent) }, "charge": func() any { return new(stripe.Charge) },
		"refund": func() any { return new(stripe.Refund) }, "billing.meter": func() any { return new(stripe.BillingMeter) },
		"billing.meter_event":            func() any { return new(stripe.BillingMeterEvent) },
		"billing.meter_event_adjustment": func() any { return new(stripe.BillingMeterEventAdjustment) },
		"billing.meter_event_summary":    func() any { return new(stripe.BillingMeterEventSummary) },
		"event":                          func() any { return new(stripe.Event) }, "webhook_endpoint": func() any { return new(stripe.WebhookEndpoint) },
		"payment_method": func() any { return new(stripe.PaymentMethod) }, "dispute": func() any { return new(stripe.Dispute) },
		"balance_transaction": func() any { return new(stripe.BalanceTransaction) }, "balance": func() any { return new(stripe.Balance) },
		"invoice": func() any { return new(stripe.Invoice) }, "line_item": func() any { return new(stripe.InvoiceLineItem) },
		"invoiceitem": func() any { return new(stripe.InvoiceItem) }, "credit_note": func() any { return new(stripe.CreditNote) },
		"credit_note_line_item":        func() any { return new(stripe.CreditNoteLineItem) },
		"customer_balance_transaction": func() any { return new(stripe.CustomerBalanceTransaction) },
		"subscription":                 func() any { return new(stripe.Subscription) }, "subscription_item": func() any { return new(stripe.SubscriptionItem) },
		"usage_record": func() any { return new(stripe.UsageRecord) }, "usage_record_summary": func() any { return new(stripe.UsageRecordSummary) },
		"test_helpers.test_clock": func() any { return new(stripe.TestHelpersTestClock) },
	}
	if types[name] == nil {
		return nil
	}
	return types[name]()
}
