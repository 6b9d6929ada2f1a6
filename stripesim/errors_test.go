package stripesim_test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// refusal is a row of the table of errors: what leads up to a call, the call, and the
// error that it has to be answered with. $name stands for what setUp has made.
type refusal struct {
	name   string
	setUp  func(u *user) map[string]string
	method string
	path   string
	form   string
	key    string            // Idempotency-Key
	header map[string]string // instead of the usual, such as Authorization
	with   stripesim.Switches
	tries  bool // the error is the outcome of a try to pay, which is kept

	status  int
	kind    string // type
	code    string
	param   string
	message string            // exact, or the beginning of it when it ends with …
	answers map[string]string // headers; "" must not be there
}

// refusals are the rows by topic; a topic adds its function.
func refusals() []refusal {
	return slices.Concat(protocolErrors(), keyErrors(), faultErrors(), customerErrors(), catalogErrors(), checkoutErrors(), paymentErrors(), refundErrors(),
		meterErrors(), meterEventErrors(), summaryErrors(), eventErrors(), usageErrors(), subscriptionErrors(), clockErrors(), invoiceErrors(), creditErrors(), disputeErrors(), lateErrors())
}

// errorTime is when the rows play.
const errorTime = 1_700_000_000

// stillClock stands still until it is advanced.
type stillClock struct{ now time.Time }

func (c *stillClock) Now() time.Time { return c.now }

func (c *stillClock) Advance(d time.Duration) { c.now = c.now.Add(d) }

// TestErrors makes every refusal of the table, each at a simulator of its own, and
// wants that nothing has changed by it.
func TestErrors(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, row := range refusals() {
		if names[row.name] {
			t.Errorf("two rows are called %q", row.name)
		}
		names[row.name] = true
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			u := newUser(t, stripesim.Options{Clock: &stillClock{now: time.Unix(errorTime, 0).UTC()}, Switches: row.with})
			made := map[string]string{}
			if row.setUp != nil {
				made = row.setUp(u)
			}
			fill := func(s string) string { return filled(made, s) }
			header := []string{}
			for name, value := range row.header {
				header = append(header, name, value)
			}
			if row.key != "" {
				header = append(header, "Idempotency-Key", row.key)
			}
			before := counts(u)
			a := u.call(row.method, fill(row.path), fill(row.form), header...)
			u.refused(a, row.status, row.kind, row.code, fill(row.param))
			judgeMessage(t, a, fill(row.message), row.code)
			for name, want := range row.answers {
				if got := a.Header.Get(name); got != fill(want) {
					t.Errorf("%s is %q, want %q", name, got, fill(want))
				}
			}
			judgeHeaders(t, a)
			if after := counts(u); !row.tries && !maps.Equal(before, after) {
				t.Errorf("the refusal has changed something: %v became %v", before, after)
			}
			if row.method == post && row.key == "" && row.status < http.StatusTooManyRequests && !row.tries && row.status != http.StatusUnauthorized {
				refusedByKey(t, u, row, a, fill)
			}
		})
	}
}

// refusedByKey makes a call that is refused under a key, twice: a key changes nothing
// about a refusal, and is free for another call afterwards.
func refusedByKey(t *testing.T, u *user, row refusal, first reply, fill func(string) string) {
	t.Helper()
	before := counts(u)
	for range 2 {
		a := u.call(row.method, fill(row.path), fill(row.form), "Idempotency-Key", "refused")
		if a.Status != first.Status || fmt.Sprint(member(a.Body, "error", "message")) != fmt.Sprint(member(first.Body, "error", "message")) || a.Header.Get("Idempotent-Replayed") != "" {
			t.Errorf("under a key it is answered %d %s with %v", a.Status, a.Raw, a.Header)
		}
	}
	if after := counts(u); !maps.Equal(before, after) {
		t.Errorf("the refusals under a key have changed %v into %v", before, after)
	}
	u.must(post, "/v1/customers", "", "Idempotency-Key", "refused")
}

// counts counts the objects of each kind of which there are any.
func counts(u *user) map[string]int {
	all := u.State().Counts
	maps.DeleteFunc(all, func(_ string, n int) bool { return n == 0 })
	return all
}

// filled puts what was made where $name stands; $$ is a dollar.
func filled(made map[string]string, s string) string {
	return os.Expand(s, func(name string) string {
		if name == "$" {
			return "$"
		}
		return made[name]
	})
}

func judgeMessage(t *testing.T, a reply, want, code string) {
	t.Helper()
	e, _ := a.Body["error"].(map[string]any)
	got, _ := e["message"].(string)
	begins, open := strings.CutSuffix(want, "…")
	if (!open && got != want) || (open && !strings.HasPrefix(got, begins)) {
		t.Errorf("the message is %q, want %q", got, want)
	}
	if doc, _ := e["doc_url"].(string); (doc == "") != (code == "") {
		t.Errorf("doc_url is %q with the code %q", doc, code)
	}
}

// judgeHeaders wants what every answer of the API has.
func judgeHeaders(t *testing.T, a reply) {
	t.Helper()
	if id := a.Header.Get("Request-Id"); !strings.HasPrefix(id, "req_") {
		t.Errorf("Request-Id is %q", id)
	}
	if a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Stripe-Version") != stripesim.APIVersion {
		t.Errorf("the headers are %v", a.Header)
	}
}

const (
	invalidRequest = "invalid_request_error"
	post, get      = http.MethodPost, http.MethodGet
)

// made gives one name to what setUp has made.
func made(name, path, form string) func(*user) map[string]string {
	return func(u *user) map[string]string { return map[string]string{name: u.make(path, form)} }
}

// paidIntent is a payment of 1000 with its charge.
func paidIntent(u *user) map[string]string {
	pi := u.must(post, "/v1/payment_intents", "amount=1000&currency=usd&confirm=true&payment_method=pm_card_visa")
	intent, _ := pi["id"].(string)
	charge, _ := pi["latest_charge"].(string)
	return map[string]string{"intent": intent, "charge": charge}
}

// after makes something more with what an earlier step has made.
func after(first func(*user) map[string]string, name, path, form string) func(*user) map[string]string {
	return func(u *user) map[string]string {
		all := first(u)
		all[name] = u.make(filled(all, path), filled(all, form))
		return all
	}
}

func protocolErrors() []refusal {
	tooLong := strings.Repeat("k", 256)
	return []refusal{
		{
			name: "no key", method: get, path: "/v1/customers", header: map[string]string{"Authorization": ""}, status: 401, kind: invalidRequest,
			message: "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
			answers: map[string]string{"WWW-Authenticate": `Bearer realm="Stripe"`, "Stripe-Should-Retry": ""},
		},
		{
			name: "a live key", method: get, path: "/v1/customers", header: map[string]string{"Authorization": "Bearer sk_live_0123456789"}, status: 401, kind: invalidRequest,
			message: "Invalid API Key provided: sk_live_****",
		},
		{
			name: "an unknown URL", method: get, path: "/v1/custmers", status: 404, kind: invalidRequest,
			message: "Unrecognized request URL (GET: /v1/custmers). Please see https://stripe.com/docs or we can help at https://support.stripe.com/.",
		},
		{name: "an unknown parameter", method: post, path: "/v1/customers", form: "colour=red", status: 400, kind: invalidRequest, code: "parameter_unknown", param: "colour", message: "Received unknown parameter: colour"},
		{
			name: "an unknown parameter further in", method: post, path: "/v1/customers", form: "address[planet]=x", status: 400, kind: invalidRequest,
			code: "parameter_unknown", param: "address[planet]", message: "Received unknown parameter: address[planet]",
		},
		{name: "an unknown filter", method: get, path: "/v1/customers", form: "colour=red", status: 400, kind: invalidRequest, code: "parameter_unknown", param: "colour", message: "Received unknown parameter: colour"},
		{name: "no whole number", method: get, path: "/v1/customers", form: "limit=1x", status: 400, kind: invalidRequest, code: "parameter_invalid_integer", param: "limit", message: "Invalid integer: 1x"},
		{
			name: "a number beyond 64 bits", method: post, path: "/v1/payment_intents", form: "currency=usd&amount=9223372036854775808", status: 400, kind: invalidRequest,
			code: "parameter_invalid_integer", param: "amount", message: "Invalid integer: 9223372036854775808",
		},
		{name: "no boolean", method: post, path: "/v1/products", form: "name=x&active=yes", status: 400, kind: invalidRequest, param: "active", message: "Invalid boolean: yes"},
		{name: "a text where an object belongs", method: post, path: "/v1/customers", form: "address=x", status: 400, kind: invalidRequest, param: "address", message: "Invalid object"},
		{name: "a text where a list belongs", method: get, path: "/v1/events", form: "types=x", status: 400, kind: invalidRequest, param: "types", message: "Invalid array"},
		{name: "an object where a text belongs", method: post, path: "/v1/customers", form: "name[a]=x", status: 400, kind: invalidRequest, param: "name", message: "Invalid string"},
		{
			name: "metadata further in", method: post, path: "/v1/customers", form: "metadata[a][b]=x", status: 400, kind: invalidRequest, param: "metadata[a]",
			message: "Metadata values must be strings, but for key `a` you passed in a hash.",
		},
		{name: "brackets that do not match", method: post, path: "/v1/customers", form: "metadata[a=x", status: 400, kind: invalidRequest, param: "metadata[a", message: "Invalid parameter name: metadata[a"},
		{
			name: "a page of none", method: get, path: "/v1/customers", form: "limit=0", status: 400, kind: invalidRequest, code: "parameter_invalid_integer", param: "limit",
			message: "This value must be greater than or equal to 1 and less than or equal to 100 (sent: 0)",
		},
		{
			name: "a page of 101", method: get, path: "/v1/customers", form: "limit=101", status: 400, kind: invalidRequest, code: "parameter_invalid_integer", param: "limit",
			message: "This value must be greater than or equal to 1 and less than or equal to 100 (sent: 101)",
		},
		{
			name: "a cursor that is nobody's", method: get, path: "/v1/customers", form: "starting_after=cus_nobody", status: 400, kind: invalidRequest, code: "resource_missing",
			param: "starting_after", message: "No such customer: 'cus_nobody'",
		},
		{
			name: "a cursor backwards that is nobody's", method: get, path: "/v1/charges", form: "ending_before=ch_nobody", status: 400, kind: invalidRequest, code: "resource_missing",
			param: "ending_before", message: "No such charge: 'ch_nobody'",
		},
		{name: "a key that is too long", method: post, path: "/v1/customers", key: tooLong, status: 400, kind: invalidRequest, message: "Keys for idempotent requests can be at most 255 characters long. Your key was 256."},
	}
}

// keyErrors are those of idempotency keys.
func keyErrors() []refusal {
	used := func(path, form string) func(u *user) map[string]string {
		return func(u *user) map[string]string {
			u.call(post, path, form, "Idempotency-Key", "one")
			return nil
		}
	}
	mismatch := "Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key other than 'one' if you meant to execute a different request."
	return []refusal{
		{name: "a key with other parameters", setUp: used("/v1/customers", "name=a"), method: post, path: "/v1/customers", form: "name=b", key: "one", status: 400, kind: "idempotency_error", message: mismatch},
		{
			name: "a key at another endpoint", setUp: used("/v1/customers", "name=a"), method: post, path: "/v1/products", form: "name=a", key: "one", status: 400,
			kind: "idempotency_error", message: mismatch, answers: map[string]string{"Idempotent-Replayed": "", "Idempotency-Key": "one"},
		},
		{
			name: "a refusal of parameters is not stored", setUp: used("/v1/customers", "colour=red"), method: post, path: "/v1/customers", form: "shape=round", key: "one", status: 400,
			kind: invalidRequest, code: "parameter_unknown", param: "shape", message: "Received unknown parameter: shape", answers: map[string]string{"Idempotent-Replayed": ""},
		},
		{
			name: "a declined card is stored", setUp: used("/v1/payment_intents", "amount=50&currency=usd&confirm=true&payment_method=pm_card_chargeDeclined"), method: post,
			path: "/v1/payment_intents", form: "amount=50&currency=usd&confirm=true&payment_method=pm_card_chargeDeclined", key: "one", status: 402, kind: "card_error",
			code: "card_declined", message: "Your card was declined.", answers: map[string]string{"Idempotent-Replayed": "true"},
		},
		{
			name: "a 500 is stored", setUp: func(u *user) map[string]string {
				if err := u.AddFaults(&stripesim.Fault{Fault: "error_500_after", Times: 1}); err != nil {
					u.t.Fatal(err)
				}
				return used("/v1/customers", "name=a")(u)
			},
			method: post, path: "/v1/customers", form: "name=a", key: "one", status: 500, kind: "api_error", message: "An unknown error occurred",
			answers: map[string]string{"Idempotent-Replayed": "true"},
		},
	}
}

// faultErrors are those that a rule makes.
func faultErrors() []refusal {
	struck := func(f stripesim.Fault) func(u *user) map[string]string {
		return func(u *user) map[string]string {
			if err := u.AddFaults(&f); err != nil {
				u.t.Fatal(err)
			}
			return nil
		}
	}
	limited := "Request rate limit exceeded. Learn more about rate limits here https://stripe.com/docs/rate-limits."
	return []refusal{
		{
			name: "the rate limit", setUp: struck(stripesim.Fault{Fault: "rate_limit"}), method: post, path: "/v1/customers", status: 429, kind: invalidRequest, code: "rate_limit",
			message: limited, answers: map[string]string{"Stripe-Rate-Limited-Reason": "global-rate", "Retry-After": ""},
		},
		{
			name: "the rate limit with a time", setUp: struck(stripesim.Fault{Fault: "rate_limit", RetryAfter: 3}), method: post, path: "/v1/customers", status: 429,
			kind: invalidRequest, code: "rate_limit", message: limited, answers: map[string]string{"Retry-After": "3"},
		},
		{
			name: "a lock", setUp: struck(stripesim.Fault{Fault: "lock_timeout"}), method: post, path: "/v1/customers", status: 429, kind: invalidRequest, code: "lock_timeout",
			message: "This object cannot be accessed right now because another API request or Stripe process is currently accessing it…", answers: map[string]string{"Stripe-Rate-Limited-Reason": ""},
		},
		{
			name: "a key that is in use", setUp: struck(stripesim.Fault{Fault: "conflict_409"}), method: post, path: "/v1/customers", key: "one", status: 409, kind: invalidRequest,
			code: "idempotency_key_in_use", message: "There is currently another in-progress request using this Idempotent Key…",
		},
		{name: "a 500", setUp: struck(stripesim.Fault{Fault: "error_500_before"}), method: post, path: "/v1/customers", status: 500, kind: "api_error", message: "An unknown error occurred"},
		{name: "a 503", setUp: struck(stripesim.Fault{Fault: "error_503"}), method: post, path: "/v1/customers", status: 503, kind: "api_error", message: "Stripe is temporarily unavailable."},
		{name: "a key that has expired", setUp: struck(stripesim.Fault{Fault: "unauthorized_401"}), method: get, path: "/v1/customers", status: 401, kind: invalidRequest, code: "api_key_expired", message: "Expired API Key provided: sk_test_****"},
	}
}

// missingErrors are the rows of objects that do not exist.
func missingErrors(what, param string, calls ...string) (rows []refusal) {
	for _, call := range calls {
		method, path, _ := strings.Cut(call, " ")
		id := ""
		for part := range strings.SplitSeq(path, "/") {
			if strings.HasSuffix(part, "_nobody") {
				id = part
			}
		}
		rows = append(rows, refusal{
			name: "nothing to " + call, method: method, path: path, status: 404, kind: invalidRequest, code: "resource_missing", param: param,
			message: "No such " + what + ": '" + id + "'",
		})
	}
	return rows
}

func customerErrors() []refusal {
	deleted := func(u *user) map[string]string {
		id := u.make("/v1/customers", "")
		u.must(http.MethodDelete, "/v1/customers/"+id, "")
		return map[string]string{"customer": id}
	}
	return append(missingErrors("customer", "id", "GET /v1/customers/cus_nobody", "POST /v1/customers/cus_nobody", "DELETE /v1/customers/cus_nobody"),
		refusal{
			name: "a change of a deleted customer", setUp: deleted, method: post, path: "/v1/customers/$customer", form: "name=x", status: 404, kind: invalidRequest,
			code: "resource_missing", param: "id", message: "No such customer: '$customer'",
		},
		refusal{
			name: "a second deletion of a customer", setUp: deleted, method: http.MethodDelete, path: "/v1/customers/$customer", status: 404, kind: invalidRequest,
			code: "resource_missing", param: "id", message: "No such customer: '$customer'",
		})
}

func catalogErrors() []refusal {
	product := made("product", "/v1/products", "name=x")
	rows := slices.Concat(missingErrors("product", "id", "GET /v1/products/prod_nobody", "POST /v1/products/prod_nobody"),
		missingErrors("price", "id", "GET /v1/prices/price_nobody", "POST /v1/prices/price_nobody"))
	return append(rows,
		refusal{name: "a product without a name", method: post, path: "/v1/products", status: 400, kind: invalidRequest, code: "parameter_missing", param: "name", message: "Missing required param: name."},
		refusal{
			name: "a product of another one's id", setUp: made("product", "/v1/products", "name=x&id=prod_x"), method: post, path: "/v1/products", form: "name=y&id=prod_x", status: 400,
			kind: invalidRequest, code: "resource_already_exists", param: "id", message: "Product already exists.",
		},
		refusal{name: "a price without a currency", method: post, path: "/v1/prices", form: "unit_amount=1", status: 400, kind: invalidRequest, code: "parameter_missing", param: "currency", message: "Missing required param: currency."},
		refusal{name: "a price without an amount", setUp: product, method: post, path: "/v1/prices", form: "currency=usd&product=$product", status: 400, kind: invalidRequest, code: "parameter_missing", param: "unit_amount", message: "Prices require an `unit_amount`…"},
		refusal{
			name: "a price with 13 places", setUp: product, method: post, path: "/v1/prices", form: "currency=usd&product=$product&unit_amount_decimal=0.0000000000001", status: 400,
			kind: invalidRequest, param: "unit_amount_decimal", message: "Invalid decimal: 0.0000000000001; must contain at maximum twelve decimal places.",
		},
		refusal{name: "a price of no product", method: post, path: "/v1/prices", form: "currency=usd&unit_amount=1&product=prod_nobody", status: 400, kind: invalidRequest, code: "resource_missing", param: "product", message: "No such product: 'prod_nobody'"},
		refusal{
			name: "a price of no meter leaves no product", method: post, path: "/v1/prices", status: 400, kind: invalidRequest, code: "resource_missing", param: "recurring[meter]",
			form:    "currency=usd&unit_amount=1&product_data[name]=x&recurring[interval]=month&recurring[usage_type]=metered&recurring[meter]=mtr_nobody",
			message: "No such billing meter: 'mtr_nobody'",
		},
		refusal{
			name: "a price that recurs without an interval", setUp: product, method: post, path: "/v1/prices", form: "currency=usd&unit_amount=1&product=$product&recurring[usage_type]=metered",
			status: 400, kind: invalidRequest, code: "parameter_missing", param: "recurring[interval]", message: "Missing required param: recurring[interval].",
		},
	)
}

func number(n int64) string { return strconv.FormatInt(n, 10) }
