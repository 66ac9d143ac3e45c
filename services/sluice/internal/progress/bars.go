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

// Bars shows an export as live bars: one for the server's progress, then one per resource type. It implements
// bulkclient.Observer.
type Bars struct {
	container *mpb.Progress

	// state is the state that the server reports. It is atomic because it is read while a bar is drawn: a mutex would
	// deadlock with a call to the bar, which waits for the drawing.
	state atomic.Pointer[string]

	mu     sync.Mutex
	server *mpb.Bar
	types  map[string]*typeBar
}

// typeBar is the bar of one resource type. It counts resources, or bytes when the manifest has no counts.
type typeBar struct {
	bar              *mpb.Bar
	resources, bytes int64
	total            int64 // resources
	files            int   // unfinished
	counted          bool
}

// NewBars starts the bars on a terminal. Close ends them.
func NewBars(terminal io.Writer, options ...mpb.ContainerOption) *Bars {
	return &Bars{
		container: mpb.New(append(options, mpb.WithOutput(terminal), mpb.WithWidth(48))...),
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
	if status.Percent >= 0 && status.Percent < 100 { // the bar ends with the manifest
		b.server.SetCurrent(int64(status.Percent))
	}
}

var (
	column = decor.WC{W: 1, C: decor.DindentRight | decor.DSyncSpaceR}
	number = decor.WC{W: 6, C: decor.DindentRight}
)

// Planned ends the server's bar and starts one per type.
func (b *Bars) Planned(files []bulkclient.File) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server != nil {
		b.server.SetCurrent(100)
	}
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
		one.total += file.Count
	}
	for _, label := range order {
		one := b.types[label]
		count, rest := decor.CurrentKiloByte("% .1f", column), decor.AverageSpeed(decor.SizeB1000(0), "% .1f")
		if one.counted {
			count, rest = decor.CountersNoUnit("%d / %d", column), decor.AverageETA(decor.ET_STYLE_GO)
		}
		one.bar = b.container.AddBar(0,
			mpb.PrependDecorators(decor.Name(label, column)),
			mpb.AppendDecorators(count, decor.OnComplete(rest, "done")),
		)
		if one.counted {
			// A bar that is created with a total ends with the last resource, before the file is checked.
			one.bar.SetTotal(one.total, false)
		}
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

// Waiting prints the reason above the bars.
func (b *Bars) Waiting(reason error, wait time.Duration) {
	// A failed write to the terminal must not end the export.
	_, _ = fmt.Fprintf(b.container, "%v; next attempt in %s\n", reason, wait)
}

// Close ends the bars and waits for the last drawing.
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

func labelOf(file bulkclient.File) string {
	if file.List == bulkclient.ListOutput {
		return file.Type
	}
	return string(file.List) + " " + file.Type
}
