package stripe_test

import (
	"net/url"
	"slices"
	"testing"

	"tallystick/internal/stripe"
	"tallystick/stripesim"
)

// TestTariffsAreReadWithTheirTiers reads prices of each kind, and who subscribes.
func TestTariffsAreReadWithTheirTiers(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	client := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL})
	meter := made(t, sim, "/v1/billing/meters", url.Values{"display_name": {"calls"}, "event_name": {"calls"}, "default_aggregation[formula]": {"sum"}})
	product := made(t, sim, "/v1/products", url.Values{"name": {"calls"}})
	price := func(more url.Values) string {
		values := url.Values{"product": {product}, "currency": {"usd"}, "recurring[interval]": {"month"}, "recurring[usage_type]": {"metered"}, "recurring[meter]": {meter}}
		for name, value := range more {
			values[name] = value
		}
		return made(t, sim, "/v1/prices", values)
	}
	flat := price(url.Values{"unit_amount_decimal": {"0.25"}})
	tiered := price(url.Values{
		"billing_scheme": {"tiered"}, "tiers_mode": {"graduated"}, "tiers[0][up_to]": {"10"}, "tiers[0][unit_amount]": {"5"},
		"tiers[1][up_to]": {"inf"}, "tiers[1][unit_amount_decimal]": {"2.5"}, "tiers[1][flat_amount]": {"100"},
	})
	packaged := price(url.Values{"unit_amount": {"30"}, "transform_quantity[divide_by]": {"10"}, "transform_quantity[round]": {"up"}})
	tariffs, err := client.MeterTariffs(t.Context(), meter)
	if err != nil || len(tariffs) != 3 {
		t.Fatalf("the prices are %+v, %v", tariffs, err)
	}
	byID := map[string]stripe.Tariff{}
	for _, one := range tariffs {
		byID[one.ID] = one
	}
	if got := byID[flat]; got.UnitAmount != "0.25" || got.Currency != "usd" || got.Meter != meter || got.Interval != "month" || got.Intervals != 1 || !got.Active {
		t.Errorf("the flat price is %+v", got)
	}
	want := []stripe.Tier{{UpTo: 10, UnitAmount: "5"}, {UnitAmount: "2.5", FlatAmount: "100"}}
	if got := byID[tiered]; got.TiersMode != "graduated" || !slices.Equal(got.Tiers, want) {
		t.Errorf("the price with tiers is %+v", got)
	}
	if got := byID[packaged]; got.PackageOf != 10 || !got.RoundUp || got.UnitAmount != "30" {
		t.Errorf("the price of packages is %+v", got)
	}
	called(t, sim, "POST", "/v1/prices/"+tiered, url.Values{"active": {"false"}})
	got, err := client.Tariff(t.Context(), tiered)
	if err != nil || got.Active || !slices.Equal(got.Tiers, want) {
		t.Errorf("alone and archived it is %+v, %v", got, err)
	}
	customer := made(t, sim, "/v1/customers", url.Values{"name": {"Acme"}})
	made(t, sim, "/v1/subscriptions", url.Values{"customer": {customer}, "items[0][price]": {flat}})
	for id, want := range map[string][]string{flat: {customer}, packaged: nil} {
		var subscribers []string
		err := client.Subscribers(t.Context(), id, func(customer string) { subscribers = append(subscribers, customer) })
		if err != nil || !slices.Equal(subscribers, want) {
			t.Errorf("to %s subscribe %v, %v", id, subscribers, err)
		}
	}
}
