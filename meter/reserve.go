package meter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/ledger"
)

// ttlMax is the longest that a reservation is open without an extension, in seconds.
const ttlMax = 86400

// measure is how much: a quantity of the meter or a number of credits, one of the two.
type measure struct {
	quantity *credit.Quantity
	credits  *credit.Amount
}

// text is the measure as a fingerprint has it.
func (a measure) text() string {
	switch {
	case a.quantity != nil:
		return "quantity " + a.quantity.String()
	case a.credits != nil:
		return "credits " + a.credits.String()
	}
	return ""
}

// parseMeasure reads the two members of a request of which one must be there.
func parseMeasure(p *fault.Problems, quantity, credits *api.Decimal) (a measure) {
	switch {
	case (quantity == nil) == (credits == nil):
		p.Addf("/quantity", "must be there, or credits in its place, and not both")
	case quantity != nil:
		q, err := credit.ParseQuantity(string(*quantity))
		if err != nil {
			p.Addf("/quantity", "%v", err)
		} else if q <= 0 {
			p.Addf("/quantity", "must be more than zero")
		}
		a.quantity = &q
	default:
		c, err := credit.ParseAmount(string(*credits))
		if err != nil {
			p.Addf("/credits", "%v", err)
		} else if c <= 0 {
			p.Addf("/credits", "must be more than zero")
		}
		a.credits = &c
	}
	return a
}

// price gives the quantity, what Stripe is to count of it, and the credits. Of a
// measure in credits the quantity is what costs that much, to six places, halves
// up and never nothing; where the rate is zero, it is the number of credits.
func (d *definition) price(a measure, dimensions map[string]string) (quantity, units credit.Quantity, credits credit.Amount, err error) {
	rate := d.rate(dimensions)
	if a.quantity != nil {
		quantity, units = *a.quantity, *a.quantity
		if d.Aggregation == "count" {
			units = credit.Units(1)
		}
		if credits, err = credit.Price(units, rate); err != nil {
			return 0, 0, 0, errPriceRange
		}
		return quantity, units, credits, nil
	}
	switch {
	case d.Aggregation == "count":
		quantity = credit.Units(1)
	case rate == 0:
		quantity = credit.Quantity(*a.credits)
	default:
		n, err := credit.Scale(int64(*a.credits), int64(credit.Units(1)), int64(rate))
		if err != nil {
			return 0, 0, 0, errPriceRange
		}
		quantity = credit.Quantity(max(n, 1))
	}
	return quantity, quantity, *a.credits, nil
}

// Reserve holds credits for work that is about to be done, once per id. It tells
// whether the answer is that of an earlier request.
func (m *Meter) Reserve(ctx context.Context, q api.ReservationRequest, by string) (answer api.Reservation, again bool, err error) {
	h := &hold{measure: measure{}, dimensions: q.Dimensions, by: by}
	if h.asked, h.measure, err = m.validateReservation(q); err != nil {
		return answer, false, err
	}
	if err = m.do(ctx, h); err == nil {
		err = h.refused
	}
	if err != nil {
		return answer, false, err
	}
	answer, err = h.stands.wire()
	return answer, h.again, err
}

// hold is the work of making a reservation.
type hold struct {
	asked reservation
	measure
	dimensions map[string]string
	by         string

	stands  *reservation // as the first answer shows it
	again   bool         // the answer is that of an earlier request
	refused error
}

func (h *hold) ref() ledger.Ref { return h.asked.ref() }

func (h *hold) needs(n *needs) {
	n.meters[h.asked.Meter] = true
	n.reservations = append(n.reservations, h.asked.key())
}

func (h *hold) decide(ctx context.Context, g *group) error {
	h.stands, h.again, h.refused = nil, false, nil
	err := h.reserve(ctx, g)
	if err != nil && refusal(err) {
		h.refused, err = err, nil
	}
	return err
}

func (m *Meter) validateReservation(q api.ReservationRequest) (r reservation, a measure, err error) {
	var p fault.Problems
	ref, now := ledger.RefOf(q.Account), m.now().UTC().Truncate(time.Microsecond)
	if !idForm.MatchString(q.ID) {
		p.Addf("/id", idRule)
	}
	if !accountForm.MatchString(q.Account) {
		p.Addf("/account", accountRule)
	}
	if !meterForm.MatchString(q.Meter) {
		p.Addf("/meter", meterRule)
	}
	a = parseMeasure(&p, q.Quantity, q.Credits)
	checkTTL(&p, q.TTLSeconds)
	checkTexts(&p, "/dimensions", q.Dimensions, dimensionsMax, dimensionValueMax)
	dimensions, err := encodeTexts(q.Dimensions)
	if err != nil {
		return r, a, err
	}
	r = reservation{
		Part: ref.Part, Account: ref.Account, ID: q.ID, Meter: q.Meter, Quantity: a.quantity, Dimensions: dimensions, TTLSeconds: q.TTLSeconds,
		Fingerprint: hashTexts(appendTexts([]string{"reservation", q.Meter, a.text(), strconv.Itoa(q.TTLSeconds)}, q.Dimensions)...),
		CreatedAt:   now, State: stateOpen, ExpiresAt: now.Add(time.Duration(q.TTLSeconds) * time.Second),
	}
	return r, a, p.Err(fault.ErrUnprocessed)
}

func checkTTL(p *fault.Problems, seconds int) {
	if seconds < 1 || seconds > ttlMax {
		p.Addf("/ttl_seconds", "must be from 1 to %d", ttlMax)
	}
}

// appendTexts adds names and values in the order of the names.
func appendTexts(parts []string, texts map[string]string) []string {
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		parts = append(parts, name, texts[name])
	}
	return parts
}

// encodeTexts writes a map of texts as a JSON object; none is an empty one.
func encodeTexts(texts map[string]string) (string, error) {
	if texts == nil {
		return "{}", nil
	}
	encoded, err := json.Marshal(texts)
	if err != nil {
		return "", fmt.Errorf("encode dimensions: %w", err)
	}
	return string(encoded), nil
}

// reserve decides in the order of refusals that openapi.yaml documents.
func (h *hold) reserve(ctx context.Context, g *group) error {
	if g.batch.State(h.ref()) == nil {
		return ledger.ErrNoAccount
	}
	if stands := g.reservations[h.asked.key()]; stands != nil {
		if !bytes.Equal(stands.Fingerprint, h.asked.Fingerprint) {
			return fault.ErrIdempotency
		}
		h.stands, h.again = stands.first(), true
		if stands.held != nil {
			h.stands.Balance = *stands.held
			return nil
		}
		var err error
		h.stands.Balance, err = balanceAt(ctx, g.tx, h.ref(), stands.HoldVersion)
		return err
	}
	d := g.meters[h.asked.Meter]
	if d == nil {
		return errNoMeter
	}
	r := h.asked
	var err error
	if _, _, r.Credits, err = d.price(h.measure, h.dimensions); err != nil {
		return err
	}
	r.RateVersion, r.MeterRevision = d.RateVersion, d.Revision
	transfers, err := g.batch.Apply(r.ref(), ledger.Operation{Kind: ledger.KindHold, Cause: r.ID, Amount: r.Credits, Actor: h.by, At: r.CreatedAt})
	if err != nil {
		return err
	}
	last := transfers[len(transfers)-1]
	r.HoldVersion, r.Balance, r.held = last.Version, last.After, &last.After
	r.GrantIDs, r.GrantAmounts = append(pq.StringArray{}, last.GrantIDs...), pq.Int64Array{}
	for _, change := range last.GrantAmounts {
		r.GrantAmounts = append(r.GrantAmounts, -int64(change))
	}
	first := r
	h.stands = &first
	g.reservations[r.key()] = &r
	g.made = append(g.made, &r)
	return nil
}

// sqlBalanceAt relies on transfers_pkey.
const sqlBalanceAt = `
	SELECT available_after AS available, held_after AS held, debt_after AS debt, version
	FROM transfers WHERE part = $1 AND account = $2 AND version = $3`

func balanceAt(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref, version int64) (b ledger.Balance, err error) {
	err = tx.GetContext(ctx, &b, sqlBalanceAt, ref.Part, ref.Account, version)
	return b, err
}
