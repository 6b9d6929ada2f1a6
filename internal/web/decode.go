package web

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"tallystick/internal/fault"
)

// Bounds of request bodies, in bytes.
const (
	BodyMax      = 1 << 20
	BatchBodyMax = 8 << 20
)

// Refusals that every route with a body shares.
var (
	ErrTooLarge  = &fault.Error{Kind: fault.KindTooLarge, Code: "body_too_large", Public: "the body is larger than this route takes"}
	ErrMediaType = &fault.Error{Kind: fault.KindMediaType, Code: "unsupported_media_type", Public: "send the body as application/json"}
)

// Decode reads a JSON body of at most limit bytes into dst. It refuses what two
// readers could understand differently: unknown and duplicate members, invalid
// UTF-8, anything after the document. NUL is refused because Postgres has no
// text with it.
func Decode(w http.ResponseWriter, r *http.Request, limit int64, dst any) error {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if r.Header.Get("Content-Type") != "" && (err != nil || media != "application/json") {
		return ErrMediaType
	}
	body, err := ReadBody(w, r, limit)
	if err != nil {
		return err
	}
	return DecodeBytes(body, dst)
}

// ReadBody reads a body of at most limit bytes, whatever its type.
func ReadBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, ErrTooLarge.Withf("the body is larger than %d bytes", limit)
	}
	if err != nil {
		return nil, fault.ErrInvalid.Withf("the body could not be read to its end").With(err)
	}
	return body, nil
}

// DecodeBytes is Decode for a body that has been read.
func DecodeBytes(body []byte, dst any) error {
	if holdsNUL(body) {
		return invalid("", "must not hold the character U+0000")
	}
	return refusal(json.Unmarshal(body, dst, json.RejectUnknownMembers(true)))
}

// DecodeItems gives the items of a JSON array for DecodeBytes, one by one: what is
// well-formed as JSON but refused for other reasons spoils its own item only.
func DecodeItems(body []byte) ([]jsontext.Value, error) {
	var items []jsontext.Value
	err := refusal(json.Unmarshal(body, &items, jsontext.AllowDuplicateNames(true)))
	if err == nil && items == nil {
		err = invalid("", "must be an array, not null")
	}
	return items, err
}

// refusal makes an error for the caller of what the JSON library says.
func refusal(err error) error {
	if err == nil {
		return nil
	}
	var semantic *json.SemanticError
	if errors.As(err, &semantic) {
		return invalid(string(semantic.JSONPointer), meaning(semantic))
	}
	var syntactic *jsontext.SyntacticError
	if errors.As(err, &syntactic) {
		return invalid(string(syntactic.JSONPointer), "is no valid JSON: "+plain(syntactic.Err))
	}
	return invalid("", "is no valid JSON")
}

func invalid(pointer, message string) error {
	var p fault.Problems
	p.Addf(pointer, "%s", message)
	return p.Err(fault.ErrInvalid)
}

func meaning(e *json.SemanticError) string {
	switch {
	case errors.Is(e.Err, json.ErrUnknownName):
		return "is not a member that this route knows"
	case e.Err != nil:
		return plain(e.Err)
	case e.JSONKind == 0:
		return "has a value of the wrong kind"
	}
	return "must not be of the JSON kind " + e.JSONKind.String()
}

func plain(err error) string {
	if err == nil {
		return "it cannot be read"
	}
	return strings.TrimPrefix(err.Error(), "jsontext: ")
}

// holdsNUL finds the escape of U+0000; as a raw byte it is no valid JSON anyway.
func holdsNUL(body []byte) bool {
	for rest := body; ; {
		i := bytes.Index(rest, []byte(`\u0000`))
		if i < 0 {
			return false
		}
		backslashes := 0
		for i-1-backslashes >= 0 && rest[i-1-backslashes] == '\\' {
			backslashes++
		}
		if backslashes%2 == 0 {
			return true
		}
		rest = rest[i+6:]
	}
}
