package main

import (
	"encoding/csv"
	"encoding/json"

	"github.com/jedib0t/go-pretty/v6/table"

	"tallystick/internal/web"
)

// rows prints a result as it was asked for. With json, raw is printed as it came
// from the server, or v is encoded where there is no raw.
func (p *program) rows(header []string, lines [][]string, raw []byte, v any) error {
	switch p.output {
	case "json":
		return p.json(raw, v)
	case "csv":
		w := csv.NewWriter(p.stdout)
		_ = w.Write(header)
		for _, line := range lines {
			safe := make([]string, len(line))
			for i, cell := range line {
				safe[i] = web.Cell(cell)
			}
			_ = w.Write(safe)
		}
		w.Flush()
		return w.Error()
	}
	if len(lines) == 0 {
		p.note("nothing to show")
		return nil
	}
	t := table.NewWriter()
	t.SetOutputMirror(p.stdout)
	t.SetStyle(table.StyleLight)
	t.Style().Options.SeparateRows = false
	t.AppendHeader(row(header))
	for _, line := range lines {
		t.AppendRow(row(line))
	}
	t.Render()
	return nil
}

func (p *program) json(raw []byte, v any) error {
	if raw == nil {
		var err error
		if raw, err = json.MarshalIndent(v, "", "  "); err != nil {
			return err
		}
		raw = append(raw, '\n')
	}
	_, err := p.stdout.Write(raw)
	return err
}

func row(cells []string) table.Row {
	r := make(table.Row, len(cells))
	for i, c := range cells {
		r[i] = c
	}
	return r
}
