package progress

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
)

// Bars shows an export as live bars: one for the server's progress, then one for the whole download with one below it for
// each file under way. Finished types become plain lines above. The bars are never taller than the screen, where a
// terminal would keep a copy of each drawing. It implements bulkclient.Observer.
type Bars struct {
	container *mpb.Progress
	rows      int // of files under way, at most

	// These are read while a bar is drawn. mu would deadlock with a call to a bar, which waits for the drawing.
	state   atomic.Pointer[string] // that the server reports
	bytes   atomic.Int64           // downloaded
	drawing sync.Mutex             // guards files; no bar is called under it
	files   []*fileRow             // under way, in the order of their begin

	mu     sync.Mutex
	server *mpb.Bar
	total  *mpb.Bar
	counts bool // total counts resources; else, when the manifest lacks counts, files
	done   int64
	types  map[string]*counter
}

type fileRow struct {
	file             bulkclient.File
	resources, bytes int64
}

type counter struct {
	files, open      int
	resources, bytes int64
}

// NewBars starts the bars on a terminal. Close ends them.
func NewBars(terminal io.Writer, options ...mpb.ContainerOption) *Bars {
	return &Bars{
		container: mpb.New(append(options, mpb.WithOutput(terminal), mpb.WithWidth(barWidth))...), rows: rowsOf(terminal),
		types: make(map[string]*counter),
	}
}

const barWidth = 30

// rowsOf returns how many files under way fit on the screen, below the total and above the cursor.
func rowsOf(terminal io.Writer) int {
	const most, others = 8, 3
	if file, ok := terminal.(interface{ Fd() uintptr }); ok {
		if _, height, err := cwriter.GetSize(int(file.Fd())); err == nil {
			return max(min(most, height-others), 0)
		}
	}
	return most
}

var _ bulkclient.Observer = (*Bars)(nil)

// line prints a line above the bars. A failed write to the terminal must not end the export.
func (b *Bars) line(format string, args ...any) {
	_, _ = fmt.Fprintf(b.container, format+"\n", args...)
}

// Started prints the job above the bars.
func (b *Bars) Started(job bulkclient.Job) { b.line("%s", started(job)) }

// Polled moves the server's bar.
func (b *Bars) Polled(status bulkclient.Status) {
	b.state.Store(&status.State)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server == nil {
		state := func(decor.Statistics) string { return *b.state.Load() }
		b.server = b.container.AddBar(100,
			mpb.PrependDecorators(decor.Name("server", column)),
			mpb.AppendDecorators(decor.Percentage(number), decor.Any(state, column), decor.Elapsed(decor.ET_STYLE_GO)),
		)
	}
	if status.Percent >= 0 && status.Percent < 100 { // the bar ends with the manifest
		b.server.SetCurrent(int64(status.Percent))
	}
}

var (
	column = decor.WC{W: 1, C: decor.DindentRight | decor.DSyncSpaceR}
	number = decor.WC{W: 6, C: decor.DindentRight}
)

// Planned replaces the server's bar by that of the download.
func (b *Bars) Planned(files []bulkclient.File) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server != nil {
		b.server.Abort(true)
	}
	var resources int64
	b.counts = true
	for _, file := range files {
		label := labelOf(file)
		if b.types[label] == nil {
			b.types[label] = &counter{}
		}
		b.types[label].open++
		b.counts = b.counts && file.Count >= 0
		resources += file.Count
	}
	b.line("downloading %s", plural.Of(len(files), "file"))
	if len(files) == 0 {
		return
	}
	total := resources
	if !b.counts {
		total = int64(len(files))
	}
	rate := &meter{}
	b.total = b.container.AddBar(0,
		mpb.PrependDecorators(decor.Name("total", column)),
		mpb.AppendDecorators(decor.Percentage(number), decor.Any(func(s decor.Statistics) string {
			bytes := b.bytes.Load()
			if s.Completed || s.Aborted {
				return Size(bytes)
			}
			return rate.text(time.Now(), bytes, s.Current, s.Total)
		})),
		mpb.BarExtender(mpb.BarFillerFunc(b.drawFiles), false),
	)
	// A bar that is created with a total ends with the last resource, before the file is checked.
	b.total.SetTotal(total, false)
}

// drawFiles draws the files under way, as many as there are rows.
func (b *Bars) drawFiles(w io.Writer, s decor.Statistics) error {
	if s.Completed || s.Aborted {
		return nil
	}
	b.drawing.Lock()
	defer b.drawing.Unlock()
	for _, row := range b.files[:min(len(b.files), b.rows)] {
		done := plural.Of(row.resources, "resource")
		if row.file.Count > 0 {
			part := min(max(row.resources, 0), row.file.Count)
			filled := strings.Repeat("=", int(part*barWidth/row.file.Count))
			done = fmt.Sprintf("[%-*s] %d %%", barWidth, filled, part*100/row.file.Count)
		}
		if _, err := fmt.Fprintf(w, "  %-32.32s %s\n", row.file.Name, done); err != nil {
			return err
		}
	}
	return nil
}

// advance adds to the row of a file, or ends it and returns it.
func (b *Bars) advance(file bulkclient.File, resources, bytes int64, ends bool) fileRow {
	b.drawing.Lock()
	defer b.drawing.Unlock()
	at := slices.IndexFunc(b.files, func(row *fileRow) bool { return row.file.Name == file.Name })
	if at < 0 {
		at, b.files = len(b.files), append(b.files, &fileRow{file: file})
	}
	row := b.files[at]
	row.resources += resources
	row.bytes += bytes
	if ends {
		b.files = slices.Delete(b.files, at, at+1)
	}
	return *row
}

// Advanced moves the bar of the download and of the file.
func (b *Bars) Advanced(file bulkclient.File, resources, bytes int64) {
	b.bytes.Add(bytes)
	b.advance(file, resources, bytes, false)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.counts {
		b.done += resources
		b.total.SetCurrent(b.done)
	}
}

// Finished removes the bar of a file, and prints a line after the last one of a type.
func (b *Bars) Finished(file bulkclient.File) {
	row := b.advance(file, 0, 0, true)
	b.mu.Lock()
	defer b.mu.Unlock()
	label := labelOf(file)
	typ := b.types[label]
	typ.open--
	typ.files++
	typ.resources += row.resources
	typ.bytes += row.bytes
	if !b.counts {
		b.done++
		b.total.SetCurrent(b.done)
	}
	if typ.open > 0 {
		return
	}
	b.line("%s: %s, %s, %s", label, plural.Of(typ.files, "file"), plural.Of(typ.resources, "resource"), Size(typ.bytes))
	delete(b.types, label)
	if len(b.types) == 0 {
		b.total.SetTotal(-1, true)
	}
}

// Waiting prints the reason above the bars.
func (b *Bars) Waiting(reason error, wait time.Duration) {
	b.line("%v; next attempt in %s", reason, wait)
}

// Close ends the bars and waits for the last drawing.
func (b *Bars) Close() {
	b.mu.Lock()
	open := []*mpb.Bar{b.server, b.total}
	b.mu.Unlock()
	for _, bar := range open {
		if bar != nil {
			bar.Abort(false)
		}
	}
	b.container.Wait()
}

func labelOf(file bulkclient.File) string {
	label := file.Type
	if label == "" {
		label = file.Name
	}
	if file.List != bulkclient.ListOutput {
		label = string(file.List) + " " + label
	}
	return label
}

// meter derives a speed and the time that is left from samples of the last seconds, so that what an earlier run has
// downloaded, and a wait, do not distort them for long.
type meter struct{ samples []sample }

type sample struct {
	at          time.Time
	bytes, done int64
}

// text adds a sample, and describes it: bytes so far, speed, time left.
func (m *meter) text(now time.Time, bytes, done, total int64) string {
	const window, step = 15 * time.Second, 500 * time.Millisecond
	if n := len(m.samples); n == 0 || now.Sub(m.samples[n-1].at) >= step {
		m.samples = append(m.samples, sample{now, bytes, done})
	}
	for len(m.samples) > 1 && now.Sub(m.samples[0].at) > window {
		m.samples = m.samples[1:]
	}
	first := m.samples[0]
	text := Size(bytes)
	passed := now.Sub(first.at).Seconds()
	if passed < 1 || bytes < first.bytes {
		return text
	}
	text += fmt.Sprintf("  %s/s", Size(int64(float64(bytes-first.bytes)/passed)))
	if done > first.done && total >= done {
		left := time.Duration(float64(total-done) / float64(done-first.done) * passed * float64(time.Second))
		text += fmt.Sprintf("  %s left", left.Round(time.Second))
	}
	return text
}
