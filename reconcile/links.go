package reconcile

import (
	"regexp"
	"strings"
)

// stripePages are the pages of Stripe's dashboard by the prefix of an id, the one
// that tells most first.
var stripePages = []struct{ prefix, page string }{
	{"pi_", "payments/"},
	{"in_", "invoices/"},
	{"ch_", "payments/"},
	{"sub_", "subscriptions/"},
	{"evt_", "events/"},
	{"cus_", "customers/"},
	{"mtr_", "meters/"},
	{"we_", "webhooks/"},
	{"price_", "prices/"},
	{"prod_", "products/"},
}

var stripeID = regexp.MustCompile(`(?:^|[^A-Za-z0-9_])((?:pi|in|ch|sub|evt|cus|mtr|we|price|prod)_[A-Za-z0-9_]{6,64})`)

// stripeLink is the page of Stripe's own dashboard about a finding: of the object
// that it is about, else of one that its repair or its evidence names; "" when none
// has a page. Test mode has its own path.
func (r *Reconciler) stripeLink(f Finding) string {
	base := "https://dashboard.stripe.com/test/"
	if r.Livemode {
		base = "https://dashboard.stripe.com/"
	}
	for _, text := range []string{f.Subject, f.RepairArgs, f.Evidence} {
		found := stripeID.FindAllStringSubmatch(text, -1)
		for _, p := range stripePages {
			for _, m := range found {
				if strings.HasPrefix(m[1], p.prefix) {
					return base + p.page + m[1]
				}
			}
		}
	}
	return ""
}

// link is an address of ours for people.
func (r *Reconciler) link(path string) string {
	if r.PublicURL == "" {
		return ""
	}
	return strings.TrimSuffix(r.PublicURL, "/") + path
}

// findingLink is where a person looks at a finding.
func (r *Reconciler) findingLink(id string) string { return r.link(r.FindingPath + id) }
