package stripesim

import (
	"encoding/json"
	"slices"
	"strconv"
)

// encode appends a value as json.Marshal would write it, byte for byte, without
// reflection for the kinds of values that objects are made of. Answers are most of
// what the simulator does; their encoding was most of an answer.
func encode(b []byte, value any) ([]byte, error) {
	switch v := value.(type) {
	case nil:
		return append(b, "null"...), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case int:
		return strconv.AppendInt(b, int64(v), 10), nil
	case int64:
		return strconv.AppendInt(b, v, 10), nil
	case string:
		return encodeText(b, v)
	case object:
		return encodeObject(b, v)
	case []any:
		if v == nil {
			return append(b, "null"...), nil
		}
		b = append(b, '[')
		for i, item := range v {
			if i > 0 {
				b = append(b, ',')
			}
			var err error
			if b, err = encode(b, item); err != nil {
				return b, err
			}
		}
		return append(b, ']'), nil
	}
	other, err := json.Marshal(value)
	return append(b, other...), err
}

func encodeObject(b []byte, o object) ([]byte, error) {
	if o == nil {
		return append(b, "null"...), nil
	}
	var few [48]string // the largest of Stripe's objects have about so many members
	names := few[:0]
	for name := range o {
		names = append(names, name)
	}
	slices.Sort(names)
	b = append(b, '{')
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = encodeText(b, name); err != nil {
			return b, err
		}
		if b, err = encode(append(b, ':'), o[name]); err != nil {
			return b, err
		}
	}
	return append(b, '}'), nil
}

func encodeText(b []byte, s string) ([]byte, error) {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ', c > '~', c == '"', c == '\\', c == '<', c == '>', c == '&':
			quoted, err := json.Marshal(s)
			return append(b, quoted...), err
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"'), nil
}
