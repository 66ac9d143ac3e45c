package main

import (
	"bytes"
	"fmt"
	"html"
	"os"
	"slices"
)

// panel is one diagram of a chart: time runs to the right, in minutes, over the whole width.
type panel struct {
	title  string
	height float64
	most   float64 // of the value axis
	step   float64 // between two of its lines
	curves []curve
	bars   []bar
}

// curve holds its value from one point to the next.
type curve struct {
	name, colour string
	filled       bool
	at, values   []float64 // seconds, and the unit of the axis
}

// bar is a span of time, such as a job's; row counts from the top.
type bar struct {
	name, colour string
	from, to     float64 // seconds
	row          int
}

const (
	chartWidth  = 860.0
	chartLeft   = 64.0
	chartRight  = 24.0
	chartTop    = 56.0
	chartGap    = 62.0 // between two panels
	chartBottom = 70.0
)

// drawChart writes panels one below the other as SVG. It brings its own paper, so that it can be read on any page.
func drawChart(path, title, subtitle string, seconds float64, panels []panel) error {
	height := chartTop + chartBottom - chartGap
	for _, p := range panels {
		height += p.height + chartGap
	}
	minutes := seconds / 60
	x := func(second float64) float64 { return chartLeft + second/seconds*(chartWidth-chartLeft-chartRight) }
	var out bytes.Buffer
	text := func(x, y float64, class, anchor, text string) {
		fmt.Fprintf(&out, `<text x="%.1f" y="%.1f" class="%s" text-anchor="%s">%s</text>`+"\n",
			x, y, class, anchor, html.EscapeString(text))
	}
	line := func(x1, y1, x2, y2 float64, class string) {
		fmt.Fprintf(&out, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`+"\n", x1, y1, x2, y2, class)
	}
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" role="img">
<title>%s</title>
<style>
text { font-family: system-ui, "DejaVu Sans", sans-serif; fill: #1f2933 }
.title { font-size: 17px; font-weight: 600 } .name { font-size: 13px; font-weight: 600 }
.small { font-size: 11px; fill: #52606d }
.grid { stroke: #d9dee4; stroke-width: 1 } .axis { stroke: #52606d; stroke-width: 1 }
</style>
<rect width="%.0f" height="%.0f" rx="8" fill="#fbfcfd" stroke="#c5ccd3"/>
`, chartWidth, height, html.EscapeString(title), chartWidth, height)
	text(chartLeft, 24, "title", "start", title)
	text(chartLeft, 42, "small", "start", subtitle)
	every := 5.0
	if minutes < 12 {
		every = 1
	}
	top := chartTop
	for i, p := range panels {
		top += 22
		bottom := top + p.height
		y := func(value float64) float64 { return bottom - value/p.most*p.height }
		text(chartLeft, top-8, "name", "start", p.title)
		legend := chartWidth - chartRight
		for _, c := range slices.Backward(p.curves) {
			text(legend, top-8, "small", "end", c.name)
			legend -= 5.6*float64(len(c.name)) + 24
			fmt.Fprintf(&out, `<rect x="%.1f" y="%.1f" width="12" height="8" fill="%s"/>`+"\n", legend, top-16, c.colour)
			legend -= 14
		}
		if p.step > 0 {
			for value := 0.0; value <= p.most; value += p.step {
				line(chartLeft, y(value), chartWidth-chartRight, y(value), "grid")
				text(chartLeft-8, y(value)+4, "small", "end", fmt.Sprintf("%.0f", value))
			}
		}
		for minute := 0.0; minute <= minutes; minute += every {
			line(x(minute*60), top, x(minute*60), bottom, "grid")
			text(x(minute*60), bottom+15, "small", "middle", fmt.Sprint(minute))
		}
		line(chartLeft, bottom, chartWidth-chartRight, bottom, "axis")
		for _, c := range p.curves {
			fmt.Fprintf(&out, `<path d="M%.1f %.1f`, x(c.at[0]), y(0))
			for j := range c.at {
				fmt.Fprintf(&out, "H%.1fV%.1f", x(c.at[j]), y(c.values[j]))
			}
			style := fmt.Sprintf(`fill="none" stroke="%s" stroke-width="2"`, c.colour)
			if c.filled {
				fmt.Fprintf(&out, "V%.1fZ", y(0))
				style = fmt.Sprintf(`fill="%s"`, c.colour)
			}
			fmt.Fprintf(&out, `" %s/>`+"\n", style)
		}
		for _, b := range p.bars {
			const thick = 14.0
			above := top + float64(b.row)*(thick+4) + 4
			fmt.Fprintf(&out, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="2" fill="%s"/>`+"\n",
				x(b.from), above, max(x(b.to)-x(b.from), 2), thick, b.colour)
			text(x(b.to)+5, above+11, "small", "start", b.name)
		}
		if i == len(panels)-1 {
			text((chartLeft+chartWidth-chartRight)/2, bottom+34, "small", "middle", "minutes, by the autoscaler's clock")
		}
		top = bottom + chartGap - 22
	}
	out.WriteString("</svg>\n")
	return os.WriteFile(path, out.Bytes(), 0o644) //nolint:gosec // it is for everybody to read
}

// drawAutoscale shows what was waiting, how many workers there were, and how long the jobs took.
func drawAutoscale(path string, f *autoscaleFigures) error {
	const blue, light, orange, grey, green = "#1d6fb8", "#7fb2dd", "#f0b37e", "#8a94a0", "#2f8f5b"
	var at, workers, alive, pending, active []float64
	units := 1.0
	for _, s := range f.Samples {
		at = append(at, s.At)
		workers, alive = append(workers, float64(s.Workers)), append(alive, float64(s.Alive))
		pending, active = append(pending, float64(s.Pending+s.Active)), append(active, float64(s.Active))
		units = max(units, float64(s.Pending+s.Active))
	}
	jobs := panel{title: "Jobs, from kick-off to manifest"}
	for i, job := range f.Jobs {
		name, colour := fmt.Sprintf("%d patients", autoscalePatients), blue
		if job.Group != "all" {
			name, colour = "10 patients", green
		}
		jobs.bars = append(jobs.bars, bar{
			name: fmt.Sprintf("%s, %.1f min", name, job.Took/60), colour: colour, from: job.Begun, to: job.Begun + job.Took, row: i,
		})
	}
	units = rounded(units, 10)
	most := rounded(float64(f.Most), 4)
	jobs.height = float64(18*len(f.Jobs) + 6)
	return drawChart(path, "Workers follow the work",
		fmt.Sprintf("%d jobs, %d units, %d executions, %d handed back; %d workers started, %d stopped, %d of them at work "+
			"(they may go on for %.0f s)",
			len(f.Jobs), f.Units, f.Executions, f.HandedBack, f.Started, f.Stopped, f.StoppedBusy, f.Drain),
		at[len(at)-1], []panel{
			{title: "Units", height: 130, most: units, step: units / 5, curves: []curve{
				{name: "waiting", colour: orange, filled: true, at: at, values: pending},
				{name: "at work", colour: light, filled: true, at: at, values: active},
			}},
			{title: "Workers", height: 130, most: most, step: most / 4, curves: []curve{
				{name: "with those that drain", colour: grey, at: at, values: alive},
				{name: "wanted", colour: blue, at: at, values: workers},
			}},
			jobs,
		})
}

// rounded is the next multiple of a step above the value.
func rounded(value, step float64) float64 {
	return step * float64(int(value/step)+1)
}
