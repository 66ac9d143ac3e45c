package audit

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

const (
	// patience is how long Record waits for a disk or a pipe that takes nothing. Whoever asked must get an answer.
	patience = 10 * time.Second
	// most is how many lines at most share one fsync.
	most = 512
)

// Config says where a log is and who writes it.
type Config struct {
	// Path is the file; "-" or "stdout" is standard output, where each Open begins a chain of its own.
	Path    string
	Process string // who writes: "api"; required
	Site    string // where that runs, to tell several of the same name apart; may be empty
	// Key makes the chain one that nobody without it can make, KeyBytes at least; nil: a plain one.
	Key []byte
	// Sync has every line on the disk before Record returns. Standard output cannot do that.
	Sync bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Observe is told of every event after it was recorded, or was not and why; nil: nobody is. It may be called from
	// many goroutines at once.
	Observe func(Event, error)
}

// Log is an open log. Its methods may be called from any goroutine. One goroutine writes; Close waits for it.
type Log struct {
	process, site string
	hashes        hashing
	now           func() time.Time
	observe       func(Event, error)
	patience      time.Duration

	requests chan *request
	stopping chan struct{}
	closing  sync.Once
	ended    chan struct{} // after the writer has closed the place
	closeErr error         // of that; may be read after ended

	unrecorded atomic.Int64 // events that are not on record, since the last line that said so

	// The writer's own:
	place place
	at    link   // of the next line
	news  string // what the next Repair says
}

// request is an event on its way to the writer.
type request struct {
	event Event
	done  chan error // holds one
}

// place is where lines go.
type place interface {
	// prepare is called before lines are written. It makes the place ready again after an error, or after the file was
	// renamed. It returns what the log should tell about that, and whether the chain cannot go on there.
	prepare() (news string, anew bool, err error)
	// write writes a line, which is there as a whole or, after an error, not at all.
	write(line []byte) error
	// sync makes sure of all lines since the last sync. After an error none of them is there.
	sync() error
	close() error
}

// Open opens the log and records that it did so. A file is continued where it ends: what a crash has left of a line is
// cut off, and that is recorded too.
func Open(cfg Config) (*Log, error) { return open(cfg, openHandle) }

func open(cfg Config, handles opener) (*Log, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	l := &Log{
		process: cfg.Process, site: cfg.Site, hashes: newHashing(cfg.Key), now: cfg.Now, observe: cfg.Observe,
		patience: patience, requests: make(chan *request), stopping: make(chan struct{}), ended: make(chan struct{}),
		at: newChain(),
	}
	if l.now == nil {
		l.now = time.Now
	}
	if l.observe == nil {
		l.observe = func(Event, error) {}
	}
	var err error
	if IsStdout(cfg.Path) {
		l.place, err = newStream(os.Stdout)
	} else {
		err = l.continueFile(cfg, handles)
	}
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	start := &request{event: Event{Action: Start, Outcome: Success}, done: make(chan error, 1)}
	l.commit([]*request{start})
	if err := <-start.done; err != nil {
		return nil, fmt.Errorf("audit log: %w", errors.Join(err, l.place.close()))
	}
	go l.run()
	return l, nil
}

// IsStdout reports whether a Config's Path means standard output.
func IsStdout(path string) bool { return path == "-" || path == "stdout" }

func (c Config) check() error {
	var problems []error
	if c.Path == "" {
		problems = append(problems, errors.New("no path"))
	}
	if c.Process == "" {
		problems = append(problems, errors.New("no process"))
	}
	if len(c.Key) > 0 && len(c.Key) < KeyBytes {
		problems = append(problems, fmt.Errorf("the key has %d bytes, want at least %d", len(c.Key), KeyBytes))
	}
	if c.Sync && IsStdout(c.Path) {
		problems = append(problems, errors.New("standard output cannot be synced: name a file"))
	}
	return errors.Join(problems...)
}

// Record returns nil after the event was written, as the package comment says. After an error, which holds
// export.ErrUnavailable, the event is not on record. The one exception is a disk or a pipe that takes nothing for ten
// seconds: if it goes on later the line may still come, followed by one that says how many such there are.
func (l *Log) Record(e Event) error {
	err := l.record(e)
	if err != nil {
		l.unrecorded.Add(1)
		err = fmt.Errorf("%w: audit log: %w", export.ErrUnavailable, err)
	}
	l.observe(e, err)
	return err
}

func (l *Log) record(e Event) error {
	if err := e.check(); err != nil {
		return err
	}
	r := &request{event: e, done: make(chan error, 1)}
	timer := time.NewTimer(l.patience)
	defer timer.Stop()
	select {
	case l.requests <- r:
	case <-l.stopping:
		return errors.New("it is closed")
	case <-timer.C:
		return fmt.Errorf("nothing could be written for %s", l.patience)
	}
	select {
	case err := <-r.done:
		return err
	case <-timer.C:
		return fmt.Errorf("nothing could be written for %s", l.patience)
	}
}

// Close records the end of the log and closes it. Record fails from now on. It may be called again, to the same effect.
func (l *Log) Close() error {
	l.closing.Do(func() { close(l.stopping) })
	timer := time.NewTimer(l.patience)
	defer timer.Stop()
	select {
	case <-l.ended:
		return l.closeErr
	case <-timer.C:
		return fmt.Errorf("close audit log: nothing could be written for %s", l.patience)
	}
}

// run is the writer. What has come in while it was busy is written together.
func (l *Log) run() {
	defer close(l.ended)
	for {
		select {
		case first := <-l.requests:
			l.commit(l.gather(first))
		case <-l.stopping:
			stop := &request{event: Event{Action: Stop, Outcome: Success}, done: make(chan error, 1)}
			l.commit([]*request{stop})
			if err := errors.Join(<-stop.done, l.place.close()); err != nil {
				l.closeErr = fmt.Errorf("close audit log: %w", err)
			}
			return
		}
	}
}

func (l *Log) gather(first *request) []*request {
	batch := []*request{first}
	for len(batch) < most {
		select {
		case next := <-l.requests:
			batch = append(batch, next)
		default:
			return batch
		}
	}
	return batch
}

// commit writes the events, each as a line in one write, makes sure of them together, and answers.
func (l *Log) commit(batch []*request) {
	results := make([]error, len(batch))
	err := l.prepare()
	if err == nil {
		before, told := l.at, l.unrecorded.Load()
		said, err := l.repair(told)
		for i, r := range batch {
			if results[i] = err; err == nil {
				results[i] = l.append(r.event)
			}
		}
		if err := l.place.sync(); err != nil {
			l.at = before
			for i := range results {
				results[i] = errors.Join(results[i], err)
			}
		} else if said {
			l.news = ""
			l.unrecorded.Add(-told)
		}
	}
	for i, r := range batch {
		r.done <- errors.Join(err, results[i])
	}
}

func (l *Log) prepare() error {
	news, anew, err := l.place.prepare()
	if anew {
		l.at = newChain()
	}
	l.tell(news)
	return err
}

// tell leaves words for the next Repair.
func (l *Log) tell(news string) {
	if l.news != "" && news != "" {
		news = l.news + "; " + news
	}
	if news != "" {
		l.news = news
	}
}

// repair records what happened to the log itself, if anything did, and reports whether it said so.
func (l *Log) repair(unrecorded int64) (said bool, err error) {
	reason := l.news
	if unrecorded > 0 {
		if reason != "" {
			reason += "; "
		}
		reason += fmt.Sprintf("%d events before this one could not be recorded, and were refused", unrecorded)
	}
	if reason == "" {
		return false, nil
	}
	err = l.append(Event{Action: Repair, Outcome: Success, Reason: reason})
	return err == nil, err
}

func (l *Log) append(e Event) error {
	text, err := l.encode(e, l.now())
	if err != nil {
		return err
	}
	line, sum := l.hashes.seal(text, l.at)
	if len(line) > LineLimit {
		return fmt.Errorf("the line would have %d bytes, which is more than %d", len(line), LineLimit)
	}
	if err := l.place.write(line); err != nil {
		return err
	}
	l.at = l.at.after(sum)
	return nil
}
