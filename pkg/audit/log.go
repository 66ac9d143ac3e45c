// Package audit records who did what to which export: FHIR R4 AuditEvents, one JSON line each, in a hash chain
// (docs/audit.md). No library offers AuditEvents in a hash chain.
//
// Record returns nil only after the whole line was passed to the operating system in one write, and with Config.Sync
// after fsync. Any other outcome is an error that wraps export.ErrUnavailable: the caller must refuse the operation.
// An event that could not be recorded is not written later; the next line contains the number of such events.
//
// Each line contains the hash of the previous line, so Verify detects altered, removed, added, repeated and moved
// lines. With a key (HMAC-SHA-256) only holders of the key can create a valid chain. Without one (SHA-256) anybody who
// can write the file can recompute the chain, so it only detects accidental damage. Missing lines at the end are
// detected only by comparing with a hash of the last line that was stored elsewhere.
//
// Open refuses a file that another process writes, a file that is not such a log, and one written under another key.
// An Event has no field for patient ids, tokens or query strings.
package audit

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

const (
	writeTimeout = 10 * time.Second // how long Record and Close wait for a stuck disk or pipe
	maxBatch     = 512              // lines that share one fsync
)

// Config configures a log.
type Config struct {
	// Path is a file, or "-" or "stdout" for standard output. On standard output each Open begins a new chain, and makes
	// the process ignore SIGPIPE.
	Path    string
	Process string           // name of the writing process, such as "api"; required
	Site    string           // its host, to distinguish instances; optional
	Key     []byte           // of the hash chain, at least KeyBytes; nil: a chain without a key
	Sync    bool             // fsync before Record returns; not for standard output
	Now     func() time.Time // nil: time.Now
	// Observe is called with every recorded event, and with the error if it could not be recorded. It may be called
	// concurrently. nil: no observer.
	Observe func(Event, error)
}

// Log is an open log. Its methods are safe for concurrent use. One goroutine writes; Close waits for it.
type Log struct {
	process, site string
	hasher        hasher
	now           func() time.Time
	observe       func(Event, error)

	requests chan *request
	stopping chan struct{}
	closing  sync.Once
	ended    chan struct{} // closed after the writer has closed the sink
	closeErr error         // set before ended is closed

	unrecorded atomic.Int64 // failed events since the last line that reported them

	// Used only by the writer:
	sink    sink
	at      position // of the next line
	notices []string // reported by the next Repair
}

type request struct {
	event Event
	done  chan error // buffered
}

type sink interface {
	// prepare is called before lines are written. It recovers from an earlier error or a renamed file. It returns a notice
	// for the log, if any, and whether a new chain has to begin.
	prepare() (notice string, newChain bool, err error)
	// write writes a line completely or, if it returns an error, not at all.
	write(line []byte) error
	// sync makes all lines since the last sync durable. If it returns an error, none of them is in the log.
	sync() error
	close() error
}

// Open opens the log and records a Start event. An existing file is continued: an incomplete last line, left by a crash, is
// cut off and recorded as a Repair event.
func Open(cfg Config) (*Log, error) { return open(cfg, openHandle) }

func open(cfg Config, handles opener) (*Log, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	l := &Log{
		process: cfg.Process, site: cfg.Site, hasher: newHasher(cfg.Key), now: cfg.Now, observe: cfg.Observe,
		requests: make(chan *request), stopping: make(chan struct{}), ended: make(chan struct{}), at: newChain(),
	}
	if l.now == nil {
		l.now = time.Now
	}
	if l.observe == nil {
		l.observe = func(Event, error) {}
	}
	if IsStdout(cfg.Path) {
		l.sink = newStream(os.Stdout)
	} else if err := l.continueFile(cfg, handles); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	if err := l.commitOne(Start); err != nil {
		return nil, fmt.Errorf("audit log: %w", errors.Join(err, l.sink.close()))
	}
	go l.run()
	return l, nil
}

// IsStdout reports whether a Config's Path means standard output.
func IsStdout(path string) bool { return path == "-" || path == "stdout" }

func (c Config) check() error {
	switch {
	case c.Path == "":
		return errors.New("no path")
	case c.Process == "":
		return errors.New("no process")
	case len(c.Key) > 0 && len(c.Key) < KeyBytes:
		return fmt.Errorf("the key has %d bytes, want at least %d", len(c.Key), KeyBytes)
	case c.Sync && IsStdout(c.Path):
		return errors.New("standard output cannot be synced: name a file")
	}
	return nil
}

// Record returns nil after the event was written (see the package comment). An error wraps export.ErrUnavailable and
// means that the event is not in the log, with one exception: if the disk or pipe was stuck for writeTimeout and
// recovers, the line may appear later, followed by a line that counts such events.
func (l *Log) Record(e Event) error {
	err := l.record(e)
	if err != nil {
		l.unrecorded.Add(1)
		err = fmt.Errorf("%w: audit log: %w", export.ErrUnavailable, err)
	}
	l.observe(e, err)
	return err
}

var errStuck = fmt.Errorf("no line could be written within %s", writeTimeout)

func (l *Log) record(e Event) error {
	if err := e.check(); err != nil {
		return err
	}
	r := &request{event: e, done: make(chan error, 1)}
	timeout := time.After(writeTimeout)
	select {
	case l.requests <- r:
	case <-l.stopping:
		return errors.New("the log is closed")
	case <-timeout:
		return errStuck
	}
	select {
	case err := <-r.done:
		return err
	case <-timeout:
		return errStuck
	}
}

// Close records the end of the log and closes it. Later calls of Record fail. Further calls of Close
// return the same result.
func (l *Log) Close() error {
	l.closing.Do(func() { close(l.stopping) })
	select {
	case <-l.ended:
		return l.closeErr
	case <-time.After(writeTimeout):
		return fmt.Errorf("close audit log: %w", errStuck)
	}
}

// run is the writer. It commits requests that arrived during a write together.
func (l *Log) run() {
	defer close(l.ended)
	for {
		select {
		case first := <-l.requests:
			l.commit(l.gather(first))
		case <-l.stopping:
			if err := errors.Join(l.commitOne(Stop), l.sink.close()); err != nil {
				l.closeErr = fmt.Errorf("close audit log: %w", err)
			}
			return
		}
	}
}

func (l *Log) gather(first *request) []*request {
	batch := []*request{first}
	for len(batch) < maxBatch {
		select {
		case next := <-l.requests:
			batch = append(batch, next)
		default:
			return batch
		}
	}
	return batch
}

func (l *Log) commitOne(action Action) error {
	r := &request{event: Event{Action: action, Outcome: Success}, done: make(chan error, 1)}
	l.commit([]*request{r})
	return <-r.done
}

// commit writes each event in one write, syncs them together, and answers the requests.
func (l *Log) commit(batch []*request) {
	results := make([]error, len(batch))
	notice, begin, err := l.sink.prepare()
	if begin {
		l.at = newChain()
	}
	l.addNotice(notice)
	if err == nil {
		before, unrecorded := l.at, l.unrecorded.Load()
		reported, err := l.repair(unrecorded)
		for i, r := range batch {
			if results[i] = err; err == nil {
				results[i] = l.append(r.event)
			}
		}
		if err := l.sink.sync(); err != nil {
			l.at = before
			for i := range results {
				results[i] = errors.Join(results[i], err)
			}
		} else if reported {
			l.notices = nil
			l.unrecorded.Add(-unrecorded)
		}
	}
	for i, r := range batch {
		r.done <- errors.Join(err, results[i])
	}
}

func (l *Log) addNotice(notice string) {
	if notice != "" {
		l.notices = append(l.notices, notice)
	}
}

// repair records pending notices and the number of unrecorded events, if there are any, and reports whether it did.
func (l *Log) repair(unrecorded int64) (reported bool, err error) {
	reasons := slices.Clone(l.notices)
	if unrecorded > 0 {
		reasons = append(reasons, fmt.Sprintf("%d events before this one could not be recorded, and were refused", unrecorded))
	}
	if len(reasons) == 0 {
		return false, nil
	}
	err = l.append(Event{Action: Repair, Outcome: Success, Reason: strings.Join(reasons, "; ")})
	return err == nil, err
}

func (l *Log) append(e Event) error {
	text, err := l.encode(e, l.now())
	if err != nil {
		return err
	}
	line, sum := l.hasher.seal(text, l.at)
	if len(line) > LineLimit {
		return fmt.Errorf("the line would have %d bytes; the limit is %d", len(line), LineLimit)
	}
	if err := l.sink.write(line); err != nil {
		return err
	}
	l.at = l.at.next(sum)
	return nil
}
