package progress

import (
	"fmt"
	"io"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"
)

// Terminal reports whether out is a terminal.
func Terminal(out io.Writer) bool {
	file, ok := out.(interface{ Fd() uintptr })
	return ok && cwriter.IsTerminal(int(file.Fd()))
}

// Count shows progress towards a known total. Close must be called at the end.
type Count struct {
	Set   func(done int)
	Close func()
}

// NewCount shows a count of the named things: as a bar on a terminal, as lines elsewhere.
func NewCount(out io.Writer, name string, total int, now func() time.Time) Count {
	if !Terminal(out) {
		last := now()
		return Count{
			Set: func(done int) {
				if now().Sub(last) < between {
					return
				}
				last = now()
				_, _ = fmt.Fprintf(out, "%d of %d %s\n", done, total, name) // a failed write must not end the work
			},
			Close: func() {},
		}
	}
	container := mpb.New(mpb.WithOutput(out), mpb.WithWidth(48))
	bar := container.AddBar(int64(total),
		mpb.PrependDecorators(decor.Name(name, column)),
		mpb.AppendDecorators(
			decor.CountersNoUnit("%d / %d", column), decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO), "done"),
		),
	)
	return Count{
		Set:   func(done int) { bar.SetCurrent(int64(done)) },
		Close: func() { bar.Abort(false); container.Wait() },
	}
}
