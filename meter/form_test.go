package meter

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestFormsAreTheDocumentedOnes compares the forms with the patterns that
// openapi.yaml gives for them.
func TestFormsAreTheDocumentedOnes(t *testing.T) {
	t.Parallel()
	forms := map[string]form{
		`^[A-Za-z0-9._:-]{8,128}$`: idForm, `^[A-Za-z0-9._:@-]{1,128}$`: accountForm, `^[A-Za-z0-9._:-]{1,128}$`: meterForm,
		`^[A-Za-z0-9._:-]{1,100}$`: eventNameForm,
	}
	for pattern, f := range forms {
		want := regexp.MustCompile(pattern)
		for c := range 256 {
			for _, s := range []string{strings.Repeat(string([]byte{byte(c)}), 8), "prefixed" + string([]byte{byte(c)})} {
				if f.MatchString(s) != want.MatchString(s) {
					t.Errorf("%q: the form says %t, %s says otherwise", s, f.MatchString(s), pattern)
				}
			}
		}
		for _, n := range []int{0, 1, 7, 8, 100, 101, 128, 129} {
			if s := strings.Repeat("a", n); f.MatchString(s) != want.MatchString(s) {
				t.Errorf("%d characters: the form says %t, %s says otherwise", n, f.MatchString(s), pattern)
			}
		}
		rapid.Check(t, func(t *rapid.T) {
			s := rapid.String().Draw(t, "s")
			if f.MatchString(s) != want.MatchString(s) {
				t.Fatalf("%q: the form says %t, %s says otherwise", s, f.MatchString(s), pattern)
			}
		})
	}
}

// TestFingerprintsStayWhatTheyWere holds the hash against its definition: stored
// fingerprints must match the same request for ever.
func TestFingerprintsStayWhatTheyWere(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.SliceOfN(rapid.String(), 0, 12).Draw(t, "texts")
		h := sha256.New()
		for _, text := range texts {
			_, _ = fmt.Fprintf(h, "%d:%s", len(text), text)
		}
		if got := hashTexts(texts...); !bytes.Equal(got, h.Sum(nil)) {
			t.Fatalf("the hash of %q is %x, want %x", texts, got, h.Sum(nil))
		}
	})
}

// FuzzForms holds each form against its pattern. Ids travel into SQL, URLs and
// mails as they are, so that nothing else may pass.
func FuzzForms(f *testing.F) {
	for _, seed := range []string{"", "usage-0001", "a@b", "id\n", "id\x00", "ｉｄ-０００１", "../../etc", strings.Repeat("a", 129), "%00", "' OR 1=1"} {
		f.Add(seed)
	}
	patterns := map[*form]*regexp.Regexp{
		&idForm: regexp.MustCompile(`\A[A-Za-z0-9._:-]{8,128}\z`), &accountForm: regexp.MustCompile(`\A[A-Za-z0-9._:@-]{1,128}\z`),
		&meterForm: regexp.MustCompile(`\A[A-Za-z0-9._:-]{1,128}\z`), &eventNameForm: regexp.MustCompile(`\A[A-Za-z0-9._:-]{1,100}\z`),
	}
	f.Fuzz(func(t *testing.T, s string) {
		for form, pattern := range patterns {
			if form.MatchString(s) != pattern.MatchString(s) {
				t.Errorf("%q: the form says %t, %s says otherwise", s, form.MatchString(s), pattern)
			}
		}
	})
}
