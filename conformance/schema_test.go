package conformance

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stripe/stripe-mock/embedded"
)

// document is Stripe's own description of its API.
var document = sync.OnceValues(func() (*openapi3.T, error) {
	return openapi3.NewLoader().LoadFromData(embedded.OpenAPISpec)
})

func stripeDocument(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := document()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// operation finds what the document says of a call.
func operation(doc *openapi3.T, method, path string) *openapi3.Operation {
	parts := strings.Split(path, "/")
	var best *openapi3.PathItem
	fewest := len(parts) + 1
	for template, item := range doc.Paths.Map() {
		wild, matches := 0, true
		names := strings.Split(template, "/")
		if len(names) != len(parts) {
			continue
		}
		for i, name := range names {
			if strings.HasPrefix(name, "{") {
				wild++
			} else if name != parts[i] {
				matches = false
			}
		}
		if matches && wild < fewest {
			best, fewest = item, wild
		}
	}
	if best == nil {
		return nil
	}
	return best.GetOperation(method)
}

// answerSchema is the schema of what a call answers with a status.
func answerSchema(doc *openapi3.T, method, path string, status int) (*openapi3.Schema, error) {
	op := operation(doc, method, path)
	if op == nil {
		return nil, fmt.Errorf("%s %s is not in Stripe's document", method, path)
	}
	response := op.Responses.Status(status)
	if response == nil {
		response = op.Responses.Default()
	}
	content := response.Value.Content.Get("application/json")
	if content == nil {
		return nil, fmt.Errorf("%s %s answers no JSON with %d", method, path, status)
	}
	return content.Schema.Value, nil
}

// problems says everything that is wrong with an answer: what the schema does not
// allow, and members that it does not know.
func problems(doc *openapi3.T, schema *openapi3.Schema, value any) []string {
	var all []string
	if err := schema.VisitJSON(value, openapi3.MultiErrors()); err != nil {
		all = append(all, err.Error())
	}
	all = append(all, unknown(doc, schema, value, "")...)
	slices.Sort(all)
	return slices.Compact(all)
}

// unknown lists members that no schema knows. Where the document leaves an object
// open (an event's data), the object's own schema is found by its name.
func unknown(doc *openapi3.T, schema *openapi3.Schema, value any, path string) []string {
	switch v := value.(type) {
	case map[string]any:
		return unknownMembers(doc, schema, v, path)
	case []any:
		var all []string
		for i, item := range v {
			if schema.Items != nil {
				all = append(all, unknown(doc, schema.Items.Value, item, fmt.Sprintf("%s[%d]", path, i))...)
			}
		}
		return all
	}
	return nil
}

func unknownMembers(doc *openapi3.T, schema *openapi3.Schema, v map[string]any, path string) []string {
	if choices := slices.Concat(schema.AnyOf, schema.OneOf); len(choices) > 0 {
		return unknownInBest(doc, choices, v, path)
	}
	name, _ := v["object"].(string)
	if len(schema.Properties) == 0 && name != "" {
		named := doc.Components.Schemas[name]
		if named == nil {
			return []string{fmt.Sprintf("%s: Stripe has no object %q", path, name)}
		}
		return problems(doc, named.Value, v)
	}
	if len(schema.Properties) == 0 {
		return nil // a free map, such as metadata
	}
	var all []string
	for _, member := range slices.Sorted(maps.Keys(v)) {
		property := schema.Properties[member]
		switch {
		case property != nil:
			all = append(all, unknown(doc, property.Value, v[member], path+"."+member)...)
		case schema.AdditionalProperties.Schema != nil:
			all = append(all, unknown(doc, schema.AdditionalProperties.Schema.Value, v[member], path+"."+member)...)
		default:
			all = append(all, path+"."+member+": the document does not know this member")
		}
	}
	return all
}

// unknownInBest takes the choice that fits: the one of the object's name, else the
// one with the fewest complaints.
func unknownInBest(doc *openapi3.T, choices openapi3.SchemaRefs, v map[string]any, path string) []string {
	var best []string
	found := false
	for _, choice := range choices {
		if !choice.Value.Type.Is("object") && len(choice.Value.Properties) == 0 && len(choice.Value.AnyOf) == 0 {
			continue
		}
		got := unknown(doc, choice.Value, v, path)
		if !choice.Value.IsEmpty() && choice.Value.VisitJSON(v) != nil {
			got = append(got, path+": fits no choice of the document")
		}
		if !found || len(got) < len(best) {
			best, found = got, true
		}
	}
	return best
}

func decode(t *testing.T, body []byte) any {
	t.Helper()
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return value
}

// TestTheCheckSeesWhatIsWrong plants mistakes in a good object.
func TestTheCheckSeesWhatIsWrong(t *testing.T) {
	t.Parallel()
	doc := stripeDocument(t)
	schema, err := answerSchema(doc, http.MethodGet, "/v1/refunds/re_1", http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	good := `{"id": "re_1", "object": "refund", "amount": 1, "created": 1, "currency": "usd", "charge": "ch_1", "metadata": {"a": "b"}, "status": "succeeded"}`
	if got := problems(doc, schema, decode(t, []byte(good))); len(got) > 0 {
		t.Fatalf("a good refund is refused: %q", got)
	}
	for _, tc := range []struct{ name, from, to string }{
		{"an unknown member", `"amount": 1`, `"amount": 1, "colour": "red"`},
		{"an unknown member further in", `"charge": "ch_1"`, `"destination_details": {"type": "card", "card": {"type": "refund", "colour": "red"}}`},
		{"a missing member", `"amount": 1, `, ``},
		{"another type", `"amount": 1`, `"amount": "1"`},
		{"null where it may not be", `"created": 1`, `"created": null`},
	} {
		if bad := strings.Replace(good, tc.from, tc.to, 1); bad == good || len(problems(doc, schema, decode(t, []byte(bad)))) == 0 {
			t.Errorf("%s is not seen", tc.name)
		}
	}
	event, err := answerSchema(doc, http.MethodGet, "/v1/events/evt_1", http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	carried := `{"id": "evt_1", "object": "event", "created": 1, "livemode": false, "pending_webhooks": 0, "type": "charge.refund.updated", "data": {"object": ` +
		strings.Replace(good, `"amount": 1`, `"amount": 1, "colour": "red"`, 1) + `}}`
	if got := problems(doc, event, decode(t, []byte(carried))); len(got) != 1 || !strings.Contains(got[0], "colour") {
		t.Errorf("an unknown member of an event's object gives %q", got)
	}
}
