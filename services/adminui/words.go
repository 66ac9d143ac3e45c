package adminui

import (
	"fmt"
	"strconv"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// age puts a duration into a few characters: two units at most, the second only beside a small first one.
func age(d time.Duration) string {
	d = max(d, 0).Truncate(time.Second)
	day := 24 * time.Hour
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 10*time.Minute && d%time.Minute != 0:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < day:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%d d %d h", d/day, d%day/time.Hour)
	}
}

// since is the age of an instant; a dash stands for none.
func since(at, now time.Time) string {
	if at.IsZero() {
		return "–"
	}
	return age(now.Sub(at))
}

// until tells how far an instant lies ahead.
func until(at, now time.Time) string {
	switch {
	case at.IsZero():
		return "–"
	case !at.After(now):
		return "due"
	default:
		return "in " + age(at.Sub(now))
	}
}

// instant is a point of time in UTC.
func instant(at time.Time) string {
	if at.IsZero() {
		return "–"
	}
	return at.UTC().Format("2006-01-02 15:04:05 UTC")
}

// size puts bytes into a few characters, by powers of a thousand.
func size(bytes int64) string {
	value, units := float64(bytes), []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	for len(units) > 1 && value >= 999.5 {
		value, units = value/1000, units[1:]
	}
	if units[0] == "B" || value >= 99.95 {
		return fmt.Sprintf("%.0f %s", value, units[0])
	}
	return fmt.Sprintf("%.1f %s", value, units[0])
}

// count groups the digits of a number by threes.
func count(n int64) string {
	text := strconv.FormatInt(n, 10)
	for at := len(text) - 3; at > 0 && text[at-1] != '-'; at -= 3 {
		text = text[:at] + " " + text[at:]
	}
	return text
}

// short is a number of about three digits.
func short(value float64) string {
	for _, unit := range []string{"", " k", " M", " G"} {
		if value < 999.5 {
			if value == float64(int64(value)) || value >= 99.5 {
				return fmt.Sprintf("%.0f%s", value, unit)
			}
			return fmt.Sprintf("%.1f%s", value, unit)
		}
		value /= 1000
	}
	return fmt.Sprintf("%.0f T", value)
}

// label is a word with the colour that it is shown in; the colour never says more than the word.
type label struct{ Text, Tone string }

// The tones, as style.css has them.
const (
	good  = "good"
	warn  = "warn"
	bad   = "bad"
	busy  = "busy"
	quiet = "quiet"
)

func stateOf(s export.State) label {
	tone := quiet
	switch s {
	case export.Planning, export.Running, export.Sealing:
		tone = busy
	case export.Completed:
		tone = good
	case export.Failed:
		tone = bad
	case export.Cancelled:
		tone = warn
	case export.Scheduled, export.Expired:
	}
	return label{Text: string(s), Tone: tone}
}

// abbreviated is enough of a job's id to tell it from others on one page.
func abbreviated(id export.JobID) string { return string(id[:min(len(id), 12)]) + "…" }

// plural counts something.
func plural(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return count(int64(n)) + " " + noun
}
