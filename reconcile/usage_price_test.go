package reconcile

import (
	"testing"

	"tallystick/internal/stripe"
)

// TestAmountsAreWhatStripeBills has the amounts of Stripe's own examples of tiers
// and packages, at each edge and one beyond.
func TestAmountsAreWhatStripeBills(t *testing.T) {
	t.Parallel()
	tiers := []stripe.Tier{{UpTo: 5, UnitAmount: "700"}, {UpTo: 10, UnitAmount: "650"}, {UnitAmount: "600", FlatAmount: "100"}}
	graduated := stripe.Tariff{Currency: "usd", TiersMode: "graduated", Tiers: tiers}
	volume := stripe.Tariff{Currency: "usd", TiersMode: "volume", Tiers: tiers}
	up := stripe.Tariff{Currency: "usd", UnitAmount: "30", PackageOf: 10, RoundUp: true}
	down := stripe.Tariff{Currency: "usd", UnitAmount: "30", PackageOf: 10}
	flat := stripe.Tariff{Currency: "usd", UnitAmount: "0.015"}
	first := stripe.Tariff{Currency: "usd", TiersMode: "graduated", Tiers: []stripe.Tier{{UpTo: 10, FlatAmount: "500"}, {UnitAmount: "2"}}}
	for _, tc := range []struct {
		name     string
		tariff   stripe.Tariff
		quantity int64 // millionths
		want     int64
	}{
		{"graduated", graduated, 0, 0},
		{"graduated", graduated, 5_000_000, 3500},
		{"graduated", graduated, 6_000_000, 4150},
		{"graduated", graduated, 10_000_000, 6750},
		{"graduated", graduated, 11_000_000, 7450},
		{"graduated", graduated, -1_000_000, 0},
		{"volume", volume, 5_000_000, 3500},
		{"volume", volume, 6_000_000, 3900},
		{"volume", volume, 20_000_000, 12100},
		{"packages begun", up, 10_000_000, 30},
		{"packages begun", up, 10_000_001, 60},
		{"whole packages", down, 19_999_999, 30},
		{"flat", flat, 33_000_000, 0},
		{"flat", flat, 34_000_000, 1},
		{"a flat first tier", first, 0, 500},
		{"a flat first tier", first, 12_000_000, 504},
	} {
		if got := roundHalfUp(amountOf(tc.tariff, tc.quantity)); got.Int64() != tc.want {
			t.Errorf("%s: %d millionths cost %s, want %d", tc.name, tc.quantity, got, tc.want)
		}
	}
	if got := apart(volume, 5_000_000, 6_000_000); got.amount != 400 || got.currency != "usd" {
		t.Errorf("the amounts are %+v apart, want 4.00 USD", got)
	}
}

// TestReportsAreReadAndNonsenseIsNone reads what Stripe sends, and what it does not.
func TestReportsAreReadAndNonsenseIsNone(t *testing.T) {
	t.Parallel()
	reports := parseReport([]byte(`{"type": "v1.billing.meter.error_report_triggered", "created": "2026-03-01T12:00:10.000Z", "related_object": {"id": "mtr_1"},
		"data": {"validation_start": "2026-03-01T12:00:00.000Z", "validation_end": "2026-03-01T12:00:10.000Z", "reason": {"error_count": 3, "error_types": [
		{"code": "archived_meter", "error_count": 2, "sample_errors": [{"error_message": "no", "request": {"identifier": "a"}}]},
		{"code": "no_meter", "error_count": 1, "sample_errors": []}]}}}`))
	if len(reports) != 2 || reports[0].Meter != "mtr_1" || reports[0].Count != 2 || len(reports[0].Samples) != 1 || reports[0].Samples[0] != "a" ||
		reports[0].To.Sub(reports[0].From).Seconds() != 10 || reports[1].Code != "no_meter" {
		t.Errorf("the reports are %+v", reports)
	}
	for _, nonsense := range []string{``, `{}`, `[]`, `{"data": null}`, `{"data": {"reason": {"error_types": "none"}}}`} {
		if got := parseReport([]byte(nonsense)); len(got) > 0 {
			t.Errorf("%s has %+v", nonsense, got)
		}
	}
}
