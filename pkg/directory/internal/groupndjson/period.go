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

// dateTimeForm is the form of a FHIR dateTime. Two deviations are clear enough to be accepted: t and z in lower case, and
// missing seconds, which R4 allows to be zero-filled. A time without a zone, or with one like -0500, is not: guessing
// may include a patient who has left the group.
var dateTimeForm = regexp.MustCompile(
	`^\d{4}(?:-\d\d(?:-\d\d(?:(T\d\d:\d\d)(:\d\d)?(?:\.(\d+))?(Z|[+-]\d\d:\d\d))?)?)?$`)

// span returns the half-open interval of a dateTime of any precision. Dates have no zone in FHIR: they are read as UTC.
func span(dateTime string) (from, until time.Time, err error) {
	dateTime = strings.ToUpper(dateTime)
	parts := dateTimeForm.FindStringSubmatch(dateTime)
	if parts == nil {
		return from, until, errDateTime
	}
	minutes, seconds, fraction, zone := parts[1], parts[2], parts[3], parts[4]
	switch {
	case minutes == "" && len(dateTime) == len("2006"):
		from, err = time.Parse("2006", dateTime)
		until = from.AddDate(1, 0, 0)
	case minutes == "" && len(dateTime) == len("2006-01"):
		from, err = time.Parse("2006-01", dateTime)
		until = from.AddDate(0, 1, 0)
	case minutes == "":
		from, err = time.Parse("2006-01-02", dateTime)
		until = from.AddDate(0, 0, 1)
	case seconds == "" && fraction != "":
		return from, until, errDateTime
	case seconds == "":
		from, err = time.Parse(time.RFC3339, dateTime[:len("2006-01-02")]+minutes+":00"+zone)
		until = from.Add(time.Second)
	default:
		from, err = time.Parse(time.RFC3339Nano, dateTime)
		precision := time.Second
		for range fraction {
			precision = max(precision/10, 1)
		}
		until = from.Add(precision)
	}
	if err != nil {
		return from, until, errDateTime // the library's reason quotes the date
	}
	return from, until, nil
}
