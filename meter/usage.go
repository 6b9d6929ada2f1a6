package meter

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/web"
	"tallystick/ledger"
)

// Bounds of a usage.
const (
	ageMax            = 35 * 24 * time.Hour // Stripe takes no older meter event
	aheadMax          = 5 * time.Minute     // nor one further ahead
	dimensionsMax     = 20
	nameBytesMax      = 64 // of a dimension or a member of metadata
	dimensionValueMax = 256
	batchUsagesMax    = 1000
)

var errEmptyBatch = &fault.Error{Kind: fault.KindUnprocessed, Code: "invalid_value", Public: fmt.Sprintf("usage must list 1 to %d items", batchUsagesMax)}

// places says where a request holds what makes a usage, as pointers.
type places struct{ account, meter, quantity, occurredAt, dimensions string }

// inUsage are the places of api.UsageRequest.
var inUsage = places{account: "/account", meter: "/meter", quantity: "/quantity", occurredAt: "/occurred_at", dimensions: "/dimensions"}

// validate makes a usage of a request and notes all its mistakes.
func (m *Meter) validate(q api.UsageRequest, by string, p *fault.Problems) usage {
	if !idForm.MatchString(q.ID) {
		p.Addf("/id", idRule)
	}
	return m.validateIdentified(q, by, p, inUsage)
}

// validateIdentified is validate for a request whose id is in order.
func (m *Meter) validateIdentified(q api.UsageRequest, by string, p *fault.Problems, in places) usage {
	u := usage{ref: ledger.RefOf(q.Account), id: q.ID, meter: q.Meter, dimensions: q.Dimensions, actor: by}
	if !accountForm.MatchString(q.Account) {
		p.Addf(in.account, accountRule)
	}
	if !meterForm.MatchString(q.Meter) {
		p.Addf(in.meter, meterRule)
	}
	var err error
	if u.quantity, err = credit.ParseQuantity(string(q.Quantity)); err != nil {
		p.Addf(in.quantity, "%v", err)
	} else if u.quantity <= 0 {
		p.Addf(in.quantity, "must be more than zero")
	}
	checkTexts(p, in.dimensions, q.Dimensions, dimensionsMax, dimensionValueMax)
	u.occurredAt, u.untimely = m.occurred(q.OccurredAt, p, in.occurredAt)
	if u.dimensions == nil {
		u.dimensions = map[string]string{}
	}
	u.fingerprint = fingerprint(q, u)
	return u
}

// occurred gives the time of a usage that stands at pointer, and the refusal of one
// that is too old or too far ahead. The time runs out while usage is sent again: where it is the
// only mistake, whether the id is known decides.
func (m *Meter) occurred(at *time.Time, p *fault.Problems, pointer string) (time.Time, error) {
	now := m.now()
	if at == nil {
		return now, nil
	}
	var untimely fault.Problems
	t := at.UTC().Truncate(time.Microsecond)
	if t.Before(now.Add(-ageMax)) {
		untimely.Addf(pointer, "must be at most 35 days ago")
	}
	if t.After(now.Add(aheadMax)) {
		untimely.Addf(pointer, "must be at most 5 minutes ahead")
	}
	return t, p.Postpone(&untimely, fault.ErrUnprocessed)
}

// checkTexts bounds a map of names to texts.
func checkTexts(p *fault.Problems, pointer string, texts map[string]string, most, valueMax int) {
	if len(texts) > most {
		p.Addf(pointer, "must have at most %d members", most)
	}
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		if name == "" || len(name) > nameBytesMax {
			p.Addf(pointer, "must have names of 1 to %d bytes", nameBytesMax)
		}
		if len(texts[name]) > valueMax {
			p.Addf(pointer+"/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name), "must have at most %d bytes", valueMax)
		}
	}
}

// fingerprint is a hash of what a request says. A time that was left out is left
// out here, too: the same request sent again later says the same.
func fingerprint(q api.UsageRequest, u usage) []byte {
	parts := []string{u.meter, u.quantity.String(), ""}
	if q.OccurredAt != nil {
		parts[2] = u.occurredAt.Format(time.RFC3339Nano)
	}
	for _, name := range slices.Sorted(maps.Keys(u.dimensions)) {
		parts = append(parts, name, u.dimensions[name])
	}
	return hashTexts(parts...)
}

// hashTexts is SHA-256 over texts, each preceded by its length, so that no two
// lists of texts run together.
func hashTexts(texts ...string) []byte {
	b := make([]byte, 0, 256)
	for _, t := range texts {
		b = strconv.AppendInt(b, int64(len(t)), 10)
		b = append(append(b, ':'), t...)
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

// wire is the first answer, made only of what is stored.
func (r *record) wire() (api.Usage, error) {
	u := api.Usage{
		ID: r.ID, Account: r.Account, Meter: r.Meter, Quantity: api.Decimal(r.Quantity.String()), OccurredAt: r.OccurredAt.UTC(),
		Credits: api.Decimal(r.Credits.String()), RateVersion: r.RateVersion, RecordedAt: r.RecordedAt.UTC(),
		Balance: wireBalance(ledger.Balance{Available: r.Available, Held: r.Held, Debt: r.Debt, Version: r.TransferVersion}),
	}
	if u.Dimensions = r.dimensions; u.Dimensions != nil {
		return u, nil
	}
	if err := json.Unmarshal([]byte(r.Dimensions), &u.Dimensions); err != nil {
		return u, fmt.Errorf("read dimensions of usage %s: %w", r.ID, err)
	}
	return u, nil
}

func wireBalance(b ledger.Balance) api.Balance {
	return api.Balance{
		Available: api.Decimal(b.Available.String()), Held: api.Decimal(b.Held.String()), Debt: api.Decimal(b.Debt.String()), Version: b.Version,
	}
}

// idempotencyKey takes the id from the header of the IETF draft where the body
// has none. The draft's value is a quoted string; a bare one is accepted.
func idempotencyKey(r *http.Request, id string, p *fault.Problems) string {
	header := r.Header.Values("Idempotency-Key")
	if len(header) == 0 {
		return id
	}
	key := strings.TrimSuffix(strings.TrimPrefix(header[0], `"`), `"`)
	switch {
	case len(header) > 1 || !idForm.MatchString(key):
		p.Addf("#header/Idempotency-Key", idRule)
	case id != "" && id != key:
		p.Addf("#header/Idempotency-Key", "must be the id of the body, or one of the two be left out")
	}
	return key
}

func replayed(w http.ResponseWriter) { w.Header().Set("Idempotent-Replayed", "true") }

func (m *Meter) handleUsage(w http.ResponseWriter, r *http.Request) error {
	var q api.UsageRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	var p fault.Problems
	q.ID = idempotencyKey(r, q.ID, &p)
	u := m.validate(q, actor(r.Context()), &p)
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return err
	}
	return answerUsage(w, m.submit(r.Context(), []usage{u})[0])
}

// answerUsage answers with what became of one usage.
func answerUsage(w http.ResponseWriter, result result) error {
	if result.err != nil {
		return result.err
	}
	answer, err := result.record.wire()
	if err != nil {
		return err
	}
	if result.replayed {
		replayed(w)
	}
	return web.JSON(w, http.StatusCreated, answer)
}

func (m *Meter) handleUsageBatch(w http.ResponseWriter, r *http.Request) error {
	var q api.UsageBatchRequest
	if err := web.Decode(w, r, web.BatchBodyMax, &q); err != nil {
		return err
	}
	if len(q.Usage) == 0 || len(q.Usage) > batchUsagesMax {
		return errEmptyBatch
	}
	if err := m.spend(r.Context(), len(q.Usage)); err != nil {
		return err
	}
	usages, refusals := make([]usage, len(q.Usage)), make([]error, len(q.Usage))
	for i, item := range q.Usage {
		var p fault.Problems
		usages[i] = m.validate(item, actor(r.Context()), &p)
		refusals[i] = p.Err(fault.ErrUnprocessed)
	}
	return answerUsages(w, m.submitValid(r.Context(), usages, refusals))
}

// submitValid submits those usages that are not refused already and gives what
// became of all.
func (m *Meter) submitValid(ctx context.Context, usages []usage, refusals []error) []result {
	outcomes := make([]result, len(usages))
	var valid []usage
	var at []int
	for i, u := range usages {
		if outcomes[i].err = refusals[i]; refusals[i] == nil {
			valid, at = append(valid, u), append(at, i)
		}
	}
	for i, result := range m.submit(ctx, valid) {
		outcomes[at[i]] = result
	}
	return outcomes
}

// answerUsages answers with what became of each usage.
func answerUsages(w http.ResponseWriter, outcomes []result) error {
	answer := api.UsageBatch{Results: make([]api.UsageResult, len(outcomes))}
	for i := range outcomes {
		var err error
		if answer.Results[i], err = outcomes[i].item(); err != nil {
			return err
		}
	}
	return web.JSON(w, http.StatusOK, answer)
}

// item is what became of one usage of a batch.
func (o *result) item() (api.UsageResult, error) {
	if o.err != nil {
		_, members := web.Problem("", o.err)
		problem, err := json.Marshal(members)
		return api.UsageResult{Result: "refused", Problem: problem}, errors.Join(err)
	}
	u, err := o.record.wire()
	answer := api.UsageResult{Result: "recorded", Usage: &u}
	if o.replayed {
		answer.Result = "replayed"
	}
	return answer, err
}
