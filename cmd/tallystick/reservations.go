package main

import (
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"tallystick/api"
	"tallystick/internal/web"
)

var reservationHeader = []string{"reservation", "account", "meter", "held", "state", "expires", "captured", "returned", "reason"}

func reservationLine(r api.Reservation) []string {
	return []string{
		r.ID, r.Account, r.Meter, string(r.Credits), r.State, r.ExpiresAt.Format("2006-01-02 15:04:05 UTC"), string(r.Captured), string(r.Returned), r.Reason,
	}
}

func (p *program) reservationsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "reservations", Short: "Show reservations, and end those that nobody ends", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(p.reservationsListCommand(), p.reservationsShowCommand(), p.reservationsCaptureCommand(), p.reservationsReleaseCommand())
	return c
}

func (p *program) reservationsListCommand() *cobra.Command {
	query := url.Values{"limit": {"500"}}
	var account, state string
	c := &cobra.Command{
		Use:   "list",
		Short: "List reservations, those of one account or state if you like",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			query.Set("account", account)
			query.Set("state", state)
			all := []api.Reservation{}
			var lines [][]string
			for more := true; more; {
				var page web.List[api.Reservation]
				if _, err := server.call(c.Context(), http.MethodGet, "/v1/reservations?"+query.Encode(), nil, &page); err != nil {
					return err
				}
				all = append(all, page.Data...)
				if more = page.NextCursor != nil; more {
					query.Set("cursor", *page.NextCursor)
				}
			}
			for _, r := range all {
				lines = append(lines, reservationLine(r))
			}
			return p.rows(reservationHeader, lines, nil, all)
		},
	}
	c.Flags().StringVar(&account, "account", "", "only those of this account")
	c.Flags().StringVar(&state, "state", "", "open, in_doubt, captured, released or expired")
	return c
}

// reservationPath is the address of one reservation, or of a call on it.
func reservationPath(id, call, account string) string {
	path := "/v1/reservations/" + url.PathEscape(id) + call
	if account != "" {
		path += "?account=" + url.QueryEscape(account)
	}
	return path
}

const ofAccount = "its account, where several have a reservation with this id"

func (p *program) reservationsShowCommand() *cobra.Command {
	return p.reservationCommand("show ID", "Show one reservation", http.MethodGet, "")
}

func (p *program) reservationsReleaseCommand() *cobra.Command {
	return p.reservationCommand("release ID", "End a reservation without usage; doing it again changes nothing", http.MethodPost, "/release")
}

// reservationCommand makes a call without a body that answers with a reservation.
func (p *program) reservationCommand(use, short, method, call string) *cobra.Command {
	var account string
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			var r api.Reservation
			raw, err := server.call(c.Context(), method, reservationPath(args[0], call, account), nil, &r)
			if err != nil {
				return err
			}
			return p.rows(reservationHeader, [][]string{reservationLine(r)}, raw, r)
		},
	}
	c.Flags().StringVar(&account, "account", "", ofAccount)
	return c
}

func (p *program) reservationsCaptureCommand() *cobra.Command {
	var account, quantity, credits, at string
	c := &cobra.Command{
		Use:   "capture ID --quantity QUANTITY | --credits CREDITS",
		Short: "End a reservation with the usage that it was for; doing it again changes nothing",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			q := api.CaptureRequest{Quantity: decimalFlag(quantity), Credits: decimalFlag(credits)}
			if q.OccurredAt, err = timeFlag("--at", at); err != nil {
				return err
			}
			var u api.Usage
			raw, err := server.call(c.Context(), http.MethodPost, reservationPath(args[0], "/capture", account), q, &u)
			if err != nil {
				return err
			}
			return p.rows([]string{"usage", "account", "meter", "quantity", "credits", "available"},
				[][]string{{u.ID, u.Account, u.Meter, string(u.Quantity), string(u.Credits), string(u.Balance.Available)}}, raw, u)
		},
	}
	f := c.Flags()
	f.StringVar(&quantity, "quantity", "", "how much of the meter was used")
	f.StringVar(&credits, "credits", "", "how many credits it cost, in place of the quantity")
	f.StringVar(&at, "at", "", "when it happened (default: now)")
	f.StringVar(&account, "account", "", ofAccount)
	return c
}

// decimalFlag is nil for a flag that was left out.
func decimalFlag(text string) *api.Decimal {
	if text == "" {
		return nil
	}
	d := api.Decimal(text)
	return &d
}
