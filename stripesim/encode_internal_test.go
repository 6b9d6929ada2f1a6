package stripesim

import (
	"encoding/json"
	"math"
	"testing"
)

// FuzzEncodeIsAsMarshal holds the encoder against encoding/json.
func FuzzEncodeIsAsMarshal(f *testing.F) {
	for _, s := range []string{
		`null`, `{"a":null,"b":[],"c":{},"d":[1,-2.50,1e400,true,false,"x",["y",{"z":""}]]}`, `"a\u0000\u001f\u007f\"\\/<>&é\u2028\ud800"`, `{"<":1,"é":2,"\"":3}`,
		`123456789012345678901234567890`, `[[[[[[1]]]]]]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var v any
		if decodeExact(data, &v) != nil {
			return
		}
		want, errWant := json.Marshal(v)
		got, err := encode(nil, v)
		if string(got) != string(want) || (err == nil) != (errWant == nil) {
			t.Errorf("%s is encoded as %s, want %s", data, got, want)
		}
	})
}

func TestEncodeOfGoValues(t *testing.T) {
	t.Parallel()
	var none object
	var empty []any
	for _, v := range []any{
		none, empty, object{"a": 1, "b": int64(math.MinInt64), "c": []string{"<x>"}, "d": json.Number("1.50"), "e": 0.5, "f": uint8(3), "g": []object{{"x": nil}}, "bad": "\xff\xfe"},
	} {
		want, _ := json.Marshal(v)
		if got, err := encode(nil, v); string(got) != string(want) || err != nil {
			t.Errorf("%v is encoded as %s %v, want %s", v, got, err, want)
		}
	}
	for _, v := range []any{math.NaN(), object{"a": []any{make(chan int)}}, json.Number("x")} {
		if got, err := encode(nil, v); err == nil {
			t.Errorf("%v is encoded as %s", v, got)
		}
	}
}
