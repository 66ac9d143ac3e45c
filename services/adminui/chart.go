package adminui

import (
	"fmt"
	"math"
	"time"
)

// The chart's size in units of its own; the browser scales it to the width that there is.
const (
	chartWidth, chartHeight = 760.0, 250.0
	chartLeft, chartRight   = 70.0, 8.0
	chartTop, chartBottom   = 12.0, 28.0
)

// shortestAxis and longestAxis are the time that the chart shows: as much as there are samples of, between these.
const (
	shortestAxis = 2 * time.Minute
	longestAxis  = samplesKept * sampleEvery
)

type (
	chartLine struct {
		X1, X2, Y      number
		LabelX, LabelY number
		Label          string
	}
	chartBar struct {
		X, Y, Width, Height number
		Told                string
	}
	chartTick struct {
		X, Y   number
		Anchor string
		Label  string
	}
	// chart is what the template draws.
	chart struct {
		Width, Height number
		Lines         []chartLine
		Bars          []chartBar
		Ticks         []chartTick
		Told          string // the same in words
	}
)

// number is a coordinate; a tenth is fine enough.
type number float64

func (n number) String() string { return fmt.Sprintf("%.1f", float64(n)) }

// draw makes the chart of the samples up to now: a bar for each, as high as the resources that were committed a second.
func draw(samples []sample, now time.Time) chart {
	axis := shortestAxis
	if len(samples) > 0 {
		axis = min(max(now.Sub(samples[0].At)+sampleEvery, shortestAxis), longestAxis)
	}
	begin := now.Add(-axis)
	var most float64
	var resources, bytes int64
	for _, s := range samples {
		if s.At.Before(begin) {
			continue
		}
		rate, _ := s.perSecond()
		most = max(most, rate)
		resources += s.Resources
		bytes += s.Bytes
	}
	top := ceiling(most)
	c := chart{Width: chartWidth, Height: chartHeight}
	inner := chartHeight - chartTop - chartBottom
	for i := range 5 {
		share := float64(i) / 4
		y := chartTop + inner*(1-share)
		c.Lines = append(c.Lines, chartLine{
			X1: chartLeft, X2: chartWidth - chartRight, Y: number(y), LabelX: chartLeft - 8, LabelY: number(y + 4),
			Label: short(top * share),
		})
	}
	across := (chartWidth - chartLeft - chartRight) / axis.Seconds()
	for _, s := range samples {
		rate, byteRate := s.perSecond()
		start := max(s.At.Sub(begin).Seconds()-s.Took.Seconds(), 0)
		if end := s.At.Sub(begin).Seconds(); end > start && rate > 0 {
			height := inner * rate / top
			c.Bars = append(c.Bars, chartBar{
				X: number(chartLeft + start*across), Width: number(max((end-start)*across-1, 1)),
				Y: number(chartTop + inner - height), Height: number(height),
				Told: fmt.Sprintf("%s: %s resources/s, %s/s", s.At.UTC().Format("15:04:05"), short(rate), size(int64(byteRate))),
			})
		}
	}
	base := number(chartHeight - 6)
	c.Ticks = []chartTick{
		{X: chartLeft, Y: base, Anchor: "start", Label: age(axis) + " ago"},
		{X: chartWidth - chartRight, Y: base, Anchor: "end", Label: "now"},
	}
	c.Told = fmt.Sprintf("%s resources (%s of NDJSON) were committed in the last %s.",
		count(resources), size(bytes), age(axis))
	return c
}

// ceiling is the next of 1, 2, 4, 10, 20, 40, 100, ..., and 4 at least, so that the lines stand at whole numbers.
func ceiling(value float64) float64 {
	power := 1.0
	for {
		for _, step := range []float64{1, 2, 4} {
			if top := step * power; top >= value && top >= 4 {
				return top
			}
		}
		if power *= 10; math.IsInf(power, 1) {
			return value
		}
	}
}
