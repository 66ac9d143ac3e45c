// Package progress shows progress: with live bars on a terminal, and with a plain line every few seconds elsewhere.
package progress

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8/decor"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
)

// between is the minimum interval of progress lines.
const between = 5 * time.Second

// Lines shows an export as plain lines, for logs and pipes. It implements bulkclient.Observer.
type Lines struct {
	out io.Writer
	now func() time.Time

	mu               sync.Mutex
	state            string
	last             time.Time // of the last line
	files, finished  int
	resources, bytes int64
}

// NewLines returns Lines that write to out and read the time from now.
func NewLines(out io.Writer, now func() time.Time) *Lines { return &Lines{out: out, now: now} }

var _ bulkclient.Observer = (*Lines)(nil)

// Started writes the job.
func (l *Lines) Started(job bulkclient.Job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line("%s", started(job))
}

func started(job bulkclient.Job) string { return "export " + job.ID() + ": " + job.StatusURL }

// Polled writes a line when the state changes, else at intervals.
func (l *Lines) Polled(status bulkclient.Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if status.State == l.state && !l.due() {
		return
	}
	l.state = status.State
	if status.Percent >= 0 {
		l.line("server: %s, %d%%", status.State, status.Percent)
		return
	}
	l.line("server: %s", status.State)
}

// Planned writes the number of files.
func (l *Lines) Planned(files []bulkclient.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.files = len(files)
	l.line("downloading %s", plural.Of(l.files, "file"))
}

// Advanced writes a line at intervals.
func (l *Lines) Advanced(_ bulkclient.File, resources, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resources += resources
	l.bytes += bytes
	if l.due() {
		l.downloaded()
	}
}

// Finished counts a file, and writes a line after the last one.
func (l *Lines) Finished(bulkclient.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finished++
	if l.finished == l.files {
		l.downloaded()
	}
}

// Waiting writes the reason.
func (l *Lines) Waiting(reason error, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line("%v; next attempt in %s", reason, wait)
}

func (l *Lines) due() bool { return l.now().Sub(l.last) >= between }

func (l *Lines) downloaded() {
	l.line("downloaded %d of %s: %s, %s",
		l.finished, plural.Of(l.files, "file"), plural.Of(l.resources, "resource"), Size(l.bytes))
}

func (l *Lines) line(format string, args ...any) {
	l.last = l.now()
	// A failed write to standard error must not end the export.
	_, _ = fmt.Fprintf(l.out, format+"\n", args...)
}

// Size formats a number of bytes, as 12.3 MB.
func Size(bytes int64) string {
	if bytes < 1000 {
		return fmt.Sprintf("%d B", bytes)
	}
	return fmt.Sprintf("% .1f", decor.SizeB1000(bytes))
}

// plural returns a number and a noun in the right form.
