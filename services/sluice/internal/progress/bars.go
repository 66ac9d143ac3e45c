package progress

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
)

// Bars shows an export as live bars: one for the server's work, then one per resource type. It implements
// bulkclient.Observer.
type Bars struct {
	container *mpb.Progress

	// state is what the server says. It is read while a bar is drawn: a mutex here would wait for a call to the bar,
	// and the call for the drawing.
	state atomic.Pointer[string]

	mu     sync.Mutex
	server *mpb.Bar
	types  map[string]*typeBar
}

// typeBar is the bar of one resource type. It counts resources, or bytes when the server announces no counts.
type typeBar struct {
	bar              *mpb.Bar
	resources, bytes int64
	files            int // still to be finished
	counted          bool
}

// NewBars starts the bars on a terminal. Close ends them.
func NewBars(terminal io.Writer) *Bars { return newBars(terminal) }

func newBars(out io.Writer, options ...mpb.ContainerOption) *Bars {
	return &Bars{
		container: mpb.New(append(options, mpb.WithOutput(out), mpb.WithWidth(48))...),
		types:     make(map[string]*typeBar),
	}
}

var _ bulkclient.Observer = (*Bars)(nil)

// Polled moves the server's bar.
func (b *Bars) Polled(status bulkclient.Status) {
	b.state.Store(&status.State)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server == nil {
		state := func(decor.Statistics) string { return *b.state.Load() }
		b.server = b.container.AddBar(100,
			mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name("server", column)),
			mpb.AppendDecorators(decor.Percentage(number), decor.Any(state, column), decor.Elapsed(decor.ET_STYLE_GO)),
		)
	}
	if status.Percent >= 0 && status.Percent < 100 { // the manifest ends it, not a number
		b.server.SetCurrent(int64(status.Percent))
	}
}

var (
	column = decor.WC{W: 1, C: decor.DindentRight | decor.DSyncSpaceR}
	number = decor.WC{W: 6, C: decor.DindentRight}
)

// Planned ends the server's bar and begins one per type.
func (b *Bars) Planned(files []bulkclient.File) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server != nil {
		b.server.SetCurrent(100)
	}
	totals := make(map[string]int64)
	var order []string
	for _, file := range files {
		label := labelOf(file)
		one, ok := b.types[label]
		if !ok {
			one = &typeBar{counted: true}
			b.types[label] = one
			order = append(order, label)
		}
		one.files++
		one.counted = one.counted && file.Count >= 0
		totals[label] += file.Count
	}
	for _, label := range order {
		one := b.types[label]
		name := decor.Name(label, column)
		if one.counted {
			// The bar's total is set only now, as SetTotal wants: a bar made with a total ends by itself as soon as
			// the last resource is read, before the file is checked.
			one.bar = b.container.AddBar(0,
				mpb.PrependDecorators(name),
				mpb.AppendDecorators(
					decor.CountersNoUnit("%d / %d", column),
					decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO), "done"),
				),
			)
			one.bar.SetTotal(totals[label], false)
			continue
		}
		one.bar = b.container.AddBar(0,
			mpb.PrependDecorators(name),
			mpb.AppendDecorators(
				decor.CurrentKiloByte("% .1f", column),
				decor.OnComplete(decor.AverageSpeed(decor.SizeB1000(0), "% .1f"), "done"),
			),
		)
	}
}

// Advanced moves a type's bar.
func (b *Bars) Advanced(file bulkclient.File, resources, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	one := b.types[labelOf(file)]
	one.resources += resources
	one.bytes += bytes
	if one.counted {
		one.bar.SetCurrent(one.resources)
	} else {
		one.bar.SetCurrent(one.bytes)
	}
}

// Finished ends a type's bar with its last file.
func (b *Bars) Finished(file bulkclient.File) {
	b.mu.Lock()
	defer b.mu.Unlock()
	one := b.types[labelOf(file)]
	one.files--
	if one.files == 0 {
		one.bar.SetTotal(-1, true)
	}
}

// Waiting says above the bars why nothing moves.
func (b *Bars) Waiting(reason error, wait time.Duration) {
	// A line that cannot be shown is no reason to end an export.
	_, _ = fmt.Fprintf(b.container, "%v; next attempt in %s\n", reason, wait)
}

// Close leaves the bars as they stand and waits until they are drawn.
func (b *Bars) Close() {
	b.mu.Lock()
	var open []*mpb.Bar
	if b.server != nil {
		open = append(open, b.server)
	}
	for _, one := range b.types {
		open = append(open, one.bar)
	}
	b.mu.Unlock()
	for _, bar := range open {
		bar.Abort(false)
	}
	b.container.Wait()
}

// labelOf names the bar that a file belongs to.
func labelOf(file bulkclient.File) string {
	if file.List == bulkclient.Output {
		return file.Type
	}
	return string(file.List) + " " + file.Type
}
