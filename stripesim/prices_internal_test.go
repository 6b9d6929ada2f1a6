package stripesim

import (
	"math"
	"math/big"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"
)

func ratOf(t *testing.T, text string) *big.Rat {
	t.Helper()
	r, ok := new(big.Rat).SetString(text)
	if !ok {
		t.Fatalf("%q is no number", text)
	}
	return r
}

func tierOf(upTo any, unit, flat string) any {
	return object{"up_to": upTo, "unit_amount_decimal": unit, "flat_amount_decimal": flat}
}

func TestPriceAmountIsExactAndRoundedOnce(t *testing.T) {
	t.Parallel()
	tiers := []any{tierOf(int64(5), "700", ""), tierOf(int64(10), "650", ""), tierOf(nil, "600", "")}
	flat := []any{tierOf(int64(10), "", "1000"), tierOf(nil, "0.5", "200")}
	by := func(divide int64, round string) object {
		return object{"unit_amount_decimal": "300", "transform_quantity": object{"divide_by": divide, "round": round}}
	}
	for _, tc := range []struct {
		name     string
		price    object
		quantity string
		want     int64
	}{
		{"per unit", object{"unit_amount_decimal": "1000"}, "3", 3000},
		{"nothing", object{"unit_amount_decimal": "1000"}, "0", 0},
		{"a half goes up", object{"unit_amount_decimal": "0.5"}, "1", 1},
		{"just below a half goes down", object{"unit_amount_decimal": "0.499999999999"}, "1", 0},
		{"fractions add up before they are rounded", object{"unit_amount_decimal": "0.000000000001"}, "1000000000000", 1},
		{"a fraction of a unit", object{"unit_amount_decimal": "3"}, "2.5", 8},
		{"a credit undoes its charge", object{"unit_amount_decimal": "0.5"}, "-1", -1},
		{"beyond int64", object{"unit_amount_decimal": "9223372036854775807"}, "2", math.MaxInt64},
		{"packages, up", by(10, "up"), "11", 600},
		{"packages, up, even", by(10, "up"), "10", 300},
		{"packages, down", by(10, "down"), "19", 300},
		{"packages, down, too few", by(10, "down"), "9", 0},
		{"graduated", object{"billing_scheme": "tiered", "tiers_mode": "graduated", "_tiers": tiers}, "12", 5*700 + 5*650 + 2*600},
		{"graduated, an edge", object{"billing_scheme": "tiered", "tiers_mode": "graduated", "_tiers": tiers}, "5", 3500},
		{"graduated, one beyond", object{"billing_scheme": "tiered", "tiers_mode": "graduated", "_tiers": tiers}, "6", 4150},
		{"volume", object{"billing_scheme": "tiered", "tiers_mode": "volume", "_tiers": tiers}, "12", 7200},
		{"volume, an edge", object{"billing_scheme": "tiered", "tiers_mode": "volume", "_tiers": tiers}, "5", 3500},
		{"volume, one beyond", object{"billing_scheme": "tiered", "tiers_mode": "volume", "_tiers": tiers}, "6", 3900},
		{"flat, nothing used", object{"billing_scheme": "tiered", "tiers_mode": "graduated", "_tiers": flat}, "0", 1000},
		{"flat, first tier", object{"billing_scheme": "tiered", "tiers_mode": "graduated", "_tiers": flat}, "10", 1000},
		{"flat, second tier", object{"billing_scheme": "tiered", "tiers_mode": "graduated", "_tiers": flat}, "11", 1201},
		{"flat by volume", object{"billing_scheme": "tiered", "tiers_mode": "volume", "_tiers": flat}, "11", 206},
	} {
		if got := (&Server{}).priceAmount(tc.price, ratOf(t, tc.quantity)); got != tc.want {
			t.Errorf("%s: %s costs %d, want %d", tc.name, tc.quantity, got, tc.want)
		}
	}
	free := &Server{switches: Switches{ZeroUsageFree: true}}
	if got := free.priceAmount(object{"billing_scheme": "tiered", "tiers_mode": "graduated", "_tiers": flat}, new(big.Rat)); got != 0 {
		t.Errorf("without usage %d is charged where the switch makes it free", got)
	}
}

// TestTiersAgreeWithCountingUnits prices random tiers unit by unit.
func TestTiersAgreeWithCountingUnits(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(7, 7))
	for range 300 {
		var tiers []any
		var ends, units, flats []int64
		end := int64(0)
		for n := 1 + random.IntN(4); n > 0; n-- {
			end += 1 + random.Int64N(20)
			unit, flat := random.Int64N(50), random.Int64N(500)
			ends, units, flats = append(ends, end), append(units, unit), append(flats, flat)
			upTo := any(end)
			if n == 1 {
				upTo = nil
				ends[len(ends)-1] = math.MaxInt64
			}
			tiers = append(tiers, tierOf(upTo, strconv.FormatInt(unit, 10), strconv.FormatInt(flat, 10)))
		}
		quantity := random.Int64N(100)
		graduated, at := flats[0], 0
		for unit := int64(1); unit <= quantity; unit++ {
			if unit > ends[at] {
				at++
				graduated += flats[at]
			}
			graduated += units[at]
		}
		for mode, want := range map[string]int64{"graduated": graduated, "volume": quantity*units[at] + flats[at]} {
			price := object{"billing_scheme": "tiered", "tiers_mode": mode, "_tiers": tiers}
			if got := (&Server{}).priceAmount(price, big.NewRat(quantity, 1)); got != want {
				t.Fatalf("%s: %d of %v cost %d, want %d", mode, quantity, tiers, got, want)
			}
		}
	}
}

func TestPeriodsFollowTheCalendar(t *testing.T) {
	t.Parallel()
	at := func(text string) int64 {
		v, err := time.Parse(time.DateTime, text)
		if err != nil {
			t.Fatal(err)
		}
		return v.Unix()
	}
	for _, tc := range []struct {
		unit   string
		count  int64
		anchor string
		want   []string // boundaries that follow
	}{
		{"month", 1, "2023-01-31 10:00:00", []string{"2023-02-28 10:00:00", "2023-03-31 10:00:00", "2023-04-30 10:00:00", "2023-05-31 10:00:00"}},
		{"month", 1, "2024-01-31 23:59:59", []string{"2024-02-29 23:59:59", "2024-03-31 23:59:59"}},
		{"month", 1, "2024-01-30 00:00:00", []string{"2024-02-29 00:00:00", "2024-03-30 00:00:00"}},
		{"month", 3, "2023-11-30 00:00:00", []string{"2024-02-29 00:00:00", "2024-05-30 00:00:00"}},
		{"year", 1, "2024-02-29 12:00:00", []string{"2025-02-28 12:00:00", "2026-02-28 12:00:00", "2027-02-28 12:00:00", "2028-02-29 12:00:00"}},
		{"week", 2, "2024-02-20 12:00:00", []string{"2024-03-05 12:00:00", "2024-03-19 12:00:00"}},
		{"day", 1, "2024-02-28 12:00:00", []string{"2024-02-29 12:00:00", "2024-03-01 12:00:00"}},
	} {
		rhythm := cadence{unit: tc.unit, count: tc.count}
		from := at(tc.anchor)
		for _, want := range tc.want {
			next := rhythm.next(at(tc.anchor), from)
			if next != at(want) {
				t.Fatalf("every %d %s from %s: after %s comes %s, want %s", tc.count, tc.unit, tc.anchor, time.Unix(from, 0).UTC(), time.Unix(next, 0).UTC(), want)
			}
			if back := rhythm.before(at(tc.anchor), next); back != from {
				t.Errorf("before %s was %s, want %s", want, time.Unix(back, 0).UTC(), time.Unix(from, 0).UTC())
			}
			if just := rhythm.next(at(tc.anchor), next-1); just != next {
				t.Errorf("a second before %s the next is %s", want, time.Unix(just, 0).UTC())
			}
			from = next
		}
	}
}
