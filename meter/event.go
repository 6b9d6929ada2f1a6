package meter

import (
	"encoding/hex"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"tallystick/api"
	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// event is a CloudEvent as it came, in whichever mode.
type event struct {
	attributes map[string]string // texts, without those that are null
	data       jsontext.Value    // nil: none
	problems   fault.Problems    // of its form
	mistaken   map[string]bool   // attributes that are among them

	attributesAt string // begin of the pointer to an attribute
	mediaAt      string // pointer to the media type of data
	dataAt       string // pointer to data
}

const specVersion = "1.0"

const (
	errText     = "must be a text that is not empty and has no control characters"
	errMember   = "is no attribute of CloudEvents: their names are lower-case letters and digits"
	errDataJSON = "must be application/json: the quantity is read from a JSON object"
)

// structuredEvent reads an event in CloudEvents' JSON format. What is wrong with
// its members is among its problems; an error says that it is no JSON object.
func structuredEvent(body []byte) (*event, error) {
	var members map[string]jsontext.Value
	if err := web.DecodeBytes(body, &members); err != nil {
		return nil, err
	}
	e := &event{attributes: map[string]string{}, mistaken: map[string]bool{}, attributesAt: "/", mediaAt: "/datacontenttype", dataAt: "/data"}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		value := members[name]
		switch {
		case value.Kind() == 'n': // the format's way to say that it is absent
		case name == "data":
			e.data = value
		case name == "data_base64":
			e.problems.Addf("/data_base64", "must not be given: the quantity is read from a JSON object in data")
		case !isAttribute(name):
			e.mistake(name, errMember)
		default:
			e.attribute(name, value)
		}
	}
	return e, nil
}

// coreAttributes are those of the specification, all of them texts.
var coreAttributes = []string{"datacontenttype", "dataschema", "id", "source", "specversion", "subject", "time", "type"}

// attribute takes a member of the JSON format. An extension may be a truth value
// or a whole number, too.
func (e *event) attribute(name string, value jsontext.Value) {
	switch kind := value.Kind(); {
	case kind == '"':
		var text string
		_ = json.Unmarshal(value, &text) // a text is one: the event was decoded
		e.attributes[name] = text
	case slices.Contains(coreAttributes, name):
		e.mistake(name, "must be a text")
	case kind == 't', kind == 'f':
	case kind == '0':
		if _, err := strconv.ParseInt(string(value), 10, 32); err != nil {
			e.mistake(name, "must be a whole number of 32 bits where it is a number")
		}
	default:
		e.mistake(name, "must be a text, a whole number or a truth value")
	}
}

// binaryEvent reads an event whose attributes are headers and whose data is the
// body. An error says that the body is no JSON.
func binaryEvent(header http.Header, body []byte) (*event, error) {
	e := &event{attributes: map[string]string{}, mistaken: map[string]bool{}, attributesAt: "#header/ce-", mediaAt: "#header/Content-Type"}
	if media := header.Get("Content-Type"); media != "" {
		e.attributes["datacontenttype"] = media
	}
	if len(body) > 0 {
		if err := web.DecodeBytes(body, &e.data); err != nil {
			return nil, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(header)) {
		name, ok := strings.CutPrefix(strings.ToLower(key), "ce-")
		switch {
		case !ok:
		case name == "datacontenttype", name == "data":
			e.mistake(name, "must not be given: data is the body, and Content-Type says what it is")
		case !isAttribute(name):
			e.mistake(name, errMember)
		case len(header[key]) > 1:
			e.mistake(name, "must be given once")
		default:
			text, mistake := headerText(header[key][0])
			if mistake != "" {
				e.mistake(name, mistake)
			}
			e.attributes[name] = text
		}
	}
	return e, nil
}

// headerText decodes the value of a header as the HTTP binding has it: quotes
// first, then one round of percent-decoding.
func headerText(value string) (text, mistake string) {
	if inner, ok := strings.CutPrefix(value, `"`); ok && strings.HasSuffix(inner, `"`) {
		value = unquote(strings.TrimSuffix(inner, `"`))
	}
	var b strings.Builder
	for i := 0; i < len(value); i++ {
		if value[i] != '%' {
			b.WriteByte(value[i])
			continue
		}
		octet, err := hex.DecodeString(value[i+1 : min(i+3, len(value))])
		if err != nil || len(octet) != 1 {
			return "", "must be percent-encoded: a % itself is written %25"
		}
		b.WriteByte(octet[0])
		i += 2
	}
	if !utf8.ValidString(b.String()) {
		return "", "must be UTF-8, percent-encoded"
	}
	return b.String(), ""
}

// unquote takes the backslashes out of a quoted string's inside.
func unquote(inner string) string {
	var b strings.Builder
	for i := 0; i < len(inner); i++ {
		if inner[i] == '\\' && i+1 < len(inner) {
			i++
		}
		b.WriteByte(inner[i])
	}
	return b.String()
}

func isAttribute(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") == "" // both ends inwards: nothing else is left
}

func pointerTo(base, name string) string {
	return base + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}

// copied is an event whose problems and mistakes are its own.
func (e *event) copied() *event {
	c := *e
	c.problems, c.mistaken = e.problems.Copy(), maps.Clone(e.mistaken)
	return &c
}

// usage makes a usage request of an event whose meter's quantity is in f. What is
// wrong with the event is added to its problems; the rest is for validation, in
// these places.
func (e *event) usage(f *field) (q api.UsageRequest, in places) {
	at := func(name string) string { return e.attributesAt + name }
	for _, name := range slices.Sorted(maps.Keys(e.attributes)) {
		if text := e.attributes[name]; text == "" || strings.ContainsFunc(text, unicode.IsControl) {
			e.mistake(name, errText)
		}
	}
	for _, name := range []string{"id", "source"} {
		if e.attributes[name] == "" {
			e.mistake(name, "must be given: source and id are the key of what is charged")
		}
	}
	if _, err := url.Parse(e.attributes["source"]); err != nil {
		e.mistake("source", "must be a URI reference")
	}
	if e.attributes["specversion"] != specVersion {
		e.mistake("specversion", "must be "+specVersion)
	}
	q = api.UsageRequest{ID: eventID(e.attributes["source"], e.attributes["id"]), Account: e.attributes["subject"], Meter: e.attributes["type"]}
	if text, given := e.attributes["time"]; given {
		if t, err := time.Parse(time.RFC3339, text); err == nil {
			q.OccurredAt = &t
		} else {
			e.mistake("time", "must be a time such as 2026-01-31T00:00:00Z")
		}
	}
	e.readData(f, &q)
	return q, places{
		account: at("subject"), meter: at("type"), quantity: pointerTo(e.dataAt+"/", f.Value), occurredAt: at("time"), dimensions: e.dataAt + "/" + dimensionsField,
	}
}

// mistake notes what is wrong with an attribute, the first that is found of each.
func (e *event) mistake(name, message string) {
	if !e.mistaken[name] {
		e.mistaken[name] = true
		e.problems.Addf(pointerTo(e.attributesAt, name), "%s", message)
	}
}

// readData takes quantity and dimensions out of the data. An event of a meter that
// counts says by itself that it is one.
func (e *event) readData(f *field, q *api.UsageRequest) {
	if media := e.attributes["datacontenttype"]; media != "" && !isJSON(media) {
		e.problems.Addf(e.mediaAt, errDataJSON)
		q.Quantity = "1" // its absence is no further mistake
		return
	}
	var members map[string]jsontext.Value
	if e.data != nil && (e.data.Kind() != '{' || json.Unmarshal(e.data, &members) != nil) {
		e.problems.Addf(e.dataAt, "must be a JSON object")
		q.Quantity = "1"
		return
	}
	if dimensions := members[dimensionsField]; dimensions != nil && dimensions.Kind() != 'n' {
		q.Dimensions = e.readDimensions(dimensions)
	}
	switch value := members[f.Value]; {
	case value != nil:
		_ = q.Quantity.UnmarshalJSON(value) // keeps whatever it is, for the validation
	case f.Counts:
		q.Quantity = "1"
	case f.unknown:
		e.problems.Addf(pointerTo(e.dataAt+"/", f.Value), "must be given: there is no meter of the event's type that would name another member")
		q.Quantity = "1"
	default:
		e.problems.Addf(pointerTo(e.dataAt+"/", f.Value), "must be given: it is the quantity of this meter")
		q.Quantity = "1"
	}
}

func (e *event) readDimensions(raw jsontext.Value) map[string]string {
	pointer := e.dataAt + "/" + dimensionsField
	var members map[string]jsontext.Value
	if json.Unmarshal(raw, &members) != nil {
		e.problems.Addf(pointer, "must be a JSON object of texts")
		return nil
	}
	dimensions := make(map[string]string, len(members))
	for _, name := range slices.Sorted(maps.Keys(members)) {
		var text string
		if members[name].Kind() != '"' || json.Unmarshal(members[name], &text) != nil {
			e.problems.Addf(pointerTo(pointer+"/", name), "must be a text")
		}
		dimensions[name] = text
	}
	return dimensions
}

// Form of an eventID.
const (
	eventPrefix = "event@" // no id that a caller chooses has an @
	eventIDMax  = 160
)

// eventID is the id of the usage that an event makes: a function of source and id
// alone, one-to-one, and the same for ever, because it is the guard of a charge.
// Where source has only A-Z a-z 0-9 . _ : - / and id only the same without /, and
// there is room, it is "event@", the source with each / written ~, "@" and the id;
// else "event@" and 64 hexadecimal digits: SHA-256 over "<bytes of source>:<source><bytes of id>:<id>".
func eventID(source, id string) string {
	plain := form{least: 1, most: eventIDMax}
	if plain.MatchString(strings.ReplaceAll(source, "/", ".")) && plain.MatchString(id) { // no source of this form has a ~ of its own
		if readable := eventPrefix + strings.ReplaceAll(source, "/", "~") + "@" + id; len(readable) <= eventIDMax {
			return readable
		}
	}
	return eventPrefix + hex.EncodeToString(hashTexts(source, id))
}
