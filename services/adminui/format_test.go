package adminui

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestChart(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	if c := chartOf(nil); len(c.Bars) != 0 || !strings.HasPrefix(c.Summary, "0 resources (0 B of NDJSON)") {
		t.Errorf("without samples: %+v", c)
	}
	c := chartOf([]sample{
		{At: now.Add(-10 * time.Second), Took: 5 * time.Second, Resources: 5000, Bytes: 5e6},
		{At: now.Add(-5 * time.Second), Took: 5 * time.Second},
		{At: now, Took: 5 * time.Second, Resources: 2500, Bytes: 2e6},
	})
	want := []bar{
		{X: fewestBars - 3, Y: 0, Height: 100, Label: "11:59:50: 1 k resources/s, 1.0 MB/s"},
		{X: fewestBars - 1, Y: 50, Height: 50, Label: "12:00:00: 500 resources/s, 400 kB/s"},
	}
	if !slices.Equal(c.Bars, want) {
		t.Errorf("bars %+v, want %+v", c.Bars, want)
	}
	if want := "7 500 resources (7.0 MB of NDJSON) in the last 15 s; at most 1 k resources/s."; c.Summary != want {
		t.Errorf("summary %q, want %q", c.Summary, want)
	}
}

func TestFormats(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 59 * time.Second: "59 s", 90 * time.Second: "1 min 30 s", 10*time.Minute + time.Second: "10 min",
		61 * time.Minute: "1 h 1 min", 49 * time.Hour: "2 d 1 h",
	} {
		if got := age(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 99_940: "99.9 kB", 123_456: "123 kB", 999_999: "1.0 MB", 5e12: "5.0 TB"} {
		if got := size(n); got != want {
			t.Errorf("%d bytes: %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1 000", 1234567: "1 234 567", -1000: "-1 000", -100: "-100"} {
		if got := count(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	for value, want := range map[float64]string{0: "0", 2.5: "2.5", 99.4: "99.4", 123.4: "123", 1000: "1 k", 2500: "2.5 k", 5e6: "5 M"} {
		if got := short(value); got != want {
			t.Errorf("%v: %q, want %q", value, got, want)
		}
	}
}
