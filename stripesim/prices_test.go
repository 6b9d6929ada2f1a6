package stripesim_test

import (
	"net/http"
	"testing"
)

func TestPricesAreRefused(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	product := u.make("/v1/products", "name=Gold")
	meter := u.make("/v1/billing/meters", "display_name=Calls&event_name=calls&default_aggregation[formula]=sum")
	u.make("/v1/prices", "currency=usd&unit_amount=1&lookup_key=taken&product="+product)
	tiered := "&billing_scheme=tiered&tiers_mode=graduated"
	for _, tc := range []struct {
		form, code, param string
		status            int
	}{
		{"unit_amount=1", "parameter_missing", "currency", 400},
		{"currency=usd", "parameter_missing", "unit_amount", 400},
		{"currency=usd&unit_amount=-1", "parameter_invalid_integer", "unit_amount", 400},
		{"currency=usd&unit_amount=1&unit_amount_decimal=1.5", "", "unit_amount", 400},
		{"currency=usd&unit_amount_decimal=0.0000000000001", "", "unit_amount_decimal", 400},
		{"currency=usd&unit_amount_decimal=1e3", "", "unit_amount_decimal", 400},
		{"currency=usd&unit_amount=1&billing_scheme=odd", "", "billing_scheme", 400},
		{"currency=usd&unit_amount=1&tiers_mode=volume", "", "tiers_mode", 400},
		{"currency=usd&unit_amount=1&transform_quantity[divide_by]=0&transform_quantity[round]=up", "parameter_invalid_integer", "transform_quantity[divide_by]", 400},
		{"currency=usd&unit_amount=1&transform_quantity[divide_by]=2&transform_quantity[round]=off", "", "transform_quantity[round]", 400},
		{"currency=usd&unit_amount=1&lookup_key=taken", "resource_already_exists", "lookup_key", 400},
		{"currency=usd&unit_amount=1&tax_behavior=odd", "", "tax_behavior", 400},
		{"currency=usd&unit_amount=1&recurring[interval]=hour", "", "recurring[interval]", 400},
		{"currency=usd&unit_amount=1&recurring[usage_type]=metered", "parameter_missing", "recurring[interval]", 400},
		{"currency=usd&unit_amount=1&recurring[interval]=month&recurring[interval_count]=0", "", "recurring[interval_count]", 400},
		{"currency=usd&unit_amount=1&recurring[interval]=year&recurring[interval_count]=4", "", "recurring[interval_count]", 400},
		{"currency=usd&unit_amount=1&recurring[interval]=month&recurring[usage_type]=odd", "", "recurring[usage_type]", 400},
		{"currency=usd&unit_amount=1&recurring[interval]=month&recurring[aggregate_usage]=max", "", "recurring[aggregate_usage]", 400},
		{"currency=usd&unit_amount=1&recurring[interval]=month&recurring[usage_type]=metered&recurring[aggregate_usage]=mean", "", "recurring[aggregate_usage]", 400},
		{"currency=usd&unit_amount=1&recurring[interval]=month&recurring[meter]=" + meter, "", "recurring[meter]", 400},
		{"currency=usd&unit_amount=1&recurring[interval]=month&recurring[usage_type]=metered&recurring[aggregate_usage]=sum&recurring[meter]=" + meter, "", "recurring[aggregate_usage]", 400},
		{"currency=usd&unit_amount=1&recurring[interval]=month&recurring[usage_type]=metered&recurring[meter]=mtr_none", "resource_missing", "recurring[meter]", 400},
		{"currency=usd&billing_scheme=tiered", "", "tiers_mode", 400},
		{"currency=usd" + tiered, "", "tiers", 400},
		{"currency=usd&unit_amount=1" + tiered + "&tiers[0][up_to]=inf&tiers[0][unit_amount]=1", "", "unit_amount", 400},
		{"currency=usd" + tiered + "&tiers[0][up_to]=5&tiers[0][unit_amount]=1", "", "tiers[0][up_to]", 400},
		{"currency=usd" + tiered + "&tiers[0][up_to]=inf&tiers[0][unit_amount]=1&tiers[1][up_to]=inf&tiers[1][unit_amount]=1", "", "tiers[0][up_to]", 400},
		{"currency=usd" + tiered + "&tiers[0][up_to]=5&tiers[0][unit_amount]=1&tiers[1][up_to]=5&tiers[1][unit_amount]=1&tiers[2][up_to]=inf", "parameter_invalid_integer", "tiers[1][up_to]", 400},
		{"currency=usd" + tiered + "&tiers[0][up_to]=inf", "", "tiers[0]", 400},
		{"currency=usd" + tiered + "&tiers[0][up_to]=inf&tiers[0][flat_amount]=1&tiers[0][flat_amount_decimal]=1", "", "tiers[0][flat_amount]", 400},
	} {
		before := u.State().Counts["price"]
		u.refused(u.call(http.MethodPost, "/v1/prices", tc.form+"&product="+product), tc.status, "invalid_request_error", tc.code, tc.param)
		if u.State().Counts["price"] != before {
			t.Errorf("%s was refused and made a price", tc.form)
		}
	}
	u.refused(u.call(http.MethodPost, "/v1/prices", "currency=usd&unit_amount=1&product=prod_none"), 400, "invalid_request_error", "resource_missing", "product")
}

func TestTiersAreShownOnlyWhenTheyAreExpanded(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	product := u.make("/v1/products", "name=Gold")
	form := "currency=USD&billing_scheme=tiered&tiers_mode=volume&recurring[interval]=month&tiers[0][up_to]=5&tiers[0][unit_amount_decimal]=1.50&tiers[1][up_to]=inf&tiers[1][flat_amount]=7&product=" + product
	id := u.make("/v1/prices", form)
	plain := u.must(http.MethodGet, "/v1/prices/"+id, "")
	if _, shown := plain["tiers"]; shown || plain["tiers_mode"] != "volume" || plain["unit_amount"] != nil || plain["currency"] != "usd" {
		t.Errorf("the price is %v", plain)
	}
	tiers := u.must(http.MethodGet, "/v1/prices/"+id, "expand[]=tiers")["tiers"].([]any)
	first, last := tiers[0].(map[string]any), tiers[1].(map[string]any)
	if len(tiers) != 2 || first["unit_amount_decimal"] != "1.50" || first["unit_amount"] != nil || last["up_to"] != nil || last["flat_amount_decimal"] != "7" {
		t.Errorf("the tiers are %v", tiers)
	}
	list := u.must(http.MethodGet, "/v1/prices", "expand[]=data.tiers&lookup_keys[]=none")
	if len(list["data"].([]any)) != 0 {
		t.Errorf("no price has the lookup key, and the list holds %v", list)
	}
}

func TestALookupKeyCanMoveToAnotherPrice(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	product := u.make("/v1/products", "name=Gold")
	old := u.make("/v1/prices", "currency=usd&unit_amount=1&lookup_key=gold&product="+product)
	young := u.make("/v1/prices", "currency=usd&unit_amount=2&lookup_key=gold&transfer_lookup_key=true&product="+product)
	if key := u.must(http.MethodGet, "/v1/prices/"+old, "")["lookup_key"]; key != nil {
		t.Errorf("the key stays at %v", key)
	}
	u.refused(u.call(http.MethodPost, "/v1/prices/"+old, "lookup_key=gold"), 400, "invalid_request_error", "resource_already_exists", "lookup_key")
	u.must(http.MethodPost, "/v1/prices/"+old, "lookup_key=gold&transfer_lookup_key=true")
	found := u.must(http.MethodGet, "/v1/prices", "lookup_keys[]=gold")["data"].([]any)
	if len(found) != 1 || found[0].(map[string]any)["id"] != old {
		t.Errorf("the key finds %v, want %s and not %s", found, old, young)
	}
}

func TestAMeteredPriceSumsUnlessItSaysOtherwise(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	product := u.make("/v1/products", "name=Gold")
	for given, want := range map[string]string{"": "sum", "max": "max", "last_ever": "last_ever", "last_during_period": "last_during_period"} {
		form := "currency=usd&unit_amount_decimal=2.0&recurring[interval]=day&recurring[usage_type]=metered&product=" + product
		if given != "" {
			form += "&recurring[aggregate_usage]=" + given
		}
		price := u.must(http.MethodPost, "/v1/prices", form)
		if got := price["recurring"].(map[string]any)["aggregate_usage"]; got != want || price["unit_amount_decimal"] != "2" {
			t.Errorf("%q gives %v and the amount %v", given, got, price["unit_amount_decimal"])
		}
	}
}
