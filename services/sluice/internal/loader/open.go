package loader

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/sluice-fhir/sluice/pkg/lines"
)

// state is what is known of a file.
type state struct {
	opened   bool
	missing  error // why it could not be opened in the first pass
	size     int64
	modified time.Time
	read     int64 // bytes reported as progress

	typed     bool  // a line has a resourceType
	used      bool  // a resource or deletion was passed on
	deferred  bool  // a line waits for the third pass
	broken    bool  // the rest cannot be read
	concluded bool  // the first pass has ended
	ignored   int64 // resources of types that are never exported
	reports   int   // lines to report

	untyped, firstUntyped int64 // lines without a resourceType
	firstUntypedPlace     string
}

// open returns the text of a file. A file that could not be opened in the first pass is broken in all of them. A file that
// has changed since it was opened first is an error, unless it is passed by.
func (p *parser) open(number int) (lines.Text, error) {
	if p.passedBy(number) {
		return lines.Text{Reader: bytes.NewReader(nil), Closer: io.NopCloser(nil)}, nil
	}
	path := p.files[number].Path
	file, err := p.openFile(number)
	if err != nil {
		return lines.Text{}, err
	}
	text, err := func() (lines.Text, error) {
		if err := p.checkSame(number, file); err != nil {
			return lines.Text{}, err
		}
		content := func() io.Reader {
			return lines.FromFile(&counted{from: io.NewSectionReader(file, 0, math.MaxInt64), parser: p, file: number})
		}
		return lines.Open(path, max(p.cfg.MaxLine, maxGroup)+1, true, content)
	}()
	if err != nil {
		return text, errors.Join(fmt.Errorf("read %s: %w", path, err), file.Close())
	}
	text.Closer = both{text.Closer, file}
	return text, nil
}

func (p *parser) openFile(number int) (*os.File, error) {
	known := p.state(number)
	if known.missing != nil {
		return nil, known.missing
	}
	file, err := p.files[number].Open()
	broken := new(lines.BrokenError)
	switch {
	case errors.As(err, &broken) && !known.opened:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.states[number].missing = broken
		return nil, broken
	case errors.As(err, &broken): // its lines have been taken
		return nil, fmt.Errorf("read %s: %w", p.files[number].Path, errChanged)
	}
	return file, err
}

// both closes a text and then its file.
type both struct{ text, file io.Closer }

func (b both) Close() error { return errors.Join(b.text.Close(), b.file.Close()) }

var errChanged = errors.New("the file changed during the load")

// checkSame compares the file with the one that was opened first.
func (p *parser) checkSame(number int, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.states[number]
	if s.opened && (s.size != info.Size() || !s.modified.Equal(info.ModTime())) {
		return errChanged
	}
	s.opened, s.size, s.modified = true, info.Size(), info.ModTime()
	return nil
}

// passedBy reports whether the first pass has found nothing to take in a file, such as a log, which may change.
func (p *parser) passedBy(number int) bool {
	s := p.state(number)
	return s.concluded && !s.used && !s.deferred
}

// unchanged returns an error if the file has changed since it was opened first.
func (p *parser) unchanged(number int) error {
	if p.passedBy(number) {
		return nil
	}
	file, err := p.openFile(number)
	if broken := new(lines.BrokenError); errors.As(err, &broken) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := errors.Join(p.checkSame(number, file), file.Close()); err != nil {
		return fmt.Errorf("%s: %w", p.files[number].Path, err)
	}
	return nil
}

// counted reports the bytes that are read for the first time.
type counted struct {
	from   io.Reader
	parser *parser
	file   int
	at     int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.at += int64(n)
	c.parser.mu.Lock()
	defer c.parser.mu.Unlock()
	if s := &c.parser.states[c.file]; c.at > s.read {
		c.parser.sink.Progress(c.at - s.read)
		s.read = c.at
	}
	return n, err
}

// isUndated reports whether the resource has a meta.lastUpdated. The scanner has found none that is an instant.
func isUndated(line []byte) bool {
	if !bytes.Contains(line, []byte(`"lastUpdated"`)) {
		return false
	}
	var resource struct {
		Meta struct {
			LastUpdated json.RawMessage `json:"lastUpdated"`
		} `json:"meta"`
	}
	return json.Unmarshal(line, &resource) != nil || len(resource.Meta.LastUpdated) > 0
}
