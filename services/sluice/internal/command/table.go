package command

import (
	"maps"
	"slices"
	"strconv"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
)

func reportRows(report bulkclient.Report) [][]string {
	rows := [][]string{{"type", "files", "resources", "bytes", "seconds"}}
	for _, total := range report.Types {
		rows = append(rows, totalRow(total.Type, total))
	}
	if report.Deleted.Files > 0 {
		rows = append(rows, totalRow("(deleted)", report.Deleted))
	}
	if report.Errors.Files > 0 {
		rows = append(rows, totalRow("(errors)", report.Errors))
	}
	return append(rows, totalRow("total", report.Total))
}

func totalRow(name string, t bulkclient.Total) []string {
	seconds := strconv.FormatFloat(t.Seconds, 'f', 2, 64)
	return []string{name, strconv.Itoa(t.Files), decimal(t.Resources), decimal(t.Bytes), seconds}
}

// countRows are the rows of counts by type, with the sum.
func countRows(counts map[string]int64) (rows [][]string, sum int64) {
	rows = [][]string{{"type", "resources"}}
	for _, typ := range slices.Sorted(maps.Keys(counts)) {
		rows = append(rows, []string{typ, decimal(counts[typ])})
		sum += counts[typ]
	}
	return append(rows, []string{"total", decimal(sum)}), sum
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }
