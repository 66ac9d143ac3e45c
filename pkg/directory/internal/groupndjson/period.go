package groupndjson

import (
	"errors"
	"regexp"
	"strings"
	"time"
)

// Period is a FHIR Period. A missing start or end is open (R4 2.24.0.11).
type Period struct {
	Start string `json:"start"`
	End   string `json:"end"`
}

var errDateTime = errors.New("a period's start or end is not a FHIR dateTime")

// Span returns the half-open interval of the period, with nil for an open end. Start and end are inclusive to their
// precision: "If the end of the period is 2012-02-03, this includes any time inclusive up to 2012-02-03T23:59:59" (R4
// 2.24.0.11).
func (p Period) Span() (from, until *time.Time, err error) {
	if p.Start != "" {
		first, _, err := span(p.Start)
		if err != nil {
			return nil, nil, err
		}
		from = &first
	}
	if p.End != "" {
		_, after, err := span(p.End)
		if err != nil {
			return nil, nil, err
		}
		until = &after
	}
	return from, until, nil
}

var dateTimeForm = regexp.MustCompile(
	`^\d{4}(-\d\d(-\d\d(T\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d))?)?)?$`)

// span returns the half-open interval of a dateTime of any precision. Dates have no zone in FHIR: they are read as UTC.
func span(dateTime string) (from, until time.Time, err error) {
	parts := dateTimeForm.FindStringSubmatch(dateTime)
	if parts == nil {
		return from, until, errDateTime
	}
	switch len(dateTime) {
	case len("2006"):
		from, err = time.Parse("2006", dateTime)
		until = from.AddDate(1, 0, 0)
	case len("2006-01"):
		from, err = time.Parse("2006-01", dateTime)
		until = from.AddDate(0, 1, 0)
	case len("2006-01-02"):
		from, err = time.Parse("2006-01-02", dateTime)
		until = from.AddDate(0, 0, 1)
	default:
		from, err = time.Parse(time.RFC3339Nano, dateTime)
		precision := time.Second
		for range strings.TrimPrefix(parts[4], ".") {
			precision /= 10
		}
		until = from.Add(precision)
	}
	if err != nil {
		return from, until, errDateTime // the library's reason quotes the date
	}
	return from, until, nil
}
