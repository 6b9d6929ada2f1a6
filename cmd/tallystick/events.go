package main

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"tallystick/api"
	"tallystick/internal/clock"
	"tallystick/internal/web"
)

func (p *program) eventsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "events", Short: "Show Stripe's events, apply them again, and settle payments that nobody could map", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(p.eventsListCommand(), p.eventsReplayCommand(), p.eventsBackfillCommand(), p.eventsParkedCommand(), p.eventsApplyCommand(), p.eventsMapCommand())
	return c
}

var eventHeader = []string{"event", "type", "state", "tries", "source", "created", "received", "error"}

func eventLine(e api.StripeEvent) []string {
	return []string{
		e.ID, e.Type, e.State, strconv.Itoa(e.Attempts), e.Source, e.CreatedAt.Format(time.RFC3339), e.ReceivedAt.Format(time.RFC3339), e.Error,
	}
}

// pages reads a list to its end, or until it has so many.
func pages[T any](ctx context.Context, server *client, path string, query url.Values, most int) ([]T, error) {
	all := []T{}
	for {
		query.Set("limit", strconv.Itoa(min(500, most-len(all))))
		var page web.List[T]
		if _, err := server.call(ctx, http.MethodGet, path+"?"+query.Encode(), nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Data...)
		if page.NextCursor == nil || len(all) >= most {
			return all, nil
		}
		query.Set("cursor", *page.NextCursor)
	}
}

// everything is as much as a list is read to.
const everything = 1_000_000

func (p *program) eventsListCommand() *cobra.Command {
	var state, kind, id string
	var most int
	c := &cobra.Command{
		Use:   "list",
		Short: "List the inbox, newest first",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			if most < 1 {
				return usageError("--limit must be positive")
			}
			events, err := pages[api.StripeEvent](c.Context(), server, "/v1/stripe/events", url.Values{"state": {state}, "type": {kind}, "id": {id}}, most)
			if err != nil {
				return err
			}
			return p.showEvents(events)
		},
	}
	c.Flags().StringVar(&state, "state", "", "pending, done, ignored, flagged or failed")
	c.Flags().StringVar(&kind, "type", "", "only this type")
	c.Flags().StringVar(&id, "id", "", "one event, with its payload in --output json")
	c.Flags().IntVar(&most, "limit", 100, "list at most so many")
	return c
}

func (p *program) showEvents(events []api.StripeEvent) error {
	lines := make([][]string, len(events))
	for i, e := range events {
		lines[i] = eventLine(e)
	}
	return p.rows(eventHeader, lines, nil, events)
}

func (p *program) eventsReplayCommand() *cobra.Command {
	var failed, dry bool
	c := &cobra.Command{
		Use:   "replay [EVENT…]",
		Short: "Apply events again, named ones or all that failed; it changes nothing unless Stripe says something new",
		RunE: func(c *cobra.Command, args []string) error {
			if failed != (len(args) == 0) {
				return usageError("name events, or say --failed")
			}
			server, err := p.client()
			if err != nil {
				return err
			}
			ids := args
			if failed {
				events, err := pages[api.StripeEvent](c.Context(), server, "/v1/stripe/events", url.Values{"state": {"failed"}}, everything)
				if err != nil {
					return err
				}
				for _, e := range events {
					ids = append(ids, e.ID)
				}
			}
			return p.replay(c.Context(), server, ids, dry)
		},
	}
	c.Flags().BoolVar(&failed, "failed", false, "all events that failed")
	c.Flags().BoolVar(&dry, "dry-run", false, "show which, do nothing")
	return c
}

func (p *program) replay(ctx context.Context, server *client, ids []string, dry bool) error {
	events := []api.StripeEvent{}
	for _, id := range ids {
		if dry {
			found, err := pages[api.StripeEvent](ctx, server, "/v1/stripe/events", url.Values{"id": {id}}, 1)
			if err != nil {
				return err
			}
			events = append(events, found...)
			continue
		}
		var e api.StripeEvent
		if _, err := server.call(ctx, http.MethodPost, "/v1/stripe/events/"+url.PathEscape(id)+"/replay", nil, &e); err != nil {
			return err
		}
		events = append(events, e)
	}
	return p.showEvents(events)
}

func (p *program) eventsBackfillCommand() *cobra.Command {
	var from, to string
	var dry bool
	c := &cobra.Command{
		Use:   "backfill",
		Short: "List Stripe's events of a time into the inbox, those that are missing there",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			begin, err := timeFlag("--from", from)
			if err != nil {
				return err
			}
			end, err := timeFlag("--to", to)
			if err != nil {
				return err
			}
			now := clock.Now()
			if end == nil {
				end = &now
			}
			if begin == nil {
				month := end.Add(-30 * 24 * time.Hour)
				begin = &month
			}
			if !end.After(*begin) {
				return usageError("--to must be after --from")
			}
			server, err := p.client()
			if err != nil {
				return err
			}
			return p.backfill(c.Context(), server, *begin, *end, dry)
		},
	}
	c.Flags().StringVar(&from, "from", "", "begin, such as 2026-03-01T00:00:00Z (default 30 days before the end; Stripe keeps no more)")
	c.Flags().StringVar(&to, "to", "", "end (default now)")
	c.Flags().BoolVar(&dry, "dry-run", false, "say what is missing, store nothing")
	return c
}

// backfill asks day by day, so that no call takes long.
func (p *program) backfill(ctx context.Context, server *client, from, to time.Time, dry bool) error {
	total := api.Backfill{From: from, To: to, DryRun: dry, Events: []api.MissingEvent{}}
	var lines [][]string
	for day := from; day.Before(to); day = day.Add(24 * time.Hour) {
		end := day.Add(24 * time.Hour)
		if end.After(to) {
			end = to
		}
		var part api.Backfill
		if _, err := server.call(ctx, http.MethodPost, "/v1/stripe/backfill", api.BackfillRequest{From: day, To: end, DryRun: dry}, &part); err != nil {
			return err
		}
		total.Listed, total.Missing, total.Events = total.Listed+part.Listed, total.Missing+part.Missing, append(total.Events, part.Events...)
		p.note("%s: %d listed, %d missing", day.Format(time.DateOnly), part.Listed, part.Missing)
	}
	for _, e := range total.Events {
		lines = append(lines, []string{e.ID, e.Type, e.CreatedAt.Format(time.RFC3339)})
	}
	return p.rows([]string{"missing event", "type", "created"}, lines, nil, total)
}

var paymentHeader = []string{"payment", "state", "account", "credits", "money", "currency", "customer", "created", "reason"}

func (p *program) showPayments(payments []api.StripePayment) error {
	lines := make([][]string, len(payments))
	for i, q := range payments {
		account, reason := "", q.Reason
		if q.Account != nil {
			account = *q.Account
		}
		if q.Review != "" {
			reason = q.Review
		}
		lines[i] = []string{
			q.ID, q.State, account, string(q.Credits), strconv.FormatInt(q.Money, 10), q.Currency, q.Customer, q.CreatedAt.Format(time.RFC3339), reason,
		}
	}
	return p.rows(paymentHeader, lines, nil, payments)
}

func (p *program) eventsParkedCommand() *cobra.Command {
	var review bool
	c := &cobra.Command{
		Use:   "parked",
		Short: "List payments that nobody got the credits of, and why; money is in minor units",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			state := map[bool]string{false: "parked", true: "review"}[review]
			payments, err := pages[api.StripePayment](c.Context(), server, "/v1/stripe/payments", url.Values{"state": {state}}, everything)
			if err != nil {
				return err
			}
			return p.showPayments(payments)
		},
	}
	c.Flags().BoolVar(&review, "review", false, "instead those that failed after their credits were granted")
	return c
}

func (p *program) eventsApplyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "apply [PAYMENT…]",
		Short: "Settle payments by what Stripe says now, named ones or all that are parked",
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			ids := args
			if len(ids) == 0 {
				parked, err := pages[api.StripePayment](c.Context(), server, "/v1/stripe/payments", url.Values{"state": {"parked"}}, everything)
				if err != nil {
					return err
				}
				for _, q := range parked {
					ids = append(ids, q.ID)
				}
			}
			payments := []api.StripePayment{}
			for _, id := range ids {
				q, err := settlePayment(c.Context(), server, id, api.PaymentApplyRequest{})
				if err != nil {
					return err
				}
				payments = append(payments, q)
			}
			return p.showPayments(payments)
		},
	}
}

func settlePayment(ctx context.Context, server *client, id string, q api.PaymentApplyRequest) (payment api.StripePayment, err error) {
	_, err = server.call(ctx, http.MethodPost, "/v1/stripe/payments/"+url.PathEscape(id)+"/apply", q, &payment)
	return payment, err
}

func (p *program) eventsMapCommand() *cobra.Command {
	var q api.PaymentApplyRequest
	var credits string
	c := &cobra.Command{
		Use:   "map PAYMENT --account ACCOUNT --credits N --reason TEXT",
		Short: "Say whom a parked payment is for, or how many credits it buys, and settle it",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			q.Credits = api.Decimal(credits)
			if q.Account == "" && q.Credits == "" || q.Reason == "" {
				return usageError("name --account or --credits or both, and the --reason")
			}
			server, err := p.client()
			if err != nil {
				return err
			}
			payment, err := settlePayment(c.Context(), server, args[0], q)
			if err != nil {
				return err
			}
			return p.showPayments([]api.StripePayment{payment})
		},
	}
	c.Flags().StringVar(&q.Account, "account", "", "whom it is for (default: as Stripe says)")
	c.Flags().StringVar(&credits, "credits", "", "how many credits it buys (default: as Stripe says)")
	c.Flags().StringVar(&q.Reason, "reason", "", "why; it goes into the journal")
	return c
}
