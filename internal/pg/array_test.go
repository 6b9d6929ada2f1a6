package pg_test

import (
	"database/sql/driver"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"pgregory.net/rapid"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
)

// TestArraysArriveAsTheyWere sends arrays and lets Postgres write them as text.
func TestArraysArriveAsTheyWere(t *testing.T) {
	t.Parallel()
	pools := map[string]*pg.DB{"plain": pgtest.New(t), "prepared": pgtest.Open(t, pgtest.DSN(t), pg.Options{Keyed: true})}
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.SampledFrom([]int{0, 1, 2, 3, 50}).Draw(rt, "n")
		numbers := func(least, most int64) []int64 {
			return rapid.SliceOfN(rapid.OneOf(rapid.Int64Range(least, most), rapid.SampledFrom([]int64{least, most, 0, -1})), n, n).Draw(rt, "numbers")
		}
		small, middle, large := numbers(math.MinInt16, math.MaxInt16), numbers(math.MinInt32, math.MaxInt32), numbers(math.MinInt64, math.MaxInt64)
		micros := numbers(time.Date(2, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro(), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC).UnixMicro())
		texts := rapid.SliceOfN(rapid.Map(rapid.String(), func(s string) string { return strings.ReplaceAll(strings.ToValidUTF8(s, ""), "\x00", "") }), n, n).Draw(rt, "texts")
		var a pg.Smallints
		var b pg.Integers
		var times pg.Times
		var bytes pg.Byteas
		for i := range n {
			a, b = append(a, int16(small[i])), append(b, int32(middle[i]))
			times, bytes = append(times, time.UnixMicro(micros[i]).UTC()), append(bytes, []byte(texts[i]))
		}
		for name, db := range pools {
			for kind, value := range map[string]struct {
				sent driver.Valuer
				want func(i int) string
			}{
				"smallint":    {a, func(i int) string { return fmt.Sprint(small[i]) }},
				"integer":     {b, func(i int) string { return fmt.Sprint(middle[i]) }},
				"bigint":      {pg.Bigints(large), func(i int) string { return fmt.Sprint(large[i]) }},
				"text":        {pg.Texts(texts), func(i int) string { return texts[i] }},
				"bytea":       {bytes, func(i int) string { return fmt.Sprintf("\\x%x", texts[i]) }},
				"timestamptz": {times, func(i int) string { return fmt.Sprint(micros[i]) }},
			} {
				got := elements(rt, db, kind, value.sent)
				if len(got) != n {
					rt.Fatalf("%s, %s[]: %d elements arrived of %d", name, kind, len(got), n)
				}
				for i := range got {
					if got[i] != value.want(i) {
						rt.Fatalf("%s, %s[]: element %d arrived as %q, sent %q", name, kind, i, got[i], value.want(i))
					}
				}
			}
		}
	})
}

func elements(t *rapid.T, db *pg.DB, kind string, sent driver.Valuer) (got []string) {
	text := "e::text"
	if kind == "timestamptz" {
		text = "(extract(epoch FROM e) * 1000000)::bigint::text"
	}
	err := db.Read(t.Context(), func(tx *sqlx.Tx) error {
		got = nil
		return tx.SelectContext(t.Context(), &got, "SELECT "+text+" FROM unnest($1::"+kind+"[]) WITH ORDINALITY AS u (e, n) ORDER BY n", sent)
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestNullsInArraysAreNulls(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var got struct {
		Bytes int `db:"bytes"`
		Times int `db:"times"`
		Empty int `db:"empty"`
	}
	err := db.Read(t.Context(), func(tx *sqlx.Tx) error {
		return tx.GetContext(t.Context(), &got, `
			SELECT count(*) FILTER (WHERE b IS NULL) AS bytes, count(*) FILTER (WHERE t IS NULL) AS times, count(*) FILTER (WHERE b = '') AS empty
			FROM unnest($1::bytea[], $2::timestamptz[]) AS u (b, t)`, pg.Byteas{nil, {}, {1}}, pg.Times{{}, time.Unix(0, 0), {}})
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.Bytes != 1 || got.Times != 2 || got.Empty != 1 {
		t.Errorf("%+v, want 1 NULL among the bytes, 2 among the times, 1 empty", got)
	}
}
