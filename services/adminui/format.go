package adminui

import (
	"cmp"
	"fmt"
	"html/template"
	"strconv"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/buildinfo"
	"github.com/sluice-fhir/sluice/services/ops"
)

var functions = template.FuncMap{
	"age": age, "until": until, "instant": instant, "size": size, "count": count,
	"plural": plural[int], "plural64": plural[int64], "short": abbreviated,
	"tone": tone, "lastHeard": lastHeard, "percent": percent, "queue": queueName, "cause": causeText,
	"build": buildinfo.Of().String,
	"sub":   func(a, b time.Time) time.Duration { return a.Sub(b) },
	"add":   func(a, b int) int { return a + b },
}

// age formats a duration with at most two units. The second one is omitted if the first one is large.
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

func instant(at time.Time) string {
	if at.IsZero() {
		return "–"
	}
	return at.UTC().Format("2006-01-02 15:04:05 UTC")
}

// size formats a number of bytes with decimal units.
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

// short formats a number with about three digits.
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

// tones maps states to the colour classes of style.css. The colour only repeats what the word shows.
var tones = map[string]string{
	string(export.Planning): "busy", string(export.Running): "busy", string(export.Sealing): "busy",
	string(export.Completed): "good", string(export.Failed): "bad", string(export.Cancelled): "warn",
	string(ops.UnitDelayed): "warn", string(ops.UnitDone): "good", "draining": "warn",
	string(audit.Success): "good", string(audit.Refused): "warn",
}

func tone(state any) string { return cmp.Or(tones[fmt.Sprint(state)], "quiet") }

// queueNames are the queues by their names on the wire.
var queueNames = map[string]string{
	"steering": "short units", "bulk": "long units", "upkeep": "expiry and deletion", "watch": "rescue of lost units",
}

func queueName(wire string) string { return cmp.Or(queueNames[wire], wire) }

var causeTexts = map[export.Cause]string{
	export.CauseUnavailable: "a dependency was unavailable", export.CauseError: "its data could not be read or stored",
	export.CauseDraining: "its worker stopped", export.CauseLost: "its worker sent no heartbeats",
	export.CauseOperator: "an operator retried it",
}

// causeText describes why a unit failed or was returned to the queue, or is "".
func causeText(u ops.Unit) string { return cmp.Or(u.Failure, causeTexts[u.Cause], string(u.Cause)) }

// abbreviated returns the beginning of a job's id, which is enough to distinguish the jobs on one page.
func abbreviated(id export.JobID) string { return string(id[:min(len(id), 12)]) + "…" }

func plural[N int | int64](n N, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return count(int64(n)) + " " + noun
}
