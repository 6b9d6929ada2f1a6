package fault_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"tallystick/internal/fault"
)

func TestTextIsWhatPostgresTakes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ text, want string }{
		{"", ""},
		{"as it is", "as it is"},
		{"a\x00b", "ab"},
		{"a\xffb", "ab"},
		{strings.Repeat("x", 1000), strings.Repeat("x", 1000)},
		{strings.Repeat("x", 1001), strings.Repeat("x", 1000)},
		{strings.Repeat("x", 999) + "é", strings.Repeat("x", 999)},
		{strings.Repeat("x", 998) + "é", strings.Repeat("x", 998) + "é"},
	} {
		if got := fault.Text(tc.text); got != tc.want || !utf8.ValidString(got) {
			t.Errorf("Text(%.20q, %d bytes) = %d bytes, want %d", tc.text, len(tc.text), len(got), len(tc.want))
		}
	}
}
