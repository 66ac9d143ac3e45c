package progress

import (
	"fmt"
	"io"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"
)

// Terminal reports whether out is a terminal, on which bars can be drawn.
func Terminal(out io.Writer) bool {
	file, ok := out.(interface{ Fd() uintptr })
	return ok && cwriter.IsTerminal(int(file.Fd()))
}

// Count shows work that counts up to a known total. Set tells how far it is, and Close must be called at the end.
type Count struct {
	Set   func(done int)
	Close func()
}

// NewCount shows a count of things of the name: a bar on a terminal, lines elsewhere.
func NewCount(out io.Writer, name string, total int, now func() time.Time) Count {
	if !Terminal(out) {
		last := now()
		return Count{
			Set: func(done int) {
				if now().Sub(last) < between {
					return
				}
				last = now()
				_, _ = fmt.Fprintf(out, "%d of %d %s\n", done, total, name) // not worth failing for
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
