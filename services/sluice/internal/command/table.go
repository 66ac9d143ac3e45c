package command

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
)

// table lays rows out in columns: the first to the left, numbers to the right. The last row is a total, under a line.
func table(rows [][]string) string {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	whole := 2 * (len(widths) - 1)
	for _, width := range widths {
		whole += width
	}
	var text strings.Builder
	for n, row := range rows {
		if n == 1 || n == len(rows)-1 {
			text.WriteString(strings.Repeat("-", whole) + "\n")
		}
		for i, cell := range row {
			if i == 0 {
				fmt.Fprintf(&text, "%-*s", widths[i], cell)
				continue
			}
			fmt.Fprintf(&text, "  %*s", widths[i], cell)
		}
		text.WriteString("\n")
	}
	return text.String()
}

func reportTable(report bulkclient.Report) string {
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
	return table(append(rows, totalRow("total", report.Total)))
}

func totalRow(name string, t bulkclient.Total) []string {
	return []string{
		name, strconv.Itoa(t.Files), strconv.FormatInt(t.Resources, 10), strconv.FormatInt(t.Bytes, 10),
		strconv.FormatFloat(t.Seconds, 'f', 2, 64),
	}
}
