package typefilter

import (
	"errors"
	"time"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// dates are the values of a date parameter (R4 3.1.1.4.7).
type dates []date

type date struct {
	prefix string
	interval
}

// interval is a range of time by the precision of a value: from is in it, to is not.
type interval struct{ from, to time.Time }

// The limits of a Period without start or end. No date is beyond them.
var (
	past   = time.Date(-9999, 1, 1, 0, 0, 0, 0, time.UTC)
	future = time.Date(99999, 1, 1, 0, 0, 0, 0, time.UTC)
)

var errDate = errors.New("a date is YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDThh:mm[:ss[.fff]], with Z, -hh:mm or +hh:mm, " +
	"whose + is %2B in a URL")

func parseDates(values []string) (test, error) {
	var all dates
	for _, value := range values {
		prefix, rest, err := cutPrefix(unescape(value))
		if err != nil {
			return nil, err
		}
		at, ok := parseInterval([]byte(rest))
		if !ok {
			return nil, errDate
		}
		all = append(all, date{prefix, at})
	}
	return all, nil
}

var errPrefix = errors.New("the prefixes are eq, ne, gt, lt, ge, le, sa, eb and ap")

// cutPrefix divides a value into its prefix, eq when there is none, and the rest.
func cutPrefix(value string) (prefix, rest string, err error) {
	if len(value) < 2 || value[0] < 'a' || value[0] > 'z' {
		return "eq", value, nil
	}
	switch prefix = value[:2]; prefix {
	case "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap":
		return prefix, value[2:], nil
	}
	return "", "", errPrefix
}

// match compares a date, dateTime, instant, Period or Timing. What is not one of them does not match, nor does one that
// cannot be read.
func (all dates) match(value []byte) (bool, error) {
	target, ok, err := readInterval(value)
	if !ok || err != nil {
		return false, err
	}
	for i := range all {
		if all[i].holds(target) {
			return true, nil
		}
	}
	return false, nil
}

// holds compares ranges as R4 3.1.1.4.5 has it. The range above a value begins after it, and for ge with it.
func (d *date) holds(target interval) bool {
	within := !target.from.Before(d.from) && !target.to.After(d.to)
	switch d.prefix {
	case "eq":
		return within
	case "ne":
		return !within
	case "gt":
		return target.to.After(d.to)
	case "lt":
		return target.from.Before(d.from)
	case "ge":
		return target.to.After(d.from)
	case "le":
		return target.from.Before(d.to)
	case "sa":
		return !target.from.Before(d.to)
	case "eb":
		return !target.to.After(d.from)
	}
	return target.from.Before(d.to) && d.from.Before(target.to) // ap
}

var dateNames = []string{"start", "end", "event", "repeat"}

// readInterval returns the range of a value, and of a Timing its outer limits.
func readInterval(value []byte) (at interval, ok bool, err error) {
	if value[0] != '{' {
		at, ok = parseInterval(fhir.Text(value))
		return at, ok, nil
	}
	var found [4][]byte
	if _, err = fhir.Fields(value, dateNames, found[:]); err != nil {
		return at, false, err
	}
	if found[0] != nil || found[1] != nil {
		at, ok = period(found[0], found[1])
		return at, ok, nil
	}
	for i, steps := range [][][]string{2: nil, 3: {{"boundsPeriod"}}} {
		if found[i] == nil {
			continue
		}
		_, err = walk(found[i], steps, func(value []byte) (bool, error) {
			one, known, err := readInterval(value)
			if !known || err != nil {
				return false, err
			}
			if !ok || one.from.Before(at.from) {
				at.from = one.from
			}
			if !ok || one.to.After(at.to) {
				at.to = one.to
			}
			ok = true
			return false, nil
		})
		if err != nil {
			return at, false, err
		}
	}
	return at, ok, nil
}

// period returns the range of a Period, which is open where it has no limit.
func period(start, end []byte) (at interval, ok bool) {
	at = interval{past, future}
	if isSet(start) {
		first, ok := parseInterval(fhir.Text(start))
		if !ok {
			return at, false
		}
		at.from = first.from
	}
	if isSet(end) {
		last, ok := parseInterval(fhir.Text(end))
		if !ok {
			return at, false
		}
		at.to = last.to
	}
	return at, isSet(start) || isSet(end)
}

func isSet(value []byte) bool { return value != nil && value[0] != 'n' }

// parseInterval reads a date of FHIR. A time without a zone, and a date, is in UTC.
func parseInterval(s []byte) (at interval, ok bool) {
	year, ok := number(s, 0, 4)
	if !ok || year == 0 {
		return at, false
	}
	if len(s) == 4 {
		from := time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
		return interval{from, from.AddDate(1, 0, 0)}, true
	}
	month, ok := number(s, 5, 2)
	if !ok || s[4] != '-' || month < 1 || month > 12 {
		return at, false
	}
	from := time.Date(year, time.Month(month), 1, 0, 0, 0, 0, time.UTC)
	if len(s) == 7 {
		return interval{from, from.AddDate(0, 1, 0)}, true
	}
	day, ok := number(s, 8, 2)
	if !ok || s[7] != '-' || day < 1 || from.AddDate(0, 0, day-1).Month() != from.Month() {
		return at, false
	}
	from = from.AddDate(0, 0, day-1)
	if len(s) == 10 {
		return interval{from, from.AddDate(0, 0, 1)}, true
	}
	since, width, ok := timeOfDay(s[10:])
	from = from.Add(since)
	return interval{from, from.Add(width)}, ok
}

// timeOfDay reads Thh:mm[:ss[.fff]] and the zone. It returns the time since midnight in UTC and the width of the value.
func timeOfDay(s []byte) (since, width time.Duration, ok bool) {
	hour, ok1 := number(s, 1, 2)
	minute, ok2 := number(s, 4, 2)
	if !ok1 || !ok2 || s[0] != 'T' || s[3] != ':' || hour > 23 || minute > 59 {
		return 0, 0, false
	}
	since, width = time.Duration(hour)*time.Hour+time.Duration(minute)*time.Minute, time.Minute
	s = s[6:]
	if len(s) > 0 && s[0] == ':' {
		second, ok := number(s, 1, 2)
		if !ok || second > 60 { // 60 is a leap second
			return 0, 0, false
		}
		since, width = since+time.Duration(second)*time.Second, time.Second
		s = s[3:]
		if len(s) > 1 && s[0] == '.' && s[1] >= '0' && s[1] <= '9' {
			for s = s[1:]; len(s) > 0 && s[0] >= '0' && s[0] <= '9'; s = s[1:] {
				if width > 1 { // digits after the ninth are below a nanosecond
					width /= 10
					since += time.Duration(s[0]-'0') * width
				}
			}
		}
	}
	if len(s) == 0 || string(s) == "Z" {
		return since, width, true
	}
	hours, ok1 := number(s, 1, 2)
	minutes, ok2 := number(s, 4, 2)
	if len(s) != 6 || !ok1 || !ok2 || s[3] != ':' || hours > 14 || minutes > 59 {
		return 0, 0, false
	}
	offset := time.Duration(hours)*time.Hour + time.Duration(minutes)*time.Minute
	switch s[0] {
	case '+':
		return since - offset, width, true
	case '-':
		return since + offset, width, true
	}
	return 0, 0, false
}

// number reads n digits at i.
func number(s []byte, i, n int) (value int, ok bool) {
	if len(s) < i+n {
		return 0, false
	}
	for _, c := range s[i : i+n] {
		if c < '0' || c > '9' {
			return 0, false
		}
		value = value*10 + int(c-'0')
	}
	return value, true
}
