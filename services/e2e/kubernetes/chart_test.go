//go:build kubernetes

package kubernetes

import (
	"fmt"
	"strings"
)

// chart draws waiting units and ready workers over time, with the events, as an SVG.
func (w *watch) chart() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	const width, height, left, right, above, below = 960, 420, 60, 60, 30, 50
	end, units, workers := 1.0, 1, 1
	for _, s := range w.samples {
		end = max(end, s.at.Seconds())
		units, workers = max(units, s.Pending+s.Scheduled), max(workers, s.replicas)
	}
	x := func(seconds float64) float64 { return left + seconds/end*(width-left-right) }
	y := func(value, most int) float64 {
		return height - below - float64(value)/float64(most)*(height-above-below)
	}

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n",
		width, height+16*len(w.events))
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	for i := range 5 {
		at := y(i, 4)
		fmt.Fprintf(&b, `<path d="M%d %.0fH%d" stroke="#ddd"/>`, left, at, width-right)
		fmt.Fprintf(&b, `<text x="%d" y="%.0f" text-anchor="end" fill="#1f77b4">%d</text>`, left-8, at+4, units*i/4)
		fmt.Fprintf(&b, `<text x="%d" y="%.0f" fill="#d62728">%.3g</text>`+"\n", width-right+8, at+4, float64(workers*i)/4)
	}
	for second := 0.0; second <= end; second += 60 {
		fmt.Fprintf(&b, `<text x="%.0f" y="%d" text-anchor="middle">%.0f min</text>`, x(second), height-below+18, second/60)
	}
	fmt.Fprintf(&b, `<text x="%d" y="18" fill="#1f77b4">units that wait</text>`, left)
	fmt.Fprintf(&b, `<text x="%d" y="18" text-anchor="end" fill="#d62728">workers: ready, and wanted (dashed)</text>`+"\n", width-right)

	line := func(color, dash string, value func(sample) float64) {
		b.WriteString(`<path fill="none" stroke-width="2" stroke="` + color + `" stroke-dasharray="` + dash + `" d="`)
		for i, s := range w.samples {
			if i == 0 {
				fmt.Fprintf(&b, "M%.1f %.1f", x(s.at.Seconds()), value(s))
			} else {
				fmt.Fprintf(&b, "H%.1fV%.1f", x(s.at.Seconds()), value(s))
			}
		}
		b.WriteString(`"/>` + "\n")
	}
	line("#1f77b4", "", func(s sample) float64 { return y(s.Pending+s.Scheduled, units) })
	line("#d62728", "4 3", func(s sample) float64 { return y(s.replicas, workers) })
	line("#d62728", "", func(s sample) float64 { return y(s.ready, workers) })

	for i, e := range w.events {
		at := x(e.at.Seconds())
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#555" stroke-dasharray="2 3"/>`, at, above, height-below)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%d</text>`, at, height-below+34, i+1)
		fmt.Fprintf(&b, `<text x="%d" y="%d">%d: after %.0f s, %s</text>`+"\n", left, height+16*i, i+1, e.at.Seconds(), e.what)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
