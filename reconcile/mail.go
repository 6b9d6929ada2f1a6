package reconcile

import (
	"bytes"
	"embed"
	"encoding/csv"
	"fmt"
	htmltemplate "html/template"
	"maps"
	"slices"
	"strings"
	texttemplate "text/template"
	"time"

	"tallystick/internal/web"
)

// shownMax bounds the findings that a mail spells out; the attached file has all.
const shownMax = 20

//go:embed templates
var templates embed.FS

// Embedded files parse or the program is broken: a mistake here is found by any test.
var (
	htmlMails = htmltemplate.Must(htmltemplate.ParseFS(templates, "templates/*.html"))
	textMails = texttemplate.Must(texttemplate.ParseFS(templates, "templates/*.txt"))
)

// letter is what the templates show.
type letter struct {
	Lead     string // what to do by when
	Total    string // money at risk
	Count    int
	More     int // findings that are only in the attached file
	Findings []line
	Overview string // address of the list of findings; "" for none
	Now      string
}

// line is one finding in a mail.
type line struct {
	Finding
	Money    string
	When     string
	Deadline string
	What     string // the repair, in words
	Link     string
	Other    string // whose the other value is
	Stripe   string // address of the object in Stripe's dashboard
	Color    string
}

var colors = map[string]string{"critical": "#b3261e", "high": "#c4500c", "medium": "#8a6100", "low": "#4a5a6a"}

func (r *Reconciler) findingsMail(findings []Finding, now time.Time) (Mail, error) {
	l := letter{Total: totalMoney(findings), Count: len(findings), Now: now.Format("2 January 2006, 15:04 UTC"), Overview: r.link("/v1/findings")}
	l.More = max(0, len(findings)-shownMax)
	for _, f := range findings[:min(len(findings), shownMax)] {
		l.Findings = append(l.Findings, r.line(f))
	}
	l.Lead = lead(findings)
	noun := "mismatches"
	if len(findings) == 1 {
		noun = "mismatch"
	}
	file, err := findingsCSV(findings)
	if err != nil {
		return Mail{}, err
	}
	m := Mail{Subject: fmt.Sprintf("%s at risk: %d billing %s", l.Total, len(findings), noun), CSV: file}
	return m, m.render("findings", l)
}

func (r *Reconciler) clearMail(count int, now time.Time) (Mail, error) {
	m := Mail{Subject: "All clear: our books and Stripe agree again"}
	return m, m.render("clear", letter{Count: count, Now: now.Format("2 January 2006, 15:04 UTC"), Overview: r.link("/v1/findings?state=all")})
}

func (m *Mail) render(name string, l letter) error {
	var text, html bytes.Buffer
	if err := textMails.ExecuteTemplate(&text, name+".txt", l); err != nil {
		return fmt.Errorf("render the mail: %w", err)
	}
	if err := htmlMails.ExecuteTemplate(&html, name+".html", l); err != nil {
		return fmt.Errorf("render the mail: %w", err)
	}
	m.Text, m.HTML = text.String(), html.String()
	return nil
}

func (r *Reconciler) link(path string) string {
	if r.PublicURL == "" {
		return ""
	}
	return strings.TrimSuffix(r.PublicURL, "/") + path
}

func (r *Reconciler) line(f Finding) line {
	l := line{
		Finding: f, Money: f.MoneyText(), When: f.HappenedAt.UTC().Format("2 Jan 2006, 15:04 UTC"), Link: r.link("/v1/findings/" + f.ID), Color: colors[f.Severity], Other: "Stripe's",
		What: "No repair is known; somebody has to look at it.",
	}
	if strings.HasPrefix(f.Check, "ledger.") {
		l.Other = "Journal's"
	}
	if f.Deadline != nil {
		l.Deadline = f.Deadline.UTC().Format("2 Jan 2006, 15:04 UTC")
	}
	if f.Repair != "" {
		l.What = "Repair: " + strings.TrimPrefix(f.plan(), "would ") + ": tallystick findings repair " + f.ID
	}
	if id, ok := strings.CutPrefix(f.Subject, "payment/pi_"); ok {
		l.Stripe = "https://dashboard.stripe.com/payments/pi_" + id
	}
	return l
}

// lead is the first line: what to do, by when.
func lead(findings []Finding) string {
	repairable := 0
	var first *time.Time
	for _, f := range findings {
		if f.Repair != "" {
			repairable++
		}
		if f.Deadline != nil && (first == nil || f.Deadline.Before(*first)) {
			first = f.Deadline
		}
	}
	action := "Look at these by hand; no repair is known."
	if repairable == len(findings) {
		action = "Approve the repairs"
	} else if repairable > 0 {
		action = fmt.Sprintf("Approve the repair of %d, look at the other %d", repairable, len(findings)-repairable)
	}
	if repairable == 0 {
		return action
	}
	if first != nil {
		return action + " before " + first.UTC().Format("2 January 2006, 15:04 UTC") + "."
	}
	return action + "."
}

// totalMoney adds money up per currency; unknown amounts are said, not hidden.
func totalMoney(findings []Finding) string {
	sums := map[string]int64{}
	unknown := 0
	for _, f := range findings {
		if f.Money == nil {
			unknown++
			continue
		}
		sums[f.Currency] += *f.Money
	}
	var texts []string
	for _, currency := range slices.Sorted(maps.Keys(sums)) {
		texts = append(texts, money{amount: sums[currency], currency: currency}.String())
	}
	if unknown > 0 {
		texts = append(texts, "an unknown amount")
	}
	return strings.Join(texts, " and ")
}

func findingsCSV(findings []Finding) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	rows := [][]string{{"finding", "check", "severity", "account", "subject", "ours", "theirs", "difference", "unit", "money_at_risk", "currency", "cause", "explanation", "deadline", "first_seen"}}
	for _, f := range findings {
		amount, deadline := "", ""
		if f.Money != nil {
			amount = strings.TrimSuffix(f.MoneyText(), " "+strings.ToUpper(f.Currency))
		}
		if f.Deadline != nil {
			deadline = f.Deadline.UTC().Format(time.RFC3339)
		}
		rows = append(rows, []string{
			f.ID, f.Check, f.Severity, web.Cell(f.Account), web.Cell(f.Subject), f.Ours, f.Theirs, f.Difference, f.Unit, amount, strings.ToUpper(f.Currency),
			f.Cause, web.Cell(f.Explanation), deadline, f.FirstSeen.UTC().Format(time.RFC3339),
		})
	}
	if err := w.WriteAll(rows); err != nil {
		return nil, fmt.Errorf("write the findings as CSV: %w", err)
	}
	return b.Bytes(), nil
}
