package adminui

import (
	"fmt"
	"time"
)

// chart is the throughput as bars, one for each sample. Heights are percentages of the highest bar.
type chart struct {
	Bars    []bar
	Width   int // in bars
	Summary string
}

type bar struct {
	X         int
	Y, Height float64
	Label     string
}

// fewestBars keeps the first samples after a start from filling the whole width.
const fewestBars = 24

func chartOf(samples []sample) chart {
	var total sample
	peak := 0.0
	for _, s := range samples {
		rate, _ := s.perSecond()
		peak = max(peak, rate)
		total.Took += s.Took
		total.Resources += s.Resources
		total.Bytes += s.Bytes
	}
	c := chart{Width: max(len(samples), fewestBars)}
	for i, s := range samples {
		rate, bytes := s.perSecond()
		if rate == 0 {
			continue
		}
		height := 100 * rate / peak
		c.Bars = append(c.Bars, bar{
			X: c.Width - len(samples) + i, Y: 100 - height, Height: height,
			Label: fmt.Sprintf("%s: %s resources/s, %s/s", s.At.UTC().Format(time.TimeOnly), short(rate), size(int64(bytes))),
		})
	}
	c.Summary = fmt.Sprintf("%s resources (%s of NDJSON) in the last %s; at most %s resources/s.",
		count(total.Resources), size(total.Bytes), age(total.Took), short(peak))
	return c
}
