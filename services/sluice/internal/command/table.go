package command

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/services/sluice/internal/progress"
)

func (a *app) withJSON(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.flags.json, "json", false, "print the result as JSON")
	return cmd
}

// show prints a value as JSON with --json, else as tables. It omits tables without rows, except the first one.
func (a *app) show(value any, tables ...[]row) error {
	if a.flags.json {
		return a.printJSON(value)
	}
	for i, rows := range tables {
		if i > 0 && len(rows) < 2 {
			continue
		}
		if i > 0 {
			rows = slices.Insert(rows, 0, row{})
		}
		if err := a.printColumns(rows); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printJSON(value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return a.print(string(text) + "\n")
}

type row []any

// printColumns writes rows as a table. The first row is the heading.
func (a *app) printColumns(rows []row) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, value := range row {
			switch value := value.(type) {
			case time.Time:
				cells[i] = instant(value)
			case time.Duration:
				cells[i] = span(value)
			default:
				cells[i] = fmt.Sprint(value)
			}
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

func reportRows(report bulkclient.Report) []row {
	rows := []row{{"type", "files", "resources", "size", "seconds"}}
	add := func(name string, t bulkclient.Total) {
		rows = append(rows, row{name, t.Files, t.Resources, progress.Size(t.Bytes), fmt.Sprintf("%.2f", t.Seconds)})
	}
	for _, total := range report.Types {
		add(cmp.Or(total.Type, "(by "+report.OrganizedBy+")"), total)
	}
	if report.Deleted.Files > 0 {
		add("(deleted)", report.Deleted)
	}
	if report.Errors.Files > 0 {
		add("(errors)", report.Errors)
	}
	add("total", report.Total)
	return rows
}

// countRows returns the table rows of counts by type, and the sum.
func countRows(counts map[string]int64) (rows []row, sum int64) {
	rows = []row{{"type", "resources"}}
	for _, typ := range slices.Sorted(maps.Keys(counts)) {
		rows = append(rows, row{typ, counts[typ]})
		sum += counts[typ]
	}
	return append(rows, row{"total", sum}), sum
}

func instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// span formats a duration with at most two units.
func span(d time.Duration) string {
	switch abs := d.Abs(); {
	case abs >= 48*time.Hour:
		return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(abs.Hours())%24)
	case abs >= time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(abs.Minutes())%60)
	case abs >= time.Minute:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(abs.Seconds())%60)
	case abs >= 10*time.Second:
		return d.Round(time.Second).String()
	}
	return d.Round(100 * time.Millisecond).String()
}
