package reconcile

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/csv"
	"fmt"
	htmltemplate "html/template"
	"maps"
	"slices"
	"strings"
	texttemplate "text/template"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/web"
)

// Bounds of what a mail spells out; the attached file has all.
const (
	shownMax  = 20
	groupsMax = 15
	openMax   = 5000 // findings in a report
)

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
	Of       string // what the total is of
	Sums     []sum  // by effect
	Groups   []group
	Count    int
	Findings []line
	More     int    // findings that are only in the attached file
	Overview string // address of the list of findings; "" for none
	Now      string
}

// sum is one figure of a report.
type sum struct{ Name, Money string }

// group is what was found of one cause.
type group struct {
	Check, Cause string
	Count        int
	Money        string
	Recovered    string // of a weekly report
}

// line is one finding in a mail.
type line struct {
	Finding
	Money    string
	Worse    string // what it was when it was last told; "" for news
	When     string
	Deadline string
	What     string // the repair, in words
	Link     string
	Other    string // whose the other value is
	Stripe   string // address of the object in Stripe's dashboard
	Color    string
}

var colors = map[string]string{"critical": "#b3261e", "high": "#c4500c", "medium": "#8a6100", "low": "#4a5a6a"}

// forPeople is how mails write times.
const forPeople = "2 January 2006, 15:04 UTC"

// inOrder puts the most severe first, which is a matter of money and of time left,
// then the dearest.
func inOrder(findings []Finding) []Finding {
	return slices.SortedStableFunc(slices.Values(findings), func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank(b.Severity), rank(a.Severity)), cmp.Compare(b.amount(), a.amount()), cmp.Compare(a.ID, b.ID))
	})
}

// letterOf puts findings into a mail.
func (r *Reconciler) letterOf(findings []Finding, now time.Time) letter {
	sorted := inOrder(findings)
	l := letter{
		Lead: lead(sorted, now), Total: totalMoney(sorted), Of: "at risk", Count: len(sorted), Now: now.UTC().Format(forPeople), Overview: r.link("/v1/findings"),
		More: max(0, len(sorted)-shownMax), Groups: groupsOf(sorted),
	}
	for _, f := range sorted[:min(len(sorted), shownMax)] {
		l.Findings = append(l.Findings, r.line(f, now))
	}
	for _, s := range []struct{ effect, name string }{{effectLeaked, "leaked"}, {effectOverbilled, "over-billed"}, {effectAtRisk, "not known which"}} {
		if of := withEffect(sorted, s.effect); len(of) > 0 {
			l.Sums = append(l.Sums, sum{s.name, totalMoney(of)})
		}
	}
	return l
}

func withEffect(findings []Finding, effect string) (of []Finding) {
	for _, f := range findings {
		if f.Effect == effect {
			of = append(of, f)
		}
	}
	return of
}

// groupsOf sums findings by cause, the dearest first; none where each is told.
func groupsOf(findings []Finding) []group {
	if len(findings) < 4 {
		return nil
	}
	byCause := map[[2]string][]Finding{}
	for _, f := range findings {
		key := [2]string{f.Check, f.Cause}
		byCause[key] = append(byCause[key], f)
	}
	keys := slices.SortedFunc(maps.Keys(byCause), func(a, b [2]string) int {
		return cmp.Or(cmp.Compare(amounts(byCause[b]), amounts(byCause[a])), cmp.Compare(len(byCause[b]), len(byCause[a])), slices.Compare(a[:], b[:]))
	})
	var groups []group
	for _, key := range keys[:min(len(keys), groupsMax)] {
		groups = append(groups, group{Check: key[0], Cause: key[1], Count: len(byCause[key]), Money: totalMoney(byCause[key])})
	}
	return groups
}

// amounts orders groups; across currencies it is but a rough measure.
func amounts(findings []Finding) (all int64) {
	for _, f := range findings {
		all += f.amount()
	}
	return all
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (r *Reconciler) findingsMail(findings []Finding, now time.Time) (Mail, error) {
	l := r.letterOf(findings, now)
	file, err := findingsCSV(findings)
	if err != nil {
		return Mail{}, err
	}
	m := Mail{Subject: fmt.Sprintf("%s at risk: %s", l.Total, plural(len(findings), "billing mismatch", "billing mismatches")), CSV: file}
	return m, m.render("findings", l)
}

func (r *Reconciler) clearMail(gone []Finding, now time.Time) (Mail, error) {
	m := Mail{Subject: "All clear: our books and Stripe agree again"}
	return m, m.render("clear", letter{
		Count: len(gone), Total: totalMoney(gone), Now: now.UTC().Format(forPeople), Overview: r.link("/v1/findings?state=all"), Groups: groupsOf(gone),
	})
}

// sqlReported gives what a report is about: what is open, what opened, and what was
// resolved within a time; over findings_by_state, findings_opened, findings_resolved.
const sqlReported = `
	SELECT ` + findingColumns + `
	FROM findings
	WHERE state <> 'resolved' OR (opened_at >= $1 AND opened_at < $2) OR (resolved_at >= $1 AND resolved_at < $2)
	ORDER BY money DESC NULLS LAST, finding_id
	LIMIT $3`

// reported are the findings of a report.
type reported struct {
	open, opened, recovered, accepted []Finding
}

func readReported(ctx context.Context, tx *sqlx.Tx, from, to time.Time) (p reported, err error) {
	var all []Finding
	if err := tx.SelectContext(ctx, &all, sqlReported, from, to, openMax); err != nil {
		return p, fmt.Errorf("read findings for a report: %w", err)
	}
	within := func(t time.Time) bool { return !t.Before(from) && t.Before(to) }
	for _, f := range all {
		if f.State != StateResolved {
			p.open = append(p.open, f)
		}
		if within(f.OpenedAt) {
			p.opened = append(p.opened, f)
		}
		switch {
		case f.ResolvedAt == nil || !within(*f.ResolvedAt):
		case f.ResolvedBy == "":
			p.recovered = append(p.recovered, f)
		default:
			p.accepted = append(p.accepted, f)
		}
	}
	return p, nil
}

// digestMail tells what is open each day; nil when nothing is and nothing was.
func (r *Reconciler) digestMail(ctx context.Context, tx *sqlx.Tx, slot time.Time) (*Mail, error) {
	p, err := readReported(ctx, tx, slot.Add(-24*time.Hour), slot)
	if err != nil || len(p.open)+len(p.opened)+len(p.recovered)+len(p.accepted) == 0 {
		return nil, err
	}
	var loud []Finding // snoozed ones are counted, not told
	for _, f := range p.open {
		if f.State != StateSnoozed {
			loud = append(loud, f)
		}
	}
	l := r.letterOf(loud, slot)
	l.Of = "at risk in what is open"
	if len(loud) == 0 {
		l.Lead = "Nothing is open that wants you today."
	}
	l.Sums = append(l.Sums,
		sum{"new in the last day", plural(len(p.opened), "finding", "findings")},
		sum{"gone in the last day", plural(len(p.recovered), "finding", "findings") + ", " + totalMoney(p.recovered)},
		sum{"snoozed", plural(len(p.open)-len(loud), "finding", "findings")},
	)
	m := Mail{Subject: fmt.Sprintf("Daily digest: %s at risk, %d open, %d new", l.Total, len(p.open), len(p.opened))}
	if m.CSV, err = findingsCSV(p.open); err != nil {
		return nil, err
	}
	return &m, m.render("findings", l)
}

// weeklyMail says what the week has cost, and what was got back. It goes out also
// when there was nothing: a report that does not come is silence.
func (r *Reconciler) weeklyMail(ctx context.Context, tx *sqlx.Tx, slot time.Time) (*Mail, error) {
	p, err := readReported(ctx, tx, slot.Add(-7*24*time.Hour), slot)
	if err != nil {
		return nil, err
	}
	leaked, overbilled, risk := withEffect(p.opened, effectLeaked), withEffect(p.opened, effectOverbilled), withEffect(p.opened, effectAtRisk)
	l := letter{
		Lead: lead(p.open, slot), Total: totalMoney(p.recovered), Of: "recovered", Count: len(p.open), Now: slot.UTC().Format(forPeople), Overview: r.link("/v1/findings?state=all"),
		Sums: []sum{
			{"leaked", totalMoney(leaked)},
			{"over-billed", totalMoney(overbilled)},
			{"at risk, not known which", totalMoney(risk)},
			{"recovered", totalMoney(p.recovered)},
			{"accepted as it is", totalMoney(p.accepted)},
			{"still open", totalMoney(p.open)},
		},
		Groups: weeklyGroups(p),
	}
	if len(p.open) == 0 {
		l.Lead = "Nothing is open: our books and Stripe agree."
	}
	m := Mail{Subject: fmt.Sprintf("Weekly report: leaked %s, over-billed %s, recovered %s", totalMoney(leaked), totalMoney(overbilled), totalMoney(p.recovered))}
	everything := slices.Concat(p.open, p.recovered, p.accepted)
	if m.CSV, err = findingsCSV(everything); err != nil {
		return nil, err
	}
	return &m, m.render("weekly", l)
}

// weeklyGroups sums a week by cause: what was found, and what was got back.
func weeklyGroups(p reported) []group {
	type sums struct{ found, recovered []Finding }
	byCause := map[[2]string]*sums{}
	of := func(f Finding) *sums {
		key := [2]string{f.Check, f.Cause}
		if byCause[key] == nil {
			byCause[key] = &sums{}
		}
		return byCause[key]
	}
	for _, f := range p.opened {
		of(f).found = append(of(f).found, f)
	}
	for _, f := range p.recovered {
		of(f).recovered = append(of(f).recovered, f)
	}
	keys := slices.SortedFunc(maps.Keys(byCause), func(a, b [2]string) int {
		return cmp.Or(cmp.Compare(amounts(byCause[b].found), amounts(byCause[a].found)), slices.Compare(a[:], b[:]))
	})
	var groups []group
	for _, key := range keys[:min(len(keys), groupsMax)] {
		s := byCause[key]
		g := group{Check: key[0], Cause: key[1], Count: len(s.found), Money: totalMoney(s.found)}
		if len(s.recovered) > 0 {
			g.Recovered = totalMoney(s.recovered)
		}
		groups = append(groups, g)
	}
	return groups
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

func (r *Reconciler) line(f Finding, now time.Time) line {
	l := line{
		Finding: f, Money: totalMoney([]Finding{f}), When: f.HappenedAt.UTC().Format("2 Jan 2006, 15:04 UTC"), Link: r.findingLink(f.ID), Color: colors[f.Severity], Other: "Stripe's",
		What: "No repair is known; somebody has to look at it.", Stripe: r.stripeLink(f),
	}
	switch {
	case strings.HasPrefix(f.Check, "ledger."):
		l.Other = "Journal's"
	case strings.HasPrefix(f.Check, "reconcile."):
		l.Other = "Expected"
	}
	if f.Deadline != nil {
		l.Deadline = f.Deadline.UTC().Format("2 Jan 2006, 15:04 UTC") + " (" + left(f.Deadline.Sub(now)) + ")"
	}
	if f.Repair != "" {
		l.What = "Repair: " + strings.TrimPrefix(f.plan(), "would ") + ": tallystick findings repair " + f.ID
	}
	if f.ToldMoney != nil && f.amount() > *f.ToldMoney {
		l.Worse = money{amount: *f.ToldMoney, currency: f.Currency}.String()
	}
	return l
}

// left reads the time to a deadline.
func left(d time.Duration) string {
	switch {
	case d <= 0:
		return "passed"
	case d < 2*time.Hour:
		return "in " + plural(int(d/time.Minute), "minute", "minutes")
	case d < 48*time.Hour:
		return "in " + plural(int(d/time.Hour), "hour", "hours")
	}
	return "in " + plural(int(d/(24*time.Hour)), "day", "days")
}

// lead is the first line: what to do, by when.
func lead(findings []Finding, now time.Time) string {
	repairable := 0
	var first *time.Time
	for _, f := range findings {
		if f.Repair != "" {
			repairable++
		}
		if f.Deadline != nil && f.Deadline.After(now) && (first == nil || f.Deadline.Before(*first)) {
			first = f.Deadline
		}
	}
	action, rest := "Approve the repairs", ""
	switch {
	case repairable == 0:
		action, rest = "Look at these by hand", "; no repair is known"
		if len(findings) == 1 {
			action = "Look at this by hand"
		}
	case repairable == 1 && len(findings) == 1:
		action = "Approve the repair"
	case repairable < len(findings):
		action = fmt.Sprintf("Approve the repair of %d, look at the other %d", repairable, len(findings)-repairable)
	}
	if first != nil {
		action += " before " + first.UTC().Format(forPeople) + " (" + left(first.Sub(now)) + ")"
	}
	return action + rest + "."
}

// totalMoney sums what is at risk, each currency by itself.
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
	if len(texts) == 0 {
		return "nothing"
	}
	return strings.Join(texts, " and ")
}

func findingsCSV(findings []Finding) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	rows := [][]string{{
		"finding", "check", "severity", "account", "subject", "ours", "theirs", "difference", "unit", "money_at_risk", "currency", "cause", "explanation", "deadline",
		"first_seen", "effect", "remains", "state", "repair", "last_seen",
	}}
	for _, f := range inOrder(findings) {
		amount, deadline := "", ""
		if f.Money != nil {
			amount = strings.TrimSuffix(f.MoneyText(), " "+strings.ToUpper(f.Currency))
		}
		if f.Deadline != nil {
			deadline = f.Deadline.UTC().Format(time.RFC3339)
		}
		rows = append(rows, []string{
			f.ID, f.Check, f.Severity, web.Cell(f.Account), web.Cell(f.Subject), f.Ours, f.Theirs, f.Difference, f.Unit, amount, strings.ToUpper(f.Currency),
			f.Cause, web.Cell(f.Explanation), deadline, f.FirstSeen.UTC().Format(time.RFC3339), f.Effect, web.Cell(f.Remains), f.State, f.Repair,
			f.LastSeen.UTC().Format(time.RFC3339),
		})
	}
	if err := w.WriteAll(rows); err != nil {
		return nil, fmt.Errorf("write the findings as CSV: %w", err)
	}
	return b.Bytes(), nil
}
