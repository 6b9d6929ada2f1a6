package main

import (
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"tallystick/api"
	"tallystick/internal/web"
)

func (p *program) deliveriesCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "deliveries", Short: "Show usage on its way to Stripe, and send it again", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(p.deliveriesListCommand(), p.deliveriesRetryCommand())
	return c
}

func (p *program) deliveriesListCommand() *cobra.Command {
	var state, account, cursor string
	var limit int
	c := &cobra.Command{
		Use:   "list",
		Short: "List deliveries, the newest minute first",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			query := url.Values{"limit": {strconv.Itoa(limit)}}
			for name, value := range map[string]string{"state": state, "account": account, "cursor": cursor} {
				if value != "" {
					query.Set(name, value)
				}
			}
			var answer web.List[api.Delivery]
			raw, err := server.call(c.Context(), http.MethodGet, "/v1/deliveries?"+query.Encode(), nil, &answer)
			if err != nil {
				return err
			}
			lines := make([][]string, len(answer.Data))
			for i, d := range answer.Data {
				lines[i] = deliveryLine(d)
			}
			return p.rows([]string{"delivery", "account", "meter", "bucket", "quantity", "sent", "state", "to", "tries", "next try", "error"}, lines, raw, answer)
		},
	}
	c.Flags().StringVar(&state, "state", "", "pending, sending, delivered, ambiguous, rejected or needs_review")
	c.Flags().StringVar(&account, "account", "", "only this account")
	c.Flags().StringVar(&cursor, "cursor", "", "go on after a page, with its next_cursor (--output json shows it)")
	c.Flags().IntVar(&limit, "limit", 100, "most deliveries to list, 1 to 500")
	return c
}

func deliveryLine(d api.Delivery) []string {
	to, sent := d.Customer, ""
	if d.SubscriptionItem != "" {
		to += " " + d.SubscriptionItem
	}
	if d.SentValue != nil {
		sent = string(*d.SentValue)
	}
	return []string{
		d.ID, d.Account, d.Meter, d.Bucket.Format(time.RFC3339), string(d.Quantity), sent, d.State, to, strconv.Itoa(d.Attempts), d.NextTryAt.Format(time.RFC3339), d.Error,
	}
}

func (p *program) deliveriesRetryCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "retry DELIVERY",
		Short: "Send a pending, ambiguous or rejected delivery now, with the same identifier",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			var d api.Delivery
			raw, err := server.call(c.Context(), http.MethodPost, "/v1/deliveries/"+url.PathEscape(args[0])+"/retry", nil, &d)
			if err != nil {
				return err
			}
			return p.rows([]string{"", d.ID}, [][]string{
				{"account", d.Account},
				{"meter", d.Meter},
				{"bucket", d.Bucket.Format(time.RFC3339)},
				{"quantity", string(d.Quantity)},
				{"state", d.State},
				{"tries", strconv.Itoa(d.Attempts)},
			}, raw, d)
		},
	}
}
