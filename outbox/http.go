package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/web"
)

var (
	errNoDelivery = &fault.Error{Kind: fault.KindNotFound, Code: "delivery_not_found", Public: "there is no such delivery"}
	errNotRetried = &fault.Error{Kind: fault.KindConflict, Code: "delivery_not_retryable", Public: "only a pending, ambiguous or rejected delivery can be sent again; one that needs review is settled by Stripe's totals or by reconcile, because Stripe may have it"}
	errReplaced   = &fault.Error{Kind: fault.KindConflict, Code: "delivery_replaced", Public: "another delivery took its place: sending both would bill it twice"}
)

var deliveryStates = []string{"pending", "sending", "delivered", "ambiguous", "rejected", "needs_review"}

// Routes lists what the outbox serves.
func (o *Outbox) Routes() []web.Route {
	return []web.Route{
		{Method: "GET", Pattern: "/v1/deliveries", Scope: "read", Handler: o.handleList},
		{Method: "POST", Pattern: "/v1/deliveries/{id}/retry", Scope: "admin", Handler: o.handleRetry},
	}
}

type deliveryRow struct {
	Account     string          `db:"account"`
	Meter       string          `db:"meter"`
	Bucket      time.Time       `db:"bucket"`
	Sequence    int             `db:"sequence"`
	Backend     string          `db:"backend"`
	Price       string          `db:"price"`
	Item        string          `db:"subscription_item"`
	SentValue   *int64          `db:"sent_value"`
	SentAt      *time.Time      `db:"sent_at"`
	ReplacedBy  string          `db:"replaced_by"`
	Origin      string          `db:"origin"`
	Quantity    credit.Quantity `db:"quantity"`
	Usages      int64           `db:"usages"`
	State       string          `db:"state"`
	EventName   string          `db:"event_name"`
	Customer    string          `db:"customer"`
	Identifier  string          `db:"identifier"`
	Attempts    int             `db:"attempts"`
	Error       string          `db:"error"`
	NextTryAt   time.Time       `db:"next_try_at"`
	FirstSentAt *time.Time      `db:"first_sent_at"`
	DeliveredAt *time.Time      `db:"delivered_at"`
}

func (d deliveryRow) wire() api.Delivery {
	return api.Delivery{
		ID: d.Identifier, Account: d.Account, Meter: d.Meter, Bucket: d.Bucket.UTC(), Sequence: d.Sequence, Origin: d.Origin,
		Quantity: api.Decimal(d.Quantity.String()), Usages: d.Usages, State: d.State, Customer: d.Customer, EventName: d.EventName,
		Backend: d.Backend, Price: d.Price, SubscriptionItem: d.Item, SentValue: d.sent(), SentAt: utc(d.SentAt), ReplacedBy: d.ReplacedBy,
		Attempts: d.Attempts, Error: d.Error, NextTryAt: d.NextTryAt.UTC(), FirstSentAt: utc(d.FirstSentAt), DeliveredAt: utc(d.DeliveredAt),
	}
}

// sent is what Stripe was told, in units; nil when nothing was sent yet.
func (d deliveryRow) sent() *api.Decimal {
	if d.SentValue == nil {
		return nil
	}
	value := credit.Quantity(*d.SentValue)
	if d.Backend == backendRecord {
		value *= unit
	}
	text := api.Decimal(value.String())
	return &text
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

// position is where a page of deliveries ends.
type position struct {
	Bucket     time.Time
	Identifier string
}

// sqlList pages backwards over the index deliveries_by_bucket.
const sqlList = `
	SELECT account, meter, bucket, sequence, origin, quantity, usages, state, event_name, customer, identifier, attempts, error, next_try_at,
		first_sent_at, delivered_at, backend, price, subscription_item, sent_value, sent_at, replaced_by
	FROM deliveries
	WHERE (bucket, identifier) < ($1, $2) AND ($3 = '' OR state = $3) AND ($4 = '' OR account = $4)
	ORDER BY bucket DESC, identifier DESC
	LIMIT $5`

func (o *Outbox) handleList(w http.ResponseWriter, r *http.Request) error {
	after := position{Bucket: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	limit, err := web.Page(r, &after)
	if err != nil {
		return err
	}
	state, account := r.URL.Query().Get("state"), r.URL.Query().Get("account")
	if state != "" && !slices.Contains(deliveryStates, state) {
		var p fault.Problems
		p.Addf("#query/state", "must be one of %v", deliveryStates)
		return p.Err(fault.ErrInvalid)
	}
	var rows []deliveryRow
	err = o.DB.Read(r.Context(), func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(r.Context(), &rows, sqlList, after.Bucket, after.Identifier, state, account, limit+1)
	})
	if err != nil {
		return err
	}
	list := make([]api.Delivery, len(rows))
	for i, d := range rows {
		list[i] = d.wire()
	}
	return web.JSON(w, http.StatusOK, web.Paged(list, limit, func(d api.Delivery) any { return position{d.Bucket, d.ID} }))
}

// sqlLockDelivery finds a delivery by its identifier; operators do so, seldom.
const sqlLockDelivery = `SELECT state, replaced_by FROM deliveries WHERE identifier = $1 FOR UPDATE`

// sqlRetry makes a delivery due. A rejected one keeps its identifier: Stripe did
// not take it, so sending it again cannot double it.
const sqlRetry = `
	UPDATE deliveries SET state = CASE WHEN state = 'rejected' THEN 'pending' ELSE state END, next_try_at = $2, updated_at = $2
	WHERE identifier = $1
	RETURNING account, meter, bucket, sequence, origin, quantity, usages, state, event_name, customer, identifier, attempts, error, next_try_at,
		first_sent_at, delivered_at, backend, price, subscription_item, sent_value, sent_at, replaced_by`

func (o *Outbox) handleRetry(w http.ResponseWriter, r *http.Request) error {
	row, err := o.retry(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, row.wire())
}

func (o *Outbox) retry(ctx context.Context, identifier string) (row deliveryRow, err error) {
	err = o.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		var state, by string
		err := tx.QueryRowxContext(ctx, sqlLockDelivery, identifier).Scan(&state, &by)
		if errors.Is(err, sql.ErrNoRows) {
			return errNoDelivery
		}
		if err != nil {
			return fmt.Errorf("find delivery %s: %w", identifier, err)
		}
		if by != "" {
			return errReplaced
		}
		if state != "pending" && state != "ambiguous" && state != "rejected" {
			return errNotRetried
		}
		return tx.GetContext(ctx, &row, sqlRetry, identifier, o.Now())
	})
	return row, err
}
