package httpapi

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// instantForm is FHIR's form of an instant (P-08). Years before 1000 are refused: the first one is Go's zero time.
var instantForm = regexp.MustCompile(`^[1-9]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-](0\d|1[0-3]):[0-5]\d|[+-]14:00)$`)

// parseInstant reads an instant. A raw "+" of the zone in a query string is decoded as a space, a common mistake of
// clients.
func parseInstant(text string) (at time.Time, ok bool) {
	if zone := len(text) - len(" 00:00"); zone > 0 && text[zone] == ' ' {
		text = text[:zone] + "+" + text[zone+1:]
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	at = at.UTC()
	// The zone may move the last day of the year 9999 out of what can be stored.
	return at, err == nil && instantForm.MatchString(text) && at.Year() <= 9999
}

// takeInstant reads `_since` or `_until` (P-08, P-09).
func (p *parameters) takeInstant(a asking, name, value string) (time.Time, error) {
	at, ok := parseInstant(strings.TrimSpace(value))
	if !ok {
		return time.Time{}, p.ignore(a, invalid("The parameter "+name+
			" must be an instant with date, time and time zone, such as 2026-01-31T00:00:00Z."))
	}
	return at, nil
}

// window returns `_since` as the export applies it: since, or the snapshot of the export of the owner that the time of its
// manifest continues (spec 9). Such a time is never refused as one of the future, whichever clock it is from.
func (s *service) window(
	ctx context.Context, owner export.Owner, request export.Request, a asking, p *parameters,
) (since, after time.Time, err error) {
	if p.since.IsZero() {
		return since, after, nil
	}
	snapshot, found, err := s.Jobs.Continues(ctx, owner, request, p.since)
	switch {
	case err != nil:
		return since, after, fmt.Errorf("looking up the export that is continued: %w", err)
	case found:
		return since, snapshot, nil
	case p.since.After(s.Now()): // P-10
		return since, after, p.ignore(a, invalid("The parameter _since is in the future."))
	}
	return p.since, after, nil
}
