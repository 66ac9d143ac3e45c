package adminui

import (
	"strings"
	"testing"
	"time"
)

func TestChart(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	empty := draw(nil, now)
	if len(empty.Bars) != 0 || len(empty.Lines) != 5 || !strings.HasPrefix(empty.Told, "0 resources (0 B of NDJSON)") {
		t.Errorf("without samples: %+v", empty)
	}
	samples := []sample{
		{At: now.Add(-2 * time.Hour), Took: 5 * time.Second, Resources: 1e9, Bytes: 1e12}, // from before the axis
		{At: now.Add(-10 * time.Second), Took: 5 * time.Second, Resources: 5000, Bytes: 5e6},
		{At: now.Add(-5 * time.Second), Took: 5 * time.Second},
		{At: now, Took: 5 * time.Second, Resources: 2500, Bytes: 2e6},
	}
	c := draw(samples, now)
	if len(c.Bars) != 2 {
		t.Fatalf("%d bars, want 2: one for each sample on the axis with something in it", len(c.Bars))
	}
	if c.Lines[4].Label != "1 k" || c.Lines[0].Label != "0" {
		t.Errorf("the axis goes from %q to %q", c.Lines[0].Label, c.Lines[4].Label)
	}
	full := number(chartHeight - chartTop - chartBottom)
	if c.Bars[0].Height != full || c.Bars[1].Height != full/2 {
		t.Errorf("heights %v and %v, want %v and half of it", c.Bars[0].Height, c.Bars[1].Height, full)
	}
	for _, bar := range c.Bars {
		if bar.X < chartLeft || bar.X+bar.Width > chartWidth-chartRight+0.1 || bar.Y < chartTop-0.1 || bar.Width <= 0 {
			t.Errorf("a bar outside of the chart: %+v", bar)
		}
	}
	if !strings.HasPrefix(c.Told, "7 500 resources (7.0 MB of NDJSON) were committed") {
		t.Errorf("told: %s", c.Told)
	}
	if c.Bars[0].Told != "11:59:50: 1 k resources/s, 1.0 MB/s" {
		t.Errorf("told of a bar: %s", c.Bars[0].Told)
	}
}

func TestWords(t *testing.T) {
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
	for value, want := range map[float64]float64{0: 4, 3: 4, 5: 10, 10: 10, 11: 20, 21: 40, 41: 100, 1234: 2000} {
		if got := ceiling(value); got != want {
			t.Errorf("the axis for %v ends at %v, want %v", value, got, want)
		}
	}
}
